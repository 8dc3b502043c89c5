"""uvicorn's server, with a way of its own to stop."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import uvicorn

if TYPE_CHECKING:
    from types import FrameType


class Drained(Protocol):
    """What finishes its work before the door is closed."""

    async def drain(self) -> None:
        """Take nothing new; return when nothing is left."""


class Server(uvicorn.Server):
    """uvicorn's server, which drains the house before it closes the door.

    The first SIGTERM or SIGINT drains; a second one stops at once.
    """

    def __init__(self, config: uvicorn.Config, house: Drained) -> None:
        super().__init__(config)
        self._house = house
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def port(self) -> int:
        """Where it listens, once it does."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    async def serve(self, sockets: Any = None) -> None:
        """Serve until drained."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)
        if self._draining is not None:
            self._draining.cancel()
            with suppress(asyncio.CancelledError):
                await self._draining

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self._draining is None and self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop)
        else:
            self.should_exit = self.force_exit = True

    def stop(self) -> None:
        """Drain, then stop. Only the first call counts."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain(), name="drain")

    async def _drain(self) -> None:
        try:
            await self._house.drain()
        finally:  # or a bug in there would keep us for ever
            self.should_exit = True


def shared_port(host: str, port: int) -> socket.socket:
    """A bound socket among several whose connections the kernel spreads (SO_REUSEPORT). Raises
    OSError where the port is somebody's alone."""
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    shared = socket.socket(family, kind, proto)
    try:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(address)
    except OSError:
        shared.close()
        raise
    return shared
