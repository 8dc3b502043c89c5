"""What all client connections share: the routes, the limits, and who lives the requests.

One door is one gateway's; each connection that comes in by it is a `Lane` of its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final

from gateway.accept.head import PLAIN
from gateway.errors import BodyTooLarge, Bug, ClientError
from gateway.vocabulary import ROUTES, BodyKind, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from gateway.accept.exchange import Exchange
    from gateway.accept.head import Head, Reading
    from gateway.accept.lane import Lane
    from gateway.clock import Clock
    from gateway.settings import AcceptSettings
    from gateway.vocabulary import Seconds

SWEEP_EVERY_S: Final = 0.5
SMALL_BYTES: Final = 64 * 1024
"""Bodies up to so many are taken in before anybody asks who sends them."""

_MULTIPART: Final = BodyKind.MULTIPART  # found faster by a name of our own

_log = logging.getLogger("headrace")


def _anybody(_: Mapping[bytes, bytes]) -> None:
    """May come in."""


class Door:
    """What all connections share: the routes, the limits, and who lives the requests.

    Owns the set of connections for its sweep, which closes those that dawdle; `now` is its coarse
    clock, good to SWEEP_EVERY_S, so that timeouts cost no clock reading per request.
    """

    def __init__(
        self,
        settings: AcceptSettings,
        live: Callable[[Exchange], Coroutine[Any, Any, None]],
        clock: Clock,
        reading: Reading = PLAIN,
        identify: Callable[[Mapping[bytes, bytes]], object] = _anybody,
    ) -> None:
        """`identify` raises a ClientError for the fields of a head whose sender may not come in."""
        self.settings = settings
        self.reading = reading
        self._identify = identify
        self.clock = clock
        self.now: Seconds = clock()
        self.lanes: set[Lane] = set()
        self.is_closing = False  # set: responses are the last on their connections
        self.malformed = 0  # requests refused before they could be counted as received
        self.uploads: dict[bytes, int] = {}  # path of the app -> the most bytes it takes
        self._most_body_bytes = settings.max_body_bytes
        self._most_upload_bytes = settings.max_upload_bytes
        self._small_bytes = min(SMALL_BYTES, self._most_body_bytes, self._most_upload_bytes)
        self._live = live
        self._routes = {route.path.encode(): route for route in ROUTES}
        self._id_prefix = f"req-{secrets.token_hex(4)}-".encode()
        self._ids = 0

    def protocol(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Lane:
        """A protocol for one connection: what uvicorn's `http` setting wants."""
        from gateway.accept.lane import Lane  # which imports us

        return Lane(self, config, server_state, app_state, _loop)

    def route(self, target: bytes) -> Route | None:
        """The inference route of a request target, or None for the ASGI app."""
        route = self._routes.get(target)
        if route is None and b"?" in target:
            route = self._routes.get(target.partition(b"?")[0])
        return route

    def most_bytes(self, target: bytes) -> int:
        """The largest body that the ASGI app takes at a request target."""
        return self.uploads.get(target.partition(b"?")[0], self.settings.max_body_bytes)

    def limit(self, route: Route) -> int:
        """The largest body of a request to an inference route."""
        return self._most_upload_bytes if route.body is _MULTIPART else self._most_body_bytes

    def objection(self, head: Head, route: Route) -> ClientError | None:
        """What is wrong with a request whose body has not come, and should not, if anything.

        Who sends it is asked early only where the body may be large: strangers fill no memory.
        """
        length = head.content_length
        if length is not None:
            if length <= self._small_bytes:  # nearly all: no limit need be looked up
                return None
            if length > self.limit(route):
                return BodyTooLarge()
            if length <= SMALL_BYTES:
                return None
        try:
            self._identify(head.fields)
        except ClientError as error:
            return error
        return None

    def new_id(self) -> bytes:
        """A request id, unique in this process and, by its prefix, most likely in the world."""
        self._ids += 1
        return b"%b%d" % (self._id_prefix, self._ids)

    async def serve(self, exchange: Exchange) -> None:
        """Live one exchange; a bug in us is logged once, here, and answered with a 500."""
        try:
            await self._live(exchange)
        except Exception:
            _log.exception("a request ended in an exception nobody foresaw")
            exchange.refuse(Bug())

    def cut_short(self) -> None:
        """Our own time is up: end whatever is still being served."""
        for lane in tuple(self.lanes):
            lane.cut_short()

    async def sweep(self) -> None:
        """The lane's background loop: closes connections that dawdle."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self._look_after_all()

    def _look_after_all(self) -> None:
        """Apart from the loop, which would keep the last one until there is another."""
        self.now = self.clock()
        for lane in tuple(self.lanes):
            try:
                lane.check(self.now)
            except Exception:
                _log.exception("a connection could not be looked after")
                lane.transport.abort()
