"""One attempt: send, await the first byte, pump until the end.

The pump has no task of its own and no buffer: what a replica's socket delivers is written to the
client's in the same callback, and a client that reads slowly pauses the replica's socket. The
response head waits for the first body byte, so that a replica which answers 200 and then dies or
says nothing has not yet cost the client its status line, and another can be tried.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.errors import (
    ClientStalled,
    ClosedBeforeReply,
    FirstByteTimedOut,
    GatewayError,
    ProtocolBroken,
    ReplicaFailed,
    ReplicaUnavailable,
    StreamBroken,
    StreamStalled,
)
from gateway.relay.http1 import LAST_CHUNK, unframed

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.clock import Clock
    from gateway.exchange import AnyExchange
    from gateway.ports import Watcher
    from gateway.relay.connection import Connection
    from gateway.vocabulary import Seconds

UNAVAILABLE: Final = frozenset({502, 503, 504})
"""Answers by which a replica says that it did no work: any other one may."""

UNWELL: Final = UNAVAILABLE | {500}
"""... and the one that may be its own trouble (an engine that is being stopped says 500 to what
comes late) or the request's: worth one other replica, not all of them."""

ANYTHING_GOES: Final[frozenset[int]] = frozenset()
"""For the last attempt: whatever is answered is the client's answer."""

TAIL_READS: Final = 4
"""How many last reads of a response are kept for the accounts: `usage` is in the last event."""


class Reply:
    """A response that was relayed whole: its status, and its last bytes for the accounts."""

    __slots__ = ("last_reads", "status")

    def __init__(self, status: int, last_reads: list[list[bytes] | bytes]) -> None:
        self.status: Final = status
        self.last_reads: Final = last_reads  # pieces of body, or one whole chunk

    def __repr__(self) -> str:
        return f"<Reply {self.status}>"

    def tail(self) -> bytes:
        """The last body bytes, unframed. Joined only when asked for."""
        pieces: list[bytes] = []
        for read in self.last_reads:
            if isinstance(read, bytes):
                pieces.append(unframed(read))
            else:
                pieces += read
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an attempt waits, in seconds."""

    first_byte_s: Seconds
    stall_s: Seconds
    client_s: Seconds


class Attempt:
    """One request on one connection, until its response is relayed or something breaks.

    Owns nothing: `Relay` gives and takes the connection. `done` resolves exactly once; `error`
    then tells what broke, or is None.
    """

    __slots__ = (
        "_client",
        "_clock",
        "_connection",
        "_kept",
        "_leave_on",
        "_patience",
        "_reader",
        "_reads",
        "_sink",
        "_watcher",
        "at",
        "done",
        "error",
        "has_begun",
        "writes_chunks",
    )

    def __init__(self, connection: Connection, clock: Clock, job: Job) -> None:
        self._connection = connection
        self._reader = connection.reader
        self._client = job.client
        self._watcher = job.watcher
        self._leave_on = job.leave_on
        self._patience = job.patience
        self._clock = clock
        self.at = clock()  # when it began, or bytes last came
        self._reads: list[list[bytes] | bytes] = []  # the last, in a ring
        self._kept = 0  # so many were, in their turn
        self._sink: Callable[[bytes], object] | None = None  # of whole chunks, while they come
        self.done: asyncio.Future[None] = connection.loop.create_future()
        self.error: GatewayError | None = None
        self.has_begun = False
        self.writes_chunks = False

    def __repr__(self) -> str:
        return f"<Attempt {'relaying' if self.has_begun else 'waiting'} {self._connection!r}>"

    def received(self, data: bytes) -> None:
        """The replica sent bytes. The path of every chunk: no JSON, no text, no look-ups. Who has
        just been cancelled and does not know it yet may pass on one more."""
        sink = self._sink
        if sink is not None and self._reader.is_one_chunk(data):
            now = self.at = self._clock()
            self._watcher.chunk(now)
            self._keep(data)
            sink(data)
        else:
            self._received_other(data)

    def _received_other(self, data: bytes) -> None:
        """Anything but one whole chunk of a stream: heads, ends, bodies of announced length."""
        reader = self._reader
        if self.done.done():
            reader.has_surplus = True
            return
        try:
            reader.feed(data)
        except ProtocolBroken as error:
            self.fail(StreamBroken() if self.has_begun else error)
            return
        if not reader.status or not (reader.pieces or reader.is_complete):
            return
        now = self.at = self._clock()
        if self.has_begun:
            self._watcher.chunk(now)
        elif reader.status in self._leave_on:
            self.fail(ReplicaUnavailable() if reader.status in UNAVAILABLE else ReplicaFailed())
            return
        else:
            self._begin(now)
        self._keep(reader.pieces)
        if self.writes_chunks:
            self._client.write(reader.chunked(data))
            if self._sink is None:
                self._sink = self._client.sink
                self._connection.acknowledge_late()
        else:
            for piece in reader.pieces:
                self._client.write(piece)
        if reader.is_complete:
            self._end()

    def _keep(self, read: list[bytes] | bytes) -> None:
        if self._kept < TAIL_READS:
            self._reads.append(read)
        else:
            self._reads[self._kept % TAIL_READS] = read
        self._kept += 1

    def _begin(self, now: Seconds) -> None:
        reader = self._connection.reader
        self.has_begun = True
        self.writes_chunks = reader.length is None and self._client.takes_chunks
        self._client.start(reader.status, reader.fields, reader.length, chunked=self.writes_chunks)
        self._watcher.first_byte(now)

    def _end(self) -> None:
        self._sink = None
        self._client.finish()
        self.done.set_result(None)

    def lost(self, *, cleanly: bool) -> None:
        """The replica closed the connection, or (not `cleanly`) reset it."""
        if self.done.done():
            return
        reader = self._connection.reader
        if cleanly and reader.end_of_connection():
            if not self.has_begun:
                self._begin(self._clock())
            if self.writes_chunks:
                self._client.write(LAST_CHUNK)
            self._end()
        else:
            self.fail(StreamBroken() if self.has_begun else ClosedBeforeReply())

    def fail(self, error: GatewayError) -> None:
        """End with `error`, unless the end has come already."""
        self._sink = None
        if not self.done.done():
            self.error = error
            self.done.set_result(None)

    def outdate(self) -> None:
        """Let the connection not be used again."""
        self._connection.is_outdated = True

    def check(self, now: Seconds) -> None:
        """Fail if somebody has been silent for too long."""
        paused_since = self._client.paused_since
        if paused_since is not None:
            self.at = now  # the replica is silent because we told it to be
            if now - paused_since > self._patience.client_s:
                self.fail(ClientStalled())
        elif self.has_begun:
            if now - self.at > self._patience.stall_s:
                self.fail(StreamStalled())
        elif now - self.at > self._patience.first_byte_s:
            self.fail(FirstByteTimedOut())

    def reply(self) -> Reply:
        """What was relayed."""
        reads = self._reads
        if self._kept > TAIL_READS:
            oldest = self._kept % TAIL_READS
            reads = reads[oldest:] + reads[:oldest]
        return Reply(self._connection.reader.status, reads)


class Job:
    """What an attempt is to do: whom to serve, whom to tell, and how patiently.

    A replica that answers with a status in `leave_on` is to be left for another; whatever else it
    answers goes to the client as it comes.
    """

    __slots__ = ("client", "leave_on", "patience", "watcher")

    def __init__(
        self, client: AnyExchange, watcher: Watcher, patience: Patience, leave_on: frozenset[int]
    ) -> None:
        self.client: Final = client
        self.watcher: Final = watcher
        self.patience: Final = patience
        self.leave_on: Final = leave_on

    def __repr__(self) -> str:
        return f"<Job for {self.client!r}>"
