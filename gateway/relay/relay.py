"""Every connection to every replica, and the attempts made on them.

Asked: carry this request to that replica. A connection is in use by one attempt, or idle in the
pool, or closed; whoever takes one gives it back, however the attempt ends.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

from gateway.errors import ClosedBeforeReply, ConnectFailed, ConnectTimedOut
from gateway.relay.attempt import Attempt, Job, Patience, Reply
from gateway.relay.connection import Connection, Request
from gateway.relay.pool import Pool

if TYPE_CHECKING:
    from gateway.clock import Clock
    from gateway.exchange import AnyExchange
    from gateway.ports import Watcher
    from gateway.settings import RelaySettings
    from gateway.vocabulary import ReplicaAddress, ReplicaId, Seconds

WATCH_EVERY_S: Final = 0.25
LONG_BYTES: Final = 16 * 1024
"""Longer bodies are not copied to be sent in one piece with their head: memory for a copy of 128 KB
is taken from the system anew each time."""


class Relay:
    """Owns every connection to every replica."""

    def __init__(
        self,
        settings: RelaySettings,
        client_stall_s: Seconds,
        clock: Clock,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls` is for https replicas; None: as the machine trusts."""
        self.clock = clock
        self._settings = settings
        stall_s = settings.stall_timeout_s
        self._streaming = Patience(settings.first_byte_timeout_s, stall_s, client_stall_s)
        self._unary = Patience(settings.unary_timeout_s, stall_s, client_stall_s)
        self._pool: Pool[ReplicaId, Connection] = Pool(
            settings.idle_connection_s, settings.max_idle_per_replica
        )
        self._busy: set[Attempt] = set()
        self._tls = tls
        self._renewals = 0

    def __repr__(self) -> str:
        return f"<Relay busy {len(self._busy)}, {self._pool!r}>"

    @property
    def busy(self) -> int:
        """Retries under way."""
        return len(self._busy)

    async def run(
        self,
        address: ReplicaAddress,
        client: AnyExchange,
        watcher: Watcher,
        *,
        stream: bool,
        leave_on: frozenset[int],
    ) -> Reply:
        """Send the client's request to one replica and relay its response.

        Returns when the response has been written whole. Raises a ReplicaError (or ClientStalled)
        when it was not; the client has had bytes of it exactly when `client.start` was called.
        Cancelled, it closes the connection, by which the engine learns to stop.
        """
        job = Job(client, watcher, self._streaming if stream else self._unary, leave_on)
        request, replica = _whole(address, client), address.id
        pooled = self._pool.take(replica, self.clock())
        while True:
            connection = pooled or await self._connect(address)
            attempt = Attempt(connection, self.clock, job)
            self._busy.add(attempt)
            client.source = connection
            try:
                if client.paused_since is not None:
                    connection.pause_reading()
                connection.begin(attempt, request)
                await attempt.done
                if attempt.error is not None:
                    raise attempt.error
                return attempt.reply()
            except ClosedBeforeReply:
                if pooled is None or not connection.reader.is_untouched:
                    raise
                pooled = None  # it closed while we wrote (the keep-alive race): a new one will tell
            finally:
                self._busy.discard(attempt)
                client.source = None
                self._give_back(replica, connection, attempt.at)

    def _give_back(self, replica: ReplicaId, connection: Connection, since: Seconds) -> None:
        reader = connection.reader
        is_usable = (
            reader.is_complete
            and reader.keeps_alive
            and not reader.has_surplus
            and not connection.is_closed
            and not connection.is_outdated
            and not connection.transport.is_closing()
            and not connection.transport.get_write_buffer_size()  # answered before we were done
        )
        if is_usable and self._pool.put_back(replica, connection, since):
            connection.release()
            connection.resume_reading()
        else:
            connection.abort()

    async def _connect(self, address: ReplicaAddress) -> Connection:
        parts = urlsplit(address.url)
        connection = Connection(functools.partial(self._pool.remove, address.id))
        renewals = self._renewals
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await connection.loop.create_connection(
                    lambda: cast("asyncio.Protocol", connection),
                    parts.hostname or "",
                    parts.port or 0,
                    ssl=self._tls_context() if parts.scheme == "https" else None,
                )
        except TimeoutError as error:
            raise ConnectTimedOut from error
        except OSError as error:
            raise ConnectFailed from error
        connection.is_outdated = renewals != self._renewals
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
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

    def renew(self) -> None:
        """TLS has changed: new connections for new requests; those in use are closed after it."""
        self._renewals += 1
        for attempt in self._busy:
            attempt.outdate()
        self.close()

    def close(self) -> None:
        """Close every idle connection."""
        for connection in self._pool.drain_all():
            connection.abort()


def _whole(address: ReplicaAddress, client: AnyExchange) -> Request:
    """The request, as it is sent there."""
    body = client.body
    head = b"POST %b HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n" % (
        client.target, address.fields, client.forwarded, len(body)
    )  # fmt: skip
    return (head, body) if len(body) > LONG_BYTES else (head + body,)
