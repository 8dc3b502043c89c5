"""A connection to a replica: feeds what it reads to the attempt that is using it.

Sans-IO logic lives elsewhere (`http1`, `relay`); this file is the socket's side of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import TYPE_CHECKING, cast

from gateway.relay.http1 import ResponseReader
from gateway.vocabulary import Body

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.relay.attempt import Attempt

Request = tuple[Body, ...]
"""A whole one, in one piece or some."""


class Connection:
    """One TCP or TLS connection to one replica, used by one attempt at a time.

    An `asyncio.Protocol` in all but name: compiled, a class without a base from outside is reached
    without the interpreter.
    """

    __slots__ = (
        "_is_paused",
        "_on_idle_death",
        "is_closed",
        "is_outdated",
        "loop",
        "reader",
        "transport",
        "user",
    )

    def __init__(self, on_idle_death: Callable[[Connection], None]) -> None:
        """`on_idle_death` is told when the replica closes while nobody uses the connection."""
        self._on_idle_death = on_idle_death
        self.loop = asyncio.get_running_loop()  # to find it anew costs an attempt 0.2 us
        self.reader = ResponseReader()
        self.user: Attempt | None = None
        self.transport: asyncio.Transport
        self._is_paused = False
        self.is_closed = False
        self.is_outdated = False  # made by TLS as it no longer is: not to be used again

    def __repr__(self) -> str:
        use = "closed" if self.is_closed else "in use" if self.user else "idle"
        return f"<Connection {use} {self.reader!r}>"

    def begin(self, user: Attempt, request: Request) -> None:
        """Send a whole request; what comes back goes to `user` until `release`."""
        self.user = user
        self.reader.expect()
        if len(request) == 1:
            self.transport.write(request[0])
        else:
            self.transport.writelines(request)

    def release(self) -> None:
        """The user has what it needed; the connection is idle."""
        self.user = None

    def abort(self) -> None:
        """Close at once, unsent bytes and all: an engine sees it and stops working for us."""
        self.user = None
        if not self.is_closed:
            self.is_closed = True
            self.transport.abort()

    def pause_reading(self) -> None:
        """Whoever is written to is slow: let the replica wait."""
        if not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._is_paused and not self.transport.is_closing():
            self._is_paused = False
            self.transport.resume_reading()

    def acknowledge_late(self) -> None:
        """Small reads will come one by one: let every other one be acknowledged, not each.

        A packet sent back is a seventh of what a chunk costs. Linux does so of its own accord where
        it sees a dialogue, and ends it by itself where it waited in vain (RFC 1122, 4.2.3.2).
        """
        connected = self.transport.get_extra_info("socket")
        if sys.platform == "linux" and connected is not None:
            with contextlib.suppress(OSError):  # closed just now: what follows will tell
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # TCP and TLS give no other kind

    def data_received(self, data: bytes) -> None:
        user = self.user
        if user is not None:
            user.received(data)
        else:
            self.abort()  # a replica that speaks unasked: the next response could not be trusted
            self._on_idle_death(self)

    def eof_received(self) -> None:
        """Let the transport close: a replica that has said its last has nothing more to read."""

    def pause_writing(self) -> None:
        """A request that a replica is slow to take waits whole, as it has come."""

    def resume_writing(self) -> None:
        """The replica has taken it."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        user, self.user = self.user, None
        if user is not None:
            user.lost(cleanly=exc is None)
        else:
            self._on_idle_death(self)
