"""Small calls that share upstream calls: between the corridor and the room that merges them.

Asked by the corridor for the routes that are only read. A call that goes alone goes on as any
request does, byte for byte. One that shared another's call is answered with what is its own, and
its entry says what it would have said alone; the shared call itself is accounted to nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.account.usage import read_usage
from gateway.errors import GatewayError, ReplicaFailed
from gateway.merge.calls import LAYOUTS, read_call
from gateway.merge.merger import Merger
from gateway.vocabulary import ServiceClass

if TYPE_CHECKING:
    from gateway.account.entry import Entry
    from gateway.clock import Clock
    from gateway.errands import Answer, Errands
    from gateway.exchange import AnyExchange
    from gateway.fleet.roster import Roster
    from gateway.life import Deliver
    from gateway.merge.merger import Counting, Own
    from gateway.request import GenerationRequest
    from gateway.settings import MergeSettings
    from gateway.vocabulary import ModelName, Route

_BATCH: Final = ServiceClass.BATCH  # found faster by a name of our own

JSON: Final = b"content-type: application/json\r\n"


class Pooled:
    """A `life.Pool`."""

    __slots__ = ("_clock", "_merger", "_roster", "errands")

    def __init__(
        self, settings: MergeSettings, counting: Counting, roster: Roster, clock: Clock
    ) -> None:
        self.errands: Errands | None = None  # set as soon as there is a life for them to live
        self._clock = clock
        self._roster = roster
        self._merger = Merger(settings, self._ask, counting, self._takers, clock)

    def __repr__(self) -> str:
        return f"<Pooled {self._merger!r}>"

    @property
    def merged_calls(self) -> int:
        """Calls answered out of a shared one."""
        return self._merger.merged_calls

    @property
    def shared_upstream_calls(self) -> int:
        """Upstream calls that were made for several."""
        return self._merger.upstream_calls

    def takes(self, request: GenerationRequest) -> bool:
        """Is it only read? What is of the lowest class waits for its own turn."""
        return request.route.path in LAYOUTS and request.tenant.service_class is not _BATCH

    async def deliver(
        self, request: GenerationRequest, exchange: AnyExchange, entry: Entry, alone: Deliver
    ) -> None:
        """Answer it out of a shared call, or let it go alone."""
        call = read_call(request.route.path, bytes(exchange.body))
        if call is None:
            return await alone(request, exchange, entry)
        with await self._merger.place(request.route, call, request.prompt_tokens) as place:
            if place.answer is None:
                return await alone(request, exchange, entry)
            self._answer(place.answer, exchange, entry)

    def _answer(self, own: Own, exchange: AnyExchange, entry: Entry) -> None:
        entry.shared(own.sent_at)
        entry.first_byte(self._clock())
        exchange.start(own.status, JSON, len(own.body), chunked=False)
        exchange.write(own.body)
        exchange.finish()
        error = ReplicaFailed() if own.status >= 500 else None
        entry.answered(own.status, read_usage(own.body), error)

    async def _ask(self, route: Route, body: bytes) -> Answer:
        """Have a call of our own carried to a replica."""
        assert self.errands is not None, "nobody asks before there is a life"
        return await self.errands.new(route, body).run()

    def _takers(self, model: ModelName) -> int:
        """How many replicas take work for a model now; one where there is none to be had."""
        try:
            return len(self._roster.candidates(model))
        except GatewayError:
            return 1
