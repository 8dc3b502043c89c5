"""How the outputs of the engine reach the exchange that waits for them.

One channel per exchange, one reader; putting never blocks and costs no task. `leave` says that the
client is gone: the reader is told at once, whatever it was waiting for.
"""

import asyncio

from serving.sim.engine import Output


class ClientLeftError(Exception):
    """Nobody listens to this exchange any more."""


class Channel:
    """A queue of outputs between the runner and one exchange, on one event loop."""

    __slots__ = ("_has_left", "_pending", "_waiter")

    def __init__(self) -> None:
        self._pending: list[Output] = []
        self._waiter: asyncio.Future[None] | None = None
        self._has_left = False

    def put(self, output: Output) -> None:
        """O(1); outputs for a client that has left are kept by nobody."""
        if not self._has_left:
            self._pending.append(output)
            self._wake()

    def leave(self) -> None:
        """The client is gone; safe to call again."""
        self._has_left = True
        self._pending.clear()
        self._wake()

    async def take(self) -> list[Output]:
        """All outputs there are, at least one. Raises ClientLeftError once the client has left."""
        if not self._pending and not self._has_left:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._has_left:
            raise ClientLeftError
        taken, self._pending = self._pending, []
        return taken

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
