"""An engine's log as JSON lines.

Pure but for `LogSink`. vLLM writes `(PROCESS pid=N) LEVEL MM-DD HH:MM:SS [FILE:LINE] text`, in
parts where it can; its HTTP server `LEVEL:  text`; libraries what they like, bars among it. Every
line comes out, with what could be read of it; none is longer than LONGEST.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import IO, Final

LONGEST: Final = 65536

_PROCESS: Final = re.compile(r"\((?P<process>\w+) pid=(?P<pid>[0-9]{1,10})\) ")
_LINE: Final = re.compile(
    r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) [0-9-]{4,10} [0-9:.,]{8,15} "
    r"\[(?P<where>[^\]]{1,200})\] ?(?P<message>.*)",
    re.DOTALL,
)
_SERVER: Final = re.compile(
    r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL): +(?P<message>.*)", re.DOTALL
)


class Lines:
    """Cuts what is heard into lines; carriage returns, with which bars redraw, end one too."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def __repr__(self) -> str:
        return f"<Lines {len(self._rest)} bytes of one begun>"

    def feed(self, heard: bytes) -> list[str]:
        """The lines that have ended; empty ones are left out."""
        *whole, self._rest = re.split(rb"[\r\n]", self._rest + heard)
        while len(self._rest) > LONGEST:
            whole.append(self._rest[:LONGEST])
            self._rest = self._rest[LONGEST:]
        return [text for line in whole if (text := line.decode("utf-8", "replace").rstrip())]


def read_line(line: str) -> dict[str, str | int]:
    """What a line says, of which process, how loudly."""
    said: dict[str, str | int] = {}
    if (process := _PROCESS.match(line)) is not None:
        said |= {"process": process["process"], "pid": int(process["pid"])}
        line = line[process.end() :]
    found = _LINE.fullmatch(line) or _SERVER.fullmatch(line)
    read = found.groupdict() if found else {"message": line}
    return said | read | {"level": read.get("level", "info").lower()}


class LogSink:
    """Writes what the engine and we say to one stream: as JSON lines, or as it came."""

    def __init__(self, stream: IO[str], *, is_json: bool, wall: Callable[[], float]) -> None:
        self._stream = stream
        self._is_json = is_json
        self._wall = wall
        self._lines = Lines()

    def __repr__(self) -> str:
        return f"<LogSink {'json' if self._is_json else 'plain'}>"

    def hear(self, heard: bytes) -> None:
        """The engine wrote something."""
        for line in self._lines.feed(heard):
            self._write(line, {"source": "engine", **read_line(line)})

    def say(self, line: str) -> None:
        """We say something."""
        said = {"source": "headrace", "level": "info", "message": line}
        self._write(f"headrace: {line}", said)

    def _write(self, plain: str, said: Mapping[str, str | int]) -> None:
        if self._is_json:
            at = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds")
            plain = json.dumps({"at": at, **said}, ensure_ascii=False)
        print(plain, file=self._stream, flush=True)
