"""One JSON line per request, written at its end, by a thread of its own.

A line holds who asked for what, when and how it ended; never a prompt, an answer, a header or a
key (but its id). Lines are handed over in batches; if whoever reads them stalls, the gateway does
not: beyond a bound lines are dropped and counted, and the next line that gets through says how
many.
"""

from __future__ import annotations

import queue
import sys
import threading
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Final

import orjson

from gateway.clock import wall

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.account.entry import Entry
    from gateway.vocabulary import Seconds

    LineOf = Callable[[Entry, Seconds], bytes]

BATCH: Final = 4096  # lines; handing over costs the loop a switch of threads
MOST_WAITING: Final = 20_000  # lines: about 8 MB


class NoLog:
    """Writes nothing."""

    def write(self, entry: Entry, ended_at: Seconds) -> None:
        """Forget it."""

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


def access_log(where: str) -> AccessLog | NoLog:
    """To `stdout`, `off`, or a file by its path. Raises OSError."""
    match where:
        case "off":
            return NoLog()
        case "stdout":
            return AccessLog(sys.stdout.buffer)
        case path:
            return AccessLog(open(path, "ab"))  # closed with the process


class AccessLog:
    """Owns the batch, the thread and the file it writes to."""

    def __init__(self, file: IO[bytes], line_of: LineOf | None = None) -> None:
        """`line_of` is what is written of an entry, where it is not this module's `line`."""
        self._file = file
        self._line_of = line_of or line
        self._batch: list[bytes] = []
        self._waiting = 0  # lines handed over and, for all we know, not yet written
        self._written = 0  # lines the thread has done with
        self.dropped = 0
        self._queue: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._drain, name="access-log", daemon=True)
        self._writer.start()

    def __repr__(self) -> str:
        return f"<AccessLog {self._waiting - self._written} waiting, {self.dropped} dropped>"

    def write(self, entry: Entry, ended_at: Seconds) -> None:
        """Take down one closed entry. A few microseconds; never blocks."""
        self._batch.append(self._line_of(entry, ended_at))
        if len(self._batch) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Hand over what has gathered. Called by a background loop, a few times a second."""
        batch = self._batch
        if not batch:
            return
        self._batch = []
        if self._waiting - self._written > MOST_WAITING:
            self.dropped += len(batch)
            return
        if self.dropped:
            batch.insert(0, orjson.dumps({"access_log_lines_dropped": self.dropped}) + b"\n")
            self.dropped = 0
        self._waiting += len(batch)
        self._queue.put(batch)

    def close(self) -> None:
        """Write what is left; waits for the thread, but not for ever."""
        self.flush()
        self._queue.put(None)
        self._writer.join(timeout=2.0)

    def _drain(self) -> None:
        while (batch := self._queue.get()) is not None:
            try:
                self._file.write(b"".join(batch))
                self._file.flush()
            except OSError:
                self.dropped += len(batch)  # nobody reads any more; requests go on
            self._written += len(batch)


_LINE: Final = (
    b'{"time":%.3f,"request_id":"%b",%b,"queue_s":%b,"ttft_s":%b,"duration_s":%.6f,"chunks":%d,'
    b'"prompt_tokens":%b,"cached_tokens":%b,"output_tokens":%b}\n'
)


def line(entry: Entry, ended_at: Seconds) -> bytes:
    """What is written of one request. Durations in seconds, to the microsecond.

    Written by a template: it costs a third of what a dict and a JSON encoder do. Text goes through
    the encoder, and a request id holds nothing that would need it.
    """
    request = entry.request
    usage = entry.usage
    return _LINE % (
        wall(),
        entry.request_id,
        _what_recurs(
            entry.route,
            request.model if request is not None and entry.attempts else None,
            entry.replica,
            None if request is None else request.stream,
            entry.outcome,
            entry.reason or None,
            entry.status,
            entry.attempts,
            entry.tenant,
            entry.key_id,
        ),
        _seconds(entry.queue_s),
        _seconds(entry.ttft_s),
        ended_at - entry.received_at,
        entry.chunks,
        _count(usage.prompt_tokens),
        _count(usage.cached_tokens),
        _count(usage.output_tokens),
    )


_NULL: Final = b"null"


_RECURRING: Final = (
    "route", "model", "replica", "stream", "outcome", "reason", "status", "attempts",
    "tenant", "key",
)  # fmt: skip


@lru_cache(maxsize=4096)
def _what_recurs(*values: str | bool | int | None) -> bytes:
    """The members whose values come from small sets, as JSON: most requests share them."""
    members = orjson.dumps(dict(zip(_RECURRING, values, strict=True)))
    return members.removeprefix(b"{").removesuffix(b"}")


def _count(value: int | None) -> bytes:
    return _NULL if value is None else b"%d" % value


def _seconds(value: Seconds | None) -> bytes:
    return _NULL if value is None else b"%.6f" % value
