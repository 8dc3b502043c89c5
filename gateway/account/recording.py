"""Recordings of traffic without a word of it: when, how long, and which beginnings were shared.

Asked: what would it take to play this traffic again? A line a request, off by default. At marks in
its prompt's bytes a line holds a hash of all bytes before, keyed with a secret that is made anew
for each recording and written nowhere: within a recording equal beginnings have equal hashes, but
no text can be tried against them. Tenants are hashed likewise. `loadtest.traces` reads it.
"""

from __future__ import annotations

from hashlib import blake2b
from secrets import token_bytes
from typing import IO, TYPE_CHECKING, Final, Protocol

import orjson

from gateway.account.access_log import AccessLog, access_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.account.entry import Entry
    from gateway.request import GenerationRequest
    from gateway.settings import AccountSettings
    from gateway.vocabulary import Seconds

HEAD: Final = b'{"format":"headrace-recording","version":1}\n'


def _marks() -> tuple[int, ...]:
    marks: list[int] = []
    for step, end in ((256, 4096), (1024, 32_768), (8192, 524_288)):
        marks.extend(range((marks[-1] if marks else 0) + step, end + 1, step))
    return tuple(marks)


MARKS: Final = _marks()
"""Bytes from a prompt's beginning; its end is a mark too."""


class Recorder:
    """Owns the key, and the instant all others are counted from."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._began_at: Seconds | None = None

    def __repr__(self) -> str:
        return "<Recorder>"

    def line(self, entry: Entry, _: Seconds) -> bytes:
        """What is written of one closed entry; nothing where no request could be read."""
        request = entry.request
        if request is None:
            return b""
        if self._began_at is None:
            self._began_at = entry.received_at
        usage = entry.usage
        return orjson.dumps(
            {
                "at_s": round(entry.received_at - self._began_at, 4),
                "route": entry.route,
                "stream": request.stream,
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "output_tokens": usage.output_tokens,
                "chunks": entry.chunks,
                "prompt_bytes": request.prompt_bytes,
                "tenant": None if entry.tenant is None else self._hash(entry.tenant.encode()),
                "marks": self._beginnings(request),
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )

    def _beginnings(self, request: GenerationRequest) -> list[tuple[int, str]]:
        """Each mark with the hash of all before it, and of what else an engine's cache goes by."""
        prompt = memoryview(request.prompt)
        digest = blake2b(key=self._key, digest_size=8)
        for name, part in (("model", request.model.encode()), *request.context):
            digest.update(b"%b %d " % (name.encode(), len(part)))
            digest.update(part)
        found, start = [], 0
        for mark in (*(mark for mark in MARKS if mark < len(prompt)), len(prompt)):
            digest.update(prompt[start:mark])
            found.append((mark, digest.copy().hexdigest()))
            start = mark
        return found

    def _hash(self, data: bytes) -> str:
        return blake2b(data, key=self._key, digest_size=4).hexdigest()


class Recording(AccessLog):
    """Owns the file, too."""

    def __init__(self, file: IO[bytes], key: bytes) -> None:
        file.write(HEAD)
        super().__init__(file, Recorder(key).line)
        self._recording = file

    def close(self) -> None:
        """Write what is left, and close the file."""
        super().close()
        self._recording.close()


class Log(Protocol):
    """Takes closed entries down."""

    def write(self, entry: Entry, ended_at: Seconds) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class Several:
    """Writes every entry more than once."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = tuple(logs)

    def write(self, entry: Entry, ended_at: Seconds) -> None:
        """Take down one closed entry in each."""
        for log in self._logs:
            log.write(entry, ended_at)

    def flush(self) -> None:
        """Hand over what has gathered in each."""
        for log in self._logs:
            log.flush()

    def close(self) -> None:
        """Write what is left in each."""
        for log in self._logs:
            log.close()


def logs_of(settings: AccountSettings, traces: Log | None = None) -> Log:
    """The access log and, where there are to be any, a recording and traces. Raises OSError."""
    logs: list[Log] = [access_log(settings.access_log)]
    if settings.recording is not None:
        file = open(settings.recording, "wb")  # noqa: SIM115  # closed with the recording
        logs.append(Recording(file, token_bytes(32)))
    if traces is not None:
        logs.append(traces)
    return logs[0] if len(logs) == 1 else Several(logs)
