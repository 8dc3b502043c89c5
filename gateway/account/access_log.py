"""One JSON line per request, written at its end, by a thread of its own.

A line holds who asked for what, when and how it ended; never a prompt, an answer, a header or a
key. Lines are handed over in batches; if whoever reads them stalls, the gateway does not: beyond a
bound lines are dropped and counted, and the next line that gets through says how many.
"""

from __future__ import annotations

import queue
import threading
from typing import IO, TYPE_CHECKING, Any, Final

import orjson

from gateway.clock import wall

if TYPE_CHECKING:
    from gateway.account.entry import Entry
    from gateway.vocabulary import Seconds

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


class AccessLog:
    """Owns the batch, the thread and the file it writes to."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._batch: list[bytes] = []
        self._waiting = 0  # lines handed over and, for all we know, not yet written
        self._written = 0  # lines the thread has done with
        self.dropped = 0
        self._queue: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._drain, name="access-log", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<AccessLog {self._waiting - self._written} waiting, {self.dropped} dropped>"

    def write(self, entry: Entry, ended_at: Seconds) -> None:
        """Take down one closed entry. A few microseconds; never blocks."""
        self._batch.append(orjson.dumps(line(entry, ended_at), option=orjson.OPT_APPEND_NEWLINE))
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
        self._thread.join(timeout=2.0)

    def _drain(self) -> None:
        while (batch := self._queue.get()) is not None:
            try:
                self._file.write(b"".join(batch))
                self._file.flush()
            except OSError:
                self.dropped += len(batch)  # nobody reads any more; requests go on
            self._written += len(batch)


def line(entry: Entry, ended_at: Seconds) -> dict[str, Any]:
    """What is written of one request. Durations in seconds, to the microsecond."""
    request = entry.request
    return {
        "time": round(wall(), 3),
        "request_id": entry.request_id.decode("ascii"),
        "route": entry.route,
        "model": request.model if request is not None and entry.attempts else None,
        "replica": entry.replica,
        "stream": request.stream if request is not None else None,
        "outcome": entry.outcome,
        "reason": entry.reason or None,
        "status": entry.status,
        "attempts": entry.attempts,
        "queue_s": _rounded(entry.queue_s),
        "ttft_s": _rounded(entry.ttft_s),
        "duration_s": _rounded(ended_at - entry.received_at),
        "chunks": entry.chunks,
        "prompt_tokens": entry.usage.prompt_tokens,
        "cached_tokens": entry.usage.cached_tokens,
        "output_tokens": entry.usage.output_tokens,
    }


def _rounded(value: Seconds | None) -> Seconds | None:
    return None if value is None else round(value, 6)
