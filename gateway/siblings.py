"""The workers of one gateway, to each other: any of them shows the metrics of all.

They share a folder. Each answers at a socket there with its sheet of metrics (`account.summing`),
and leaves the last one it has shown in a file, so that nothing that was ever shown is lost when it
dies without warning; it also does so every `KEEP_EVERY_S`, which bounds what is lost then. The
supervisor folds the files of the dead into one.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.account.summing import Sheet, folded, sheet_of, summed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from gateway.worker import Worker

KEEP_EVERY_S: Final = 1.0
ANSWER_WITHIN_S: Final = 1.0
NOBODY: Final = Sheet([], {})

_decoder: Final = msgspec.msgpack.Decoder(Sheet)
_encode: Final = msgspec.msgpack.Encoder().encode


class Siblings:
    """One worker among them."""

    def __init__(self, worker: Worker, registry: CollectorRegistry) -> None:
        """`registry` is its own."""
        self._folder = worker.folder
        self._index = worker.index
        self._workers = len(worker.ports)
        self._registry = registry
        self._life = f"{worker.index}-{os.getpid()}-{os.urandom(4).hex()}"

    def __repr__(self) -> str:
        return f"<Siblings: {self._index} of {self._workers}>"

    async def run(self) -> None:
        """Answer those who ask, until cancelled."""
        path = _socket(self._folder, self._index)
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._answer, path)
        async with server:
            while True:
                self._show()
                await asyncio.sleep(KEEP_EVERY_S)

    async def metrics(self) -> Gathered:
        """Of all workers, those that are gone included."""
        others = [each for each in range(self._workers) if each != self._index]
        sheets = await asyncio.gather(*[self._ask(each) for each in others])
        own = _decoder.decode(self._show())
        present = [own, *[each for each in sheets if each is not None]]
        # Read last: a sheet that was folded meanwhile is in it, and known to be.
        return Gathered(present, _read(_retired(self._folder)) or NOBODY)

    def _show(self) -> bytes:
        sheet = _encode(sheet_of(self._life, self._registry))
        _write(_kept(self._folder, self._index), sheet)
        return sheet

    async def _ask(self, index: int) -> Sheet | None:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                reader, writer = await asyncio.open_unix_connection(_socket(self._folder, index))
                try:
                    return _decoder.decode(await reader.read(-1))
                finally:
                    writer.close()
        except (OSError, TimeoutError, msgspec.MsgspecError):  # it is busy, or dead
            return _read(_kept(self._folder, index))

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(self._show())
            await writer.drain()
        writer.close()


class Gathered:
    """What a scrape reads: a collector of what was gathered."""

    def __init__(self, present: list[Sheet], retired: Sheet) -> None:
        self._present = present
        self._retired = retired

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        return summed(self._present, self._retired)


def retire(folder: Path, index: int) -> None:
    """A worker has died: the supervisor keeps what it had counted."""
    gone = _read(_kept(folder, index))
    if gone is not None:
        _write(_retired(folder), _encode(folded(_read(_retired(folder)) or NOBODY, gone)))
        _kept(folder, index).unlink(missing_ok=True)


def _socket(folder: Path, index: int) -> Path:
    return folder / f"{index}.sock"


def _kept(folder: Path, index: int) -> Path:
    return folder / f"{index}.metrics"


def _retired(folder: Path) -> Path:
    return folder / "retired.metrics"


def _read(path: Path) -> Sheet | None:
    try:
        return _decoder.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return None


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, for whoever reads."""
    made = path.with_suffix(".new")
    with suppress(OSError):  # a full disk: what is shown is still right
        made.write_bytes(content)
        made.replace(path)
