"""Errands: requests of our own, which live the life that a client's lives, without a socket.

Asked: carry this body to a replica and bring back what it answers. An errand is parsed, admitted,
chosen for, retried and accounted for as any request; no HTTP is spoken to ourselves. Cancelling
whoever runs one stops the engine's work, as it does when a client leaves.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gateway.accept.amend import amended
from gateway.accept.reply import error_reply
from gateway.errors import Bug, ClosedBeforeReply, GatewayError
from gateway.exchange import AnyExchange
from gateway.record import Value
from gateway.tenants.tenancy import CLASS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from gateway.accept.amend import Value as Amendment
    from gateway.clock import Clock
    from gateway.vocabulary import Route, Seconds

    Live = Callable[[AnyExchange], Coroutine[None, None, None]]

_FIELDS: Final[Mapping[bytes, bytes]] = MappingProxyType(
    {b"content-type": b"application/json", CLASS: b"batch"}  # nobody is waiting
)

_log = logging.getLogger("headrace")


class Answer(Value, frozen=True):
    """What came back. `error` is set where we, not a replica, had the last word."""

    request_id: str
    status: int
    body: bytes
    error: GatewayError | None


class Errand(AnyExchange):
    """One request of our own, and the response to it.

    Invariant: it ends with one status and one whole body; a response that breaks off is replaced by
    the error that broke it.
    """

    __slots__ = ("_body", "_live", "_parts", "_task", "error", "status")

    def __init__(
        self, live: Live, route: Route, body: bytes, request_id: bytes, received_at: Seconds
    ) -> None:
        forwarded = b"content-type: application/json\r\nx-request-id: %b\r\n" % request_id
        super().__init__(route, route.path.encode(), request_id, forwarded, _FIELDS)
        self.received_at = received_at
        self.on_behalf_of = ""  # a tenant's name, or nobody's in particular
        self._live = live
        self._body = body
        self.status = 0
        self.error: GatewayError | None = None
        self._parts: list[bytes] = []
        self._task: asyncio.Task[object] | None = None

    def __repr__(self) -> str:
        state = self.status or "waiting"
        return f"<Errand {self.request_id.decode()} {self.route.path} {state}>"

    @property
    def body(self) -> bytes:
        """As it has been amended."""
        return self._body

    @property
    def is_gone(self) -> bool:
        """Nobody waits for the answer any more."""
        return self._task is not None and self._task.cancelling() > 0

    def amend(self, *path: str, value: Amendment) -> bool:
        """Set a member of the JSON object that the body is. False where it is none."""
        body = self._body
        self._body = amended(body, path, value)
        return self._body is not body

    async def run(self) -> Answer:
        """Live; whatever becomes of it is an answer. Cancel whoever awaits to stop the engine."""
        self._task = asyncio.current_task()
        try:
            await self._live(self)
        except Exception:
            _log.exception("an errand ended in an exception nobody foresaw")
            self.refuse(Bug())
        return Answer(self.request_id.decode(), self.status, b"".join(self._parts), self.error)

    def start(self, status: int, fields: bytes, length: int | None, *, chunked: bool) -> None:
        """The response has begun."""
        self.status = status
        self.has_started = True

    def keep_waiting(self) -> None:
        """We know."""

    def write(self, data: bytes) -> None:
        """Keep a piece of the body."""
        self._parts.append(data)

    @property
    def sink(self) -> Callable[[bytes], None]:
        """No shorter way."""
        return self.write

    def finish(self) -> None:
        """The response is whole: nothing more to do."""

    def refuse(self, error: GatewayError) -> None:
        """It ends here, with our word for it."""
        self.error = error
        self.status, _, body = error_reply(error, self.route)
        self._parts = [body]

    def cut(self) -> None:
        """It broke off in the middle."""
        self.refuse(ClosedBeforeReply())


class Errands:
    """Makes errands that live the same life as everybody's requests."""

    def __init__(self, live: Live, clock: Clock) -> None:
        self._live = live
        self._clock = clock
        self._id_prefix = f"errand-{secrets.token_hex(4)}-"
        self._ids = itertools.count(1)

    def new(self, route: Route, body: bytes, on_behalf_of: str = "") -> Errand:
        """One that has not begun; counted against the limits of the tenant it is for."""
        request_id = f"{self._id_prefix}{next(self._ids):x}".encode()
        made = Errand(self._live, route, body, request_id, self._clock())
        made.on_behalf_of = on_behalf_of
        return made
