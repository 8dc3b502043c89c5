"""The demand for each model: zeros for who is idle, one for adapters, the sum over gateways."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demand import Demand, Share
from gateway.scale.demands import Demands, Standing
from gateway.settings import ScaleSettings
from gateway.vocabulary import ModelName
from tests.builders import AnEntry, a_request

BASE, ADAPTER, OTHER = ModelName("base"), ModelName("tuned"), ModelName("other")
NOTHING = Standing(ready=0, loading=0, cold_start_s=90.0)


class Two:
    """Two models, one with an adapter. A `Supply`."""

    def __init__(self) -> None:
        self.standings = {BASE: NOTHING, OTHER: NOTHING}
        self.listeners: list[Callable[[ModelName], None]] = []

    def models(self) -> Collection[ModelName]:
        return self.standings

    def base(self, model: ModelName) -> ModelName | None:
        return {BASE: BASE, ADAPTER: BASE, OTHER: OTHER}.get(model)

    def standing(self, model: ModelName, now: float) -> Standing:
        return self.standings[model]

    def work(self, prompt_tokens: int, uncached: int) -> float:
        return float(uncached)

    def on_activation(self, listener: Callable[[ModelName], None]) -> None:
        self.listeners.append(listener)


class Clock:
    """Set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class House:
    """The room, and what it stands on."""

    def __init__(self) -> None:
        self.clock, self.supply = Clock(), Two()
        self.demands = Demands(ScaleSettings(linger_s=30.0), self.supply, self.clock)

    def arrives(self, model: ModelName = BASE, prompt: int = 8000) -> AnEntry:
        entry = AnEntry(a_request(model, prompt_tokens=prompt, stream=True), self.clock.now)
        self.demands.arrived(entry)
        return entry

    def passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.now += 1.0
            self.demands.look()


def test_who_is_held_needs_a_replica_and_who_is_idle_none() -> None:
    house = House()
    entry = house.arrives()
    found = house.demands.demand(BASE)
    assert found.is_active
    assert found.replicas_needed >= 1.0
    assert (found.queued_requests, found.queued_tokens) == (1, 8000)
    house.passes(5)
    assert house.demands.demand(BASE).oldest_wait_s == 5.0
    assert house.demands.demand(OTHER) == Demand(OTHER)
    house.demands.left(entry)
    house.passes(30)
    assert house.demands.demand(BASE).is_active  # for a poll to see
    house.passes(2)
    assert house.demands.demand(BASE) == Demand(BASE)


def test_a_request_that_comes_and_goes_between_looks_is_seen_by_the_next_poll() -> None:
    house = House()
    house.passes(400)
    house.demands.left(house.arrives())
    house.passes(1)
    found = house.demands.demand(BASE)
    assert found.is_active
    assert found.replicas_needed == 1.0


def test_a_replica_that_loads_keeps_its_model_active() -> None:
    house = House()
    house.supply.standings[BASE] = msgspec.structs.replace(NOTHING, loading=1)
    found = house.demands.demand(BASE)
    assert found.is_active
    assert (found.replicas_needed, found.replicas_loading) == (1.0, 1)


def test_an_adapter_is_counted_as_the_model_it_needs() -> None:
    house = House()
    house.arrives(ADAPTER)
    house.arrives(BASE)
    assert house.demands.demand(BASE).queued_requests == 2
    assert house.demands.demand(ADAPTER) == house.demands.demand(BASE)


def test_a_name_that_nobody_knows_has_no_demand() -> None:
    house = House()
    stranger = ModelName("stranger")
    entry = house.arrives(stranger)
    house.passes(1)
    house.demands.left(entry)
    assert house.demands.demand(stranger) == Demand(stranger)
    assert house.demands.share(stranger) == Share()
    assert set(house.demands.models()) == {BASE, OTHER}


def test_work_that_arrives_faster_than_it_is_done_needs_more_than_one() -> None:
    house = House()
    house.supply.standings[BASE] = Standing(
        ready=2, loading=0, cold_start_s=90.0, prefill_per_s=8000.0
    )
    for _ in range(300):
        for _ in range(4):  # of a second each
            entry = house.arrives()
            entry.dispatched_at, entry.uncached = house.clock.now, 8000
            house.demands.left(entry)
        house.passes(1)
    found = house.demands.demand(BASE)
    assert 4.5 < found.replicas_needed < 8.0
    assert found.saturation == pytest.approx(2.0, rel=0.1)


class Others:
    """What other gateways have told. An `OtherShares`."""

    def __init__(self, shares: Iterable[Share]) -> None:
        self.shares = list(shares)

    def of_others(self, model: ModelName) -> Iterable[Share]:
        return self.shares if model == BASE else ()


@given(st.lists(st.integers(min_value=0, max_value=5), min_size=1, max_size=4))
def test_gateways_that_have_heard_each_other_say_the_same(counts: list[int]) -> None:
    houses = [House() for _ in counts]
    for house, count in zip(houses, counts, strict=True):
        for _ in range(count):
            house.arrives()
        house.passes(3)
    shares = [house.demands.share(BASE) for house in houses]
    for index, house in enumerate(houses):
        house.demands.others = Others(shares[:index] + shares[index + 1 :])
    said = [house.demands.demand(BASE) for house in houses]
    assert said[0].queued_requests == sum(counts)
    for each in said:
        assert each.replicas_needed == pytest.approx(said[0].replicas_needed)
        assert each.is_active == (sum(counts) > 0)
        assert each.queued_requests == said[0].queued_requests
