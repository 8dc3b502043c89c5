"""The lines in flight, with nobody to answer them."""

from __future__ import annotations

import asyncio
from collections.abc import Container

import pytest

from gateway.batch.dispatch import Answer, Dispatcher
from gateway.batch.nouns import BatchLine
from gateway.errands import Answer as Answered
from gateway.errors import GatewayError, NoReplica, QueueFull, RateLimited, UnknownModel
from gateway.fleet.ledger import Replica
from gateway.settings import BatchSettings
from gateway.vocabulary import ROUTES, ModelName, ReplicaId, Route
from tests.builders import MODEL, a_replica
from tests.conftest import ManualClock
from tests.house import run


class Fleet:
    """One replica."""

    def serving(self, model: ModelName) -> list[Replica]:
        return [a_replica("one")]

    def known_at_zero(self, model: ModelName) -> None:
        return None


class Silent:
    """An errand without an answer. Its own sender, too."""

    among: Container[ReplicaId] | None = None
    replica: ReplicaId | None = None

    def new(self, route: Route, body: bytes, tenant: str) -> Silent:
        return self

    async def run(self) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError


class Owner:
    """Its lines can be read at once."""

    route = ROUTES[0]
    tenant = ""
    is_behind = False

    async def body(self, line: BatchLine) -> bytes:
        return b"{}"

    def answered(self, line: BatchLine, answer: Answer) -> None:
        raise AssertionError

    def broke(self, error: Exception) -> None:
        raise AssertionError


def test_of_what_is_taken_out_nothing_is_in_flight_whenever_that_is() -> None:
    async def law() -> None:
        dispatcher = Dispatcher(BatchSettings(), Silent(), Fleet(), ManualClock())
        for ticks in range(4):
            owner = Owner()
            dispatcher.add(owner, [BatchLine(1, "a", MODEL, 0, 2)])
            dispatcher.pump()
            assert dispatcher.inflight == 1
            for _ in range(ticks):
                await asyncio.sleep(0)
            await dispatcher.withdraw(owner)
            assert dispatcher.inflight == 0

    run(law())


class Asked:
    """An errand that is answered when the test says so. `Sent` makes them."""

    replica: ReplicaId | None = None

    def __init__(self) -> None:
        self.among: Container[ReplicaId] | None = None
        self.answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()

    async def run(self) -> Answer:
        return await self.answer


class Sent(list[Asked]):
    """Those under way, the oldest first."""

    def new(self, route: Route, body: bytes, tenant: str) -> Asked:
        self.append(Asked())
        return self[-1]

    async def end(self, status: int, error: GatewayError | None = None) -> None:
        self.pop(0).answer.set_result(Answered("", status, b"", error))
        await asyncio.sleep(0)
        await asyncio.sleep(0)


class Content(Owner):
    """Takes answers."""

    def answered(self, line: BatchLine, answer: Answer) -> None:
        """It is well."""


@pytest.mark.parametrize(
    ("status", "error", "left"),
    [
        (429, None, 3),  # a replica's own word
        (503, None, 3),
        (503, QueueFull(), 3),
        (503, NoReplica(), 4),  # of those that it was to go to, none is there any more
        (404, UnknownModel(), 4),
        (429, RateLimited(), 4),  # it is its tenant's limit
    ],
)
def test_fewer_lines_are_sent_only_where_somebody_had_no_room(
    status: int, error: GatewayError | None, left: int
) -> None:
    async def law() -> None:
        clock, sent = ManualClock(), Sent()
        dispatcher = Dispatcher(BatchSettings(), sent, Fleet(), clock)
        dispatcher.add(Content(), [BatchLine(n, "a", MODEL, 0, 2) for n in range(50)])

        async def pump() -> None:
            dispatcher.pump()
            await asyncio.sleep(0)

        await pump()
        for _ in range(3):
            await sent.end(200)
            await pump()
        assert len(sent) == 4
        await sent.end(status, error)
        clock.advance(1.0)
        await pump()
        assert len(sent) == left

    run(law())
