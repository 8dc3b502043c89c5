"""The lines in flight, with nobody to answer them."""

from __future__ import annotations

import asyncio
from collections.abc import Container

from gateway.batch.dispatch import Answer, Dispatcher
from gateway.batch.nouns import BatchLine
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
