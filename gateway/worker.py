"""One of the processes that are one gateway: what it shares with others, and when it listens."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from gateway.server import shared_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.settings import AcceptSettings

LOOPBACK: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
READY_WITHIN_S: Final = 3.0
"""Or it listens all the same, to say what it lacks."""
LOOK_EVERY_S: Final = 0.02


class Readiness(Protocol):
    """Whoever is to listen."""

    @property
    def is_ready(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Worker:
    """Which of them it is; the sockets by which all are linked, its own and the ports of all; the
    folder they share; and a file that ends when their supervisor does."""

    index: int
    link: socket.socket
    ports: tuple[int, ...]
    folder: Path
    lifeline: int

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where all are linked."""
        return [(LOOPBACK[self.link.family], port) for port in self.ports]

    async def socket(
        self, accept: AcceptSettings, house: Readiness, stop: Callable[[], None]
    ) -> socket.socket:
        """Beside those of the others, once the house is as ready as they are. `stop` is called
        when the supervisor is no more."""
        loop = asyncio.get_running_loop()

        def orphaned() -> None:
            loop.remove_reader(self.lifeline)
            stop()

        loop.add_reader(self.lifeline, orphaned)
        deadline = loop.time() + READY_WITHIN_S
        while not house.is_ready and loop.time() < deadline:
            await asyncio.sleep(LOOK_EVERY_S)
        return shared_port(accept.host, accept.port)
