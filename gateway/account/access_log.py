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

import msgspec
import orjson

from gateway.clock import wall
from gateway.record import Value

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


class _Numbers(Value, frozen=True):
    """The members of a line that seldom recur."""

    time: float
    queue_s: float | None
    ttft_s: float | None
    duration_s: float
    chunks: int
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None


_encode: Final = msgspec.json.Encoder().encode


def line(entry: Entry, ended_at: Seconds) -> bytes:
    """What is written of one request. Durations in seconds, to the microsecond.

    Joined from numbers, the id, which holds nothing that JSON would escape, and what recurs: half
    the price of a template.
    """
    request = entry.request
    usage = entry.usage
    recurring = _what_recurs(
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
    )
    queue_s, ttft_s = entry.queue_s, entry.ttft_s
    numbers = _Numbers(
        _rounded(wall(), 1e3),
        None if queue_s is None else _rounded(queue_s, 1e6),
        None if ttft_s is None else _rounded(ttft_s, 1e6),
        _rounded(ended_at - entry.received_at, 1e6),
        entry.chunks,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.output_tokens,
    )
    return b"".join(
        (_encode(numbers)[:-1], b',"request_id":"', entry.request_id, b'",', recurring, b"}\n")
    )


def _rounded(value: Seconds, parts: float) -> Seconds:
    """To so many parts of a second. `round` would write it out in decimals and read that again."""
    return int(value * parts + 0.5) / parts


_RECURRING: Final = (
    "route", "model", "replica", "stream", "outcome", "reason", "status", "attempts",
    "tenant", "key",
)  # fmt: skip


@lru_cache(maxsize=4096)
def _what_recurs(*values: str | bool | int | None) -> bytes:
    """The members whose values come from small sets, as JSON: most requests share them."""
    members = orjson.dumps(dict(zip(_RECURRING, values, strict=True)))
    return members.removeprefix(b"{").removesuffix(b"}")
