"""The life of one request: accept, identify, parse, admit, choose, hold, relay, account.

This is the corridor: it visits the rooms in their order, and is the only module that knows it, but
for the last three, which may be visited again and again (`delivery`). It touches no socket, clock
or metric itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gateway.account.accounts import Accounts
from gateway.account.tracing import Tracer
from gateway.admit.admission import Admission
from gateway.delivery import Delivery, Rooms
from gateway.errors import ClientGone, CutShort, GatewayError
from gateway.exchange import AnyExchange
from gateway.parse.parser import Parser
from gateway.scale.demands import Demands
from gateway.tenants.tenancy import HESITATION_S, Strangers, Tenancy
from gateway.trust.opa import Opa

if TYPE_CHECKING:
    from gateway.account.entry import Entry
    from gateway.request import GenerationRequest

Deliver = Callable[["GenerationRequest", AnyExchange, "Entry"], Coroutine[None, None, None]]


class Pool(Protocol):
    """Calls that may go upstream together."""

    def takes(self, request: GenerationRequest) -> bool:
        """Is it of that kind?"""

    async def deliver(
        self, request: GenerationRequest, exchange: AnyExchange, entry: Entry, alone: Deliver
    ) -> None:
        """As `alone` would, if need be by it. Raises what it raises."""


@dataclass(frozen=True, slots=True)
class Life:
    """The rooms, in the order of a request's life."""

    tenants: Tenancy | Strangers
    parser: Parser
    admission: Admission
    demands: Demands
    rooms: Rooms
    """From the choice to the last byte."""
    accounts: Accounts
    pool: Pool | None = None
    """Where calls that are only read share upstream calls, if they do."""
    tracer: Tracer | None = None
    """Who decides which requests are traced, if any are."""
    permits: Opa | None = None
    """The policy, if there is one."""

    async def live(self, exchange: AnyExchange) -> None:
        """Carry one accepted exchange to its end.

        Whatever happens, cancellation included, the entry closes with exactly one outcome and every
        lease taken on the way is given back.
        """
        with self.accounts.open(
            exchange.request_id, exchange.route.path, exchange.received_at
        ) as entry:
            if self.tracer is not None:
                entry.trace = self.tracer.begin(exchange)
            try:
                caller = self.tenants.identify(exchange)
                entry.identified(caller.tenant.name, caller.key_id)
                request = caller.asks(self.parser.parse(exchange))
                entry.parsed(request)
                if self.permits is not None:
                    await self.permits.check(request)
                while caller.hesitates(request):
                    await asyncio.sleep(HESITATION_S)
                with self.admission, caller.stay(request, exchange, entry):
                    self.demands.arrived(entry)
                    try:
                        if self.pool is None or not self.pool.takes(request):
                            await self._deliver(request, exchange, entry)
                        else:
                            await self.pool.deliver(request, exchange, entry, self._deliver)
                    finally:
                        self.demands.left(entry)
            except ClientGone as error:
                entry.failed(error)
                exchange.cut()  # who reads nothing would never come to the end of an explanation
            except GatewayError as error:
                entry.failed(error)
                exchange.refuse(error)
            except asyncio.CancelledError:
                # Cancelled because nobody listens any more, or because our own time is up.
                reason = ClientGone() if exchange.is_gone else CutShort()
                entry.failed(reason)
                exchange.refuse(reason)
                raise

    async def carry(self, exchange: AnyExchange) -> None:
        """Carry a call of our own, made for requests that have been admitted and are accounted for
        themselves. Refuses it as `live` does; if it is cancelled, nobody waits for it."""
        with self.accounts.aside(exchange.route.path, exchange.received_at) as entry:
            try:
                request = self.parser.parse(exchange)
                entry.parsed(request)
                await self._deliver(request, exchange, entry)
            except GatewayError as error:
                entry.failed(error)
                exchange.refuse(error)

    def _deliver(
        self, request: GenerationRequest, exchange: AnyExchange, entry: Entry
    ) -> Coroutine[None, None, None]:
        return Delivery(self.rooms, request, exchange, entry).run()
