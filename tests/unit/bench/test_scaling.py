"""The scaling benchmark itself: KEDA and the autoscaler decide as they do, and nobody is lost."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.settings import ScaleSettings
from tests.bench.routing.cache import Arrival
from tests.bench.routing.engine import ReplicaSpec
from tests.bench.scaling.autoscaler import Autoscaler, Behaviour, External, Resource
from tests.bench.scaling.report import Outcome
from tests.bench.scaling.rules import best
from tests.bench.scaling.world import COLD_START_S, Run, World

SYNC_S = 15.0


def an_autoscaler(replicas: int) -> Autoscaler:
    scaler = Autoscaler(Behaviour())
    scaler.replicas = replicas
    return scaler


def wants(scaler: Autoscaler, total: float, now_s: float) -> int:
    scaler.sync(External(total, 1.0), scaler.replicas, now_s)
    return scaler.replicas


@pytest.mark.parametrize(
    ("total", "replicas"),
    [(2.79, 3), (2.9, 3), (3.0, 3), (3.2, 3), (3.29, 3), (3.31, 4), (5.0, 5), (5.01, 6)],
)
def test_within_a_tenth_nothing_is_done(total: float, replicas: int) -> None:
    assert wants(an_autoscaler(3), total, 0.0) == replicas


def test_it_goes_down_to_the_highest_of_five_minutes() -> None:
    scaler = an_autoscaler(8)
    assert wants(scaler, 6.0, 0.0) == 6
    assert wants(scaler, 2.0, 150.0) == 6
    assert wants(scaler, 4.0, 200.0) == 6
    assert wants(scaler, 2.0, 301.0) == 4
    assert wants(scaler, 2.0, 501.0) == 2


def test_it_goes_up_by_four_or_twofold_in_fifteen_seconds() -> None:
    scaler = an_autoscaler(2)
    assert wants(scaler, 50.0, 0.0) == 6
    assert wants(scaler, 50.0, 5.0) == 6  # not yet again
    assert wants(scaler, 50.0, 15.0) == 12
    assert wants(scaler, 50.0, 30.0) == 24
    assert wants(scaler, 50.0, 45.0) == 48
    assert wants(scaler, 500.0, 60.0) == 64  # the most there may be


def test_pods_that_are_not_ready_are_idle_to_a_resource_metric() -> None:
    assert Resource(0.9, 0.6).desired(2, 2) == 3
    assert Resource(0.9, 0.6).desired(4, 2) == 4  # 0.45 over four: the direction turns
    assert Resource(1.0, 0.3).desired(4, 2) == 7
    assert Resource(0.2, 0.6).desired(3, 3) == 1
    assert Resource(0.5, 0.6).desired(3, 0) == 3


def test_above_ten_elevenths_a_share_of_time_can_never_ask_for_more() -> None:
    """Nobody is busy for more than all of the time, and that is within the tolerance."""
    assert Resource(1.0, 0.95).desired(3, 3) == 3


def test_keda_wakes_it_and_puts_it_to_sleep() -> None:
    scaler = an_autoscaler(0)
    assert wants(scaler, 5.0, 0.0) == 0  # the autoscaler sleeps, too
    scaler.poll(True, 10.0)
    assert scaler.replicas == 1
    scaler.poll(False, 309.0)
    assert scaler.replicas == 1
    scaler.poll(False, 310.0)
    assert scaler.replicas == 0


@given(st.lists(st.floats(min_value=0.0, max_value=100.0), max_size=60))
def test_it_stays_within_its_bounds_and_its_policies(totals: list[float]) -> None:
    scaler = an_autoscaler(1)
    for step, total in enumerate(totals):
        before = scaler.replicas
        after = wants(scaler, total, step * SYNC_S)
        assert 1 <= after <= 64
        assert after <= max(2 * before, before + 4)


def arrivals(number: int, rng: Random) -> list[Arrival]:
    """Poisson, two a second, from 30 s on; nothing in common."""
    made, now = [], 30.0
    for index in range(number):
        now += rng.expovariate(2.0)
        blocks = tuple(range(index * 100, index * 100 + 4))
        made.append(Arrival(index, now, 2000, 1 + rng.randrange(100), blocks))
    return made


def a_run(seed: int) -> tuple[list[Arrival], Run]:
    came = arrivals(200, Random(seed))
    world = World(
        ReplicaSpec(8000.0, 500),
        lambda signals: External(signals.replicas_needed, 1.0),
        str(seed),
        Behaviour(),
        ScaleSettings(),
    )
    return came, world.run(came, 900.0, 0)


def test_everybody_is_served_once_and_the_last_replica_goes() -> None:
    came, run = a_run(1)
    assert sorted(each.arrival.number for each in run.served) == list(range(len(came)))
    assert all(each.ttft_s > 0.0 for each in run.served)
    first = min(run.served, key=lambda each: each.arrival.number)
    assert 0.9 * COLD_START_S <= first.ttft_s <= 1.1 * COLD_START_S + 1.0
    assert run.counts[-1][1] == 0
    assert 0.0 < run.replica_s < 900.0 * 64
    assert a_run(1)[1] == run  # the same again


def test_turns_are_changes_of_direction() -> None:
    run = a_run(2)[1]
    run.counts = [(0.0, 1), (1.0, 3), (2.0, 5), (3.0, 4), (4.0, 4), (5.0, 6), (6.0, 0)]
    assert Outcome.of(run, 0.0).turns == 3


def test_a_threshold_is_the_cheapest_that_attains_as_much() -> None:
    tried = {1.0: (0.99, 10.0), 2.0: (0.969, 5.0), 3.0: (0.60, 1.0)}
    assert best(tried, 0.97) == 2.0
    assert best(tried, 0.5) == 3.0
    assert best(tried, 0.999) == 1.0  # none does: the nearest
