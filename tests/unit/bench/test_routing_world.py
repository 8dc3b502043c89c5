"""The simulated replicas do what is said of them."""

from pathlib import Path
from random import Random

import pytest

from tests.bench.routing.cache import BlockCache, hit_tokens, ideal_hit_tokens
from tests.bench.routing.comparators import COMPARATORS
from tests.bench.routing.workloads import WORKLOADS, Source
from tests.bench.routing.world import Arrival, ReplicaSpec, Run, World


class Always:
    """Sends everything to one replica and keeps what it is told."""

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.told: list[tuple[str, int, float]] = []

    def choose(self, arrival: Arrival, now: float) -> int:
        self.told.append(("choose", arrival.number, now))
        return self.index

    def first_token(self, arrival: Arrival, replica: int, now: float) -> None:
        self.told.append(("first", arrival.number, now))

    def ended(self, arrival: Arrival, replica: int, now: float, cached_tokens: int) -> None:
        self.told.append((f"ended {cached_tokens}", arrival.number, now))


def an_arrival(
    number: int, at_s: float, *blocks: int, tokens: int | None = None, output: int = 1
) -> Arrival:
    return Arrival(number, at_s, len(blocks) * 512 if tokens is None else tokens, output, blocks)


def a_spec(rate: float = 512.0, blocks: int = 100) -> ReplicaSpec:
    return ReplicaSpec(rate, blocks, decode_token_s=0.5)


def test_two_requests_by_hand() -> None:
    # 512 tokens a second. The first has three blocks: 3 s. The second waits for it from t=1, holds
    # two of its four blocks by then, and computes the other two: first token at 5 s.
    router = Always()
    run = World([a_spec()]).run(
        [an_arrival(0, 0.0, 1, 2, 3, output=3), an_arrival(1, 1.0, 1, 2, 8, 9, output=1)], router
    )
    assert [(each.arrival.number, each.hit_tokens, each.ttft_s) for each in run.served] == [
        (0, 0, 3.0),
        (1, 1024, 4.0),
    ]
    assert run.busy_s == [5.0]
    assert router.told == [
        ("choose", 0, 0.0),
        ("choose", 1, 1.0),
        ("first", 0, 3.0),
        ("ended 0", 0, 4.0),  # two more tokens of half a second
        ("first", 1, 5.0),
        ("ended 1024", 1, 5.0),
    ]


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    run = World([a_spec()]).run([an_arrival(0, 0.0, 1), an_arrival(1, 9.0, 1)], Always())
    assert [each.hit_tokens for each in run.served] == [0, 511]
    assert hit_tokens(2, 700) == 699


def test_the_index_credits_what_is_on_its_way_and_the_cache_does_not() -> None:
    seen = []

    class Looking(Always):
        def choose(self, arrival: Arrival, now: float) -> int:
            seen.append(world.hit_tokens(arrival))
            return super().choose(arrival, now)

    world = World([a_spec(), a_spec()])
    run = world.run([an_arrival(0, 0.0, 1, 2), an_arrival(1, 0.0, 1, 2, 3)], Looking(1))
    assert seen == [[0, 0], [0, 1024]]
    assert [each.hit_tokens for each in run.served] == [0, 1024]


def test_what_was_used_last_is_dropped_last_and_tails_before_heads() -> None:
    cache = BlockCache(4)
    cache.keep((1, 2))
    cache.keep((3, 4))
    cache.keep((1,))
    cache.keep((5,))
    assert cache.match((1, 2)) == 1  # 2 was the oldest tail
    assert cache.match((3, 4)) == 2
    cache.keep((6,))
    assert cache.match((3, 4)) == 1
    assert len(cache.held) == 4


def test_a_cache_matches_no_further_than_its_first_gap() -> None:
    cache = BlockCache(8)
    cache.keep((1, 3))
    assert cache.match((1, 2, 3)) == 1


def test_the_ideal_cache_is_shared_and_forgets_nothing() -> None:
    arrivals = [an_arrival(0, 0, 1, 2), an_arrival(1, 1, 7), an_arrival(2, 2, 1, 2, 3)]
    assert ideal_hit_tokens(arrivals) == [0, 0, 1024]


def run_of(name: str, policy: str, seed: int = 1, requests: int = 400) -> tuple[list[Arrival], Run]:
    workload = WORKLOADS[name]
    arrivals = workload.draw(Source(requests, seed, Path("nowhere")))
    world = World(workload.specs)
    router = COMPARATORS[policy](workload.specs, world, Random(seed))
    return arrivals, world.run(arrivals, router)


@pytest.mark.parametrize("policy", COMPARATORS)
def test_work_is_conserved(policy: str) -> None:
    """Each replica works without a pause from when it has work until it has none."""
    arrivals, run = run_of("groups-70", policy)
    assert sorted(each.arrival.number for each in run.served) == list(range(len(arrivals)))
    for index, busy_s in enumerate(run.busy_s):
        mine = [each for each in run.served if each.replica == index]
        rate = WORKLOADS["groups-70"].specs[index].prefill_tokens_per_s
        free_at_s = worked_s = 0.0
        for each in mine:  # in order of first tokens, which is the order of arrival there
            duration_s = (each.arrival.prompt_tokens - each.hit_tokens) / rate
            free_at_s = max(free_at_s, each.arrival.at_s) + duration_s
            worked_s += duration_s
            assert each.first_token_at_s == pytest.approx(free_at_s)
        assert busy_s == pytest.approx(worked_s)


@pytest.mark.parametrize("policy", COMPARATORS)
def test_no_policy_hits_more_than_the_ideal_cache(policy: str) -> None:
    arrivals, run = run_of("siblings-70", policy)
    assert sum(each.hit_tokens for each in run.served) <= sum(ideal_hit_tokens(arrivals))


def test_a_seed_gives_one_run_and_another_seed_another() -> None:
    first, again, other = (run_of("hot-70", "power-of-two", seed)[1] for seed in (1, 1, 2))
    assert first == again
    assert first != other
