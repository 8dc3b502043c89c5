"""One attempt: send, await the first byte, pump until the end.

The pump has no task of its own and no buffer: what a replica's socket delivers is written to the
client's in the same callback, and a client that reads slowly pauses the replica's socket. The
response head waits for the first body byte, so that a replica which answers 200 and then dies or
says nothing has not yet cost the client its status line, and another can be tried.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

import msgspec

from gateway.errors import (
    ClientStalled,
    ClosedBeforeReply,
    ConnectFailed,
    ConnectTimedOut,
    FirstByteTimedOut,
    GatewayError,
    ProtocolBroken,
    ReplicaUnavailable,
    StreamBroken,
    StreamStalled,
)
from gateway.relay.connection import Connection
from gateway.relay.http1 import LAST_CHUNK, end_to_end
from gateway.relay.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.clock import Clock
    from gateway.relay.http1 import Header
    from gateway.settings import RelaySettings
    from gateway.vocabulary import ReplicaAddress, ReplicaId, Seconds

UNAVAILABLE: Final = frozenset({502, 503, 504})
"""Answers by which a replica says that it did no work: another one may."""

TAIL_READS: Final = 4
"""How many last reads of a response are kept for the accounts: `usage` is in the last event."""

WATCH_EVERY_S: Final = 0.25


class Source(Protocol):
    """What a slow client pauses."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Client(Protocol):
    """The exchange, as far as the relay goes: a request to forward, a response to write."""

    source: Source | None

    @property
    def target(self) -> bytes:
        """Path and query."""

    @property
    def forwarded(self) -> bytes:
        """The end-to-end request header fields, as lines."""

    @property
    def body(self) -> bytes: ...

    @property
    def takes_chunks(self) -> bool:
        """Speaks HTTP/1.1, and so the chunked framing."""

    @property
    def paused_since(self) -> Seconds | None:
        """Since when it has been too slow to write to."""

    def start(
        self, status: int, headers: Sequence[Header], length: int | None, *, chunked: bool
    ) -> None: ...

    def write(self, data: bytes) -> None: ...

    def finish(self) -> None: ...


class Watcher(Protocol):
    """Who is told when bytes of the response come."""

    def first_byte(self, now: Seconds) -> None: ...

    def chunk(self, now: Seconds) -> None: ...


class Reply(msgspec.Struct, frozen=True):
    """A response that was relayed whole: its status, and its last bytes for the accounts."""

    status: int
    last_reads: Iterable[list[bytes]]

    def tail(self) -> bytes:
        """The last body bytes, unframed. Joined only when asked for."""
        return b"".join(chain.from_iterable(self.last_reads))


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
        "_at",
        "_client",
        "_clock",
        "_connection",
        "_may_retry",
        "_patience",
        "_reads",
        "_watcher",
        "done",
        "error",
        "has_begun",
        "writes_chunks",
    )

    def __init__(self, connection: Connection, relay: Relay, job: Job) -> None:
        self._connection = connection
        self._client = job.client
        self._watcher = job.watcher
        self._may_retry = job.may_retry
        self._patience = job.patience
        self._clock = relay.clock
        self._at = relay.clock()
        self._reads: deque[list[bytes]] = deque(maxlen=TAIL_READS)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: GatewayError | None = None
        self.has_begun = False
        self.writes_chunks = False

    def __repr__(self) -> str:
        return f"<Attempt {'relaying' if self.has_begun else 'waiting'} {self._connection!r}>"

    def received(self, data: bytes) -> None:
        """The replica sent bytes. The path of every chunk: no JSON, no text, no look-ups."""
        reader = self._connection.reader
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
        now = self._at = self._clock()
        if self.has_begun:
            self._watcher.chunk(now)
        elif self._may_retry and reader.status in UNAVAILABLE:
            self.fail(ReplicaUnavailable())
            return
        else:
            self._begin(now)
        self._reads.append(reader.pieces)
        if self.writes_chunks:
            self._client.write(reader.chunked(data))
        else:
            for piece in reader.pieces:
                self._client.write(piece)
        if reader.is_complete:
            self._end()

    def _begin(self, now: Seconds) -> None:
        reader = self._connection.reader
        self.has_begun = True
        self.writes_chunks = reader.length is None and self._client.takes_chunks
        self._client.start(
            reader.status, end_to_end(reader.headers), reader.length, chunked=self.writes_chunks
        )
        self._watcher.first_byte(now)

    def _end(self) -> None:
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
        if not self.done.done():
            self.error = error
            self.done.set_result(None)

    def check(self, now: Seconds) -> None:
        """Fail if somebody has been silent for too long."""
        paused_since = self._client.paused_since
        if paused_since is not None:
            self._at = now  # the replica is silent because we told it to be
            if now - paused_since > self._patience.client_s:
                self.fail(ClientStalled())
        elif self.has_begun:
            if now - self._at > self._patience.stall_s:
                self.fail(StreamStalled())
        elif now - self._at > self._patience.first_byte_s:
            self.fail(FirstByteTimedOut())

    def reply(self) -> Reply:
        """What was relayed."""
        return Reply(self._connection.reader.status, self._reads)


class Job(msgspec.Struct, frozen=True):
    """What an attempt is to do: whom to serve, whom to tell, and how patiently.

    `may_retry` says that a replica which answers "unavailable" is to be left for another; on the
    last attempt its own answer goes to the client instead.
    """

    client: Client
    watcher: Watcher
    patience: Patience
    may_retry: bool


class Relay:
    """Owns every connection to every replica."""

    def __init__(self, settings: RelaySettings, client_stall_s: Seconds, clock: Clock) -> None:
        self.clock = clock
        self._settings = settings
        stall_s = settings.stall_timeout_s
        self._streaming = Patience(settings.first_byte_timeout_s, stall_s, client_stall_s)
        self._unary = Patience(settings.unary_timeout_s, stall_s, client_stall_s)
        self._pool: Pool[ReplicaId, Connection] = Pool(
            settings.idle_connection_s, settings.max_idle_per_replica
        )
        self._busy: set[Attempt] = set()
        self._tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"<Relay busy {len(self._busy)}, {self._pool!r}>"

    @property
    def busy(self) -> int:
        """Attempts under way."""
        return len(self._busy)

    async def run(
        self,
        address: ReplicaAddress,
        client: Client,
        watcher: Watcher,
        *,
        stream: bool,
        may_retry: bool,
    ) -> Reply:
        """Send the client's request to one replica and relay its response.

        Returns when the response has been written whole. Raises a ReplicaError (or ClientStalled)
        when it was not; the client has had bytes of it exactly when `client.start` was called.
        Cancelled, it closes the connection, by which the engine learns to stop.
        """
        job = Job(client, watcher, self._streaming if stream else self._unary, may_retry)
        request = b"POST %b HTTP/1.1\r\nhost: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
            client.target,
            address.authority,
            client.forwarded,
            len(client.body),
            client.body,
        )
        pooled = self._pool.take(address.id, self.clock())
        if pooled is not None:
            try:
                return await self._attempt(pooled, address, job, request)
            except ClosedBeforeReply:
                if not pooled.reader.is_untouched:
                    raise
                # It closed while we wrote (the keep-alive race): a fresh connection will tell.
        return await self._attempt(await self._connect(address), address, job, request)

    async def _attempt(
        self, connection: Connection, address: ReplicaAddress, job: Job, request: bytes
    ) -> Reply:
        attempt = Attempt(connection, self, job)
        self._busy.add(attempt)
        job.client.source = connection
        try:
            if job.client.paused_since is not None:
                connection.pause_reading()
            connection.begin(attempt, request)
            await attempt.done
            if attempt.error is not None:
                raise attempt.error
            return attempt.reply()
        finally:
            self._busy.discard(attempt)
            job.client.source = None
            self._give_back(address, connection)

    def _give_back(self, address: ReplicaAddress, connection: Connection) -> None:
        reader = connection.reader
        is_usable = (
            reader.is_complete
            and reader.keeps_alive
            and not reader.has_surplus
            and not connection.is_closed
            and not connection.transport.is_closing()
            and not connection.transport.get_write_buffer_size()  # answered before we were done
        )
        if is_usable and self._pool.put_back(address.id, connection, self.clock()):
            connection.release()
            connection.resume_reading()
        else:
            connection.abort()

    async def _connect(self, address: ReplicaAddress) -> Connection:
        parts = urlsplit(address.url)
        forget = functools.partial(self._pool.remove, address.id)
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(forget),
                    parts.hostname or "",
                    parts.port or 0,
                    ssl=self._tls_context() if parts.scheme == "https" else None,
                )
        except TimeoutError as error:
            raise ConnectTimedOut from error
        except OSError as error:
            raise ConnectFailed from error
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self._settings.replica_ca)
        return self._tls

    async def watch(self) -> None:
        """The relay's background loop: looks for silence, and closes what has idled too long."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            now = self.clock()
            for attempt in tuple(self._busy):
                attempt.check(now)
            for connection in self._pool.expire(now):
                connection.abort()

    def forget(self, replica: ReplicaId) -> None:
        """A replica has left: close its idle connections."""
        for connection in self._pool.drain(replica):
            connection.abort()

    def close(self) -> None:
        """Close every idle connection."""
        for connection in self._pool.drain_all():
            connection.abort()
