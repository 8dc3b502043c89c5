"""The simulated replicas do what is said of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.routing.cache import Arrival, BlockCache, hit_tokens, ideal_hit_tokens
from tests.bench.routing.comparators import COMPARATORS
from tests.bench.routing.engine import Engine, Job, ReplicaSpec
from tests.bench.routing.workloads import WORKLOADS, Source
from tests.bench.routing.world import Run, World


class Always:
    """Sends everything to one replica and keeps what it is told."""

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.told: list[tuple[str, int, float]] = []

    def members(self, replicas: Sequence[int]) -> None:
        if self.index not in replicas:
            self.index = replicas[0]

    def choose(self, arrival: Arrival, now: float) -> int:
        self.told.append(("choose", arrival.number, now))
        return self.index

    def first_token(self, arrival: Arrival, replica: int, now: float) -> None:
        self.told.append(("first", arrival.number, now))

    def ended(self, arrival: Arrival, replica: int, now: float, cached_tokens: int | None) -> None:
        self.told.append((f"ended {cached_tokens}", arrival.number, now))


def an_arrival(
    number: int, at_s: float, *blocks: int, tokens: int | None = None, output: int = 1
) -> Arrival:
    return Arrival(number, at_s, len(blocks) * 512 if tokens is None else tokens, output, blocks)


def a_spec(rate: float = 512.0, blocks: int = 100, **more: float) -> ReplicaSpec:
    """Half a second a step and 512 tokens a second beside, unless the test says otherwise."""
    plain = ReplicaSpec(rate, blocks, 1024, 0.5, 0.0, 0.0, attention_tokens=float("inf"))
    return replace(plain, **more)  # type: ignore[arg-type]  # the numbers of a spec


def test_two_requests_by_hand() -> None:
    # Steps of at most 1024 tokens. The first prompt has three blocks: steps of 2.5 s and 1.5 s,
    # the rest of which stays empty: nobody waits. The second came at 1 s, holds two of its four
    # blocks by then, so that one step of one token for the first and 1023 for it, and another of
    # the 1 that is left follow. The first needs two more tokens: these steps are they.
    router = Always()
    run = World([a_spec()]).run(
        [an_arrival(0, 0.0, 1, 2, 3, output=3), an_arrival(1, 3.0, 1, 2, 8, 9, output=1)], router
    )
    second_s = 4.0 + (0.5 + 1023 / 512) + (0.5 + 1 / 512)
    assert [(each.arrival.number, each.hit_tokens) for each in run.served] == [(0, 0), (1, 1024)]
    assert [each.first_token_at_s for each in run.served] == [4.0, second_s]
    assert [each.ended_at_s for each in run.served] == [second_s, second_s]
    assert run.prefill_s == [5.0]
    assert [each[:2] for each in router.told] == [
        ("choose", 0),
        ("choose", 1),
        ("first", 0),
        ("first", 1),
        ("ended 0", 0),
        ("ended 1024", 1),
    ]


def test_prompts_share_a_step_and_the_later_one_hits_what_the_earlier_computes() -> None:
    run = World([a_spec()]).run([an_arrival(0, 0.0, 9), an_arrival(1, 0.1, 1)], Always())
    assert [each.first_token_at_s for each in run.served] == [1.5, 3.0]  # it came during a step
    burst = [an_arrival(n, 0.1, 1, tokens=1 + n * 200) for n in range(4)]
    run = World([a_spec()]).run([an_arrival(9, 0.0, 9, tokens=50), *burst], Always())
    assert len({each.first_token_at_s for each in run.served[1:]}) == 1
    assert [each.hit_tokens for each in run.served[1:]] == [0, 200, 400, 512]


def test_running_sequences_slow_a_step_and_long_contexts_slow_prompts() -> None:
    spec = a_spec(sequence_s=0.25, context_token_s=0.001, attention_tokens=512.0)
    run = World([spec]).run([an_arrival(0, 0.0, 1, output=3), an_arrival(1, 1.0, 2, 3)], Always())
    first_s = 0.5 + 1.0 * (1 + 256 / 512)
    assert run.served[0].first_token_at_s == first_s
    # one sequence of 512 tokens; 1023 of the 1024 tokens of its own fit beside it
    step_s = 0.5 + 0.25 + 0.512 + 1023 / 512 * (1 + 1023 / 2 / 512)
    last_s = 0.5 + 0.25 + 0.513 + 1 / 512 * (1 + 1023.5 / 512)
    assert run.served[1].first_token_at_s == pytest.approx(first_s + step_s + last_s)


def test_steps_without_prompts_are_cut_by_an_arrival_at_the_end_of_the_one_that_runs() -> None:
    run = World([a_spec()]).run(
        [an_arrival(0, 0.0, 1, output=101), an_arrival(1, 5.6, 2, output=1)], Always()
    )
    second, first = run.served
    assert second.first_token_at_s == pytest.approx(6.0 + 1.5)
    assert first.ended_at_s == pytest.approx(1.5 + 100 * 0.5 + 1.0)


def test_a_prompt_waits_for_room_in_the_cache() -> None:
    spec = a_spec(blocks=4)
    arrivals = [an_arrival(0, 0.0, 1, 2, output=513), an_arrival(1, 0.0, 3, 4, output=2)]
    first, second = World([spec]).run(arrivals, Always()).served
    assert first.arrival.number == 0
    assert second.first_token_at_s == pytest.approx(first.ended_at_s + 0.5 + 2.0)
    roomy = World([a_spec(blocks=8)]).run(arrivals, Always()).served
    assert roomy[0].arrival.number == 1
    limited = World([replace(a_spec(blocks=8), most_running=1)]).run(arrivals, Always()).served
    assert limited[0].arrival.number == 0


def test_in_a_closed_loop_a_request_follows_another() -> None:
    first = an_arrival(0, 0.0, 1, output=3)
    follower = replace(an_arrival(1, 0.1, 1, 2), after=0, think_s=2.0)
    run = World([a_spec()]).run([first, follower], Always())
    assert run.served[1].arrived_at_s == run.served[0].ended_at_s + 2.0
    assert run.served[1].ttft_s == 0.5 + 1.0


def test_what_a_dead_replica_had_not_answered_is_served_elsewhere() -> None:
    arrivals = [
        an_arrival(0, 0.0, 1, output=100),
        an_arrival(1, 1.9, 2),
        an_arrival(2, 2.1, 3),
        an_arrival(3, 4.0, 4),
    ]
    specs = [a_spec(leaves_at=0.5), a_spec(), a_spec(joins_at=0.75)]
    router = Always()
    run = World(specs).run(arrivals, router)
    fates = {each.arrival.number: each for each in run.served}
    assert [fates[n].replica for n in range(4)] == [0, 1, 1, 1]
    assert fates[0].ended_at_s == 2.0
    assert fates[1].arrived_at_s == 1.9
    assert fates[1].ttft_s == pytest.approx(0.1 + 1.5)
    assert ("ended None", 0, 2.0) in router.told
    assert [each[1] for each in router.told if each[0] == "choose"] == [0, 1, 1, 2, 3]


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
    """Everybody is served once; no replica is quicker than its prompts allow."""
    arrivals, run = run_of("groups-80", policy)
    assert sorted(each.arrival.number for each in run.served) == list(range(len(arrivals)))
    spec = WORKLOADS["groups-80"].specs[0]
    for index, prefill_s in enumerate(run.prefill_s):
        mine = [each for each in run.served if each.replica == index]
        tokens = sum(each.arrival.prompt_tokens - each.hit_tokens for each in mine)
        assert prefill_s >= tokens / spec.prefill_tokens_per_s
        assert max(each.first_token_at_s for each in mine) >= prefill_s
    assert all(each.arrived_at_s == each.arrival.at_s for each in run.served)
    assert all(each.arrived_at_s < each.first_token_at_s <= each.ended_at_s for each in run.served)


PROMPTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 3000), st.integers(1, 40), st.floats(0, 9)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(PROMPTS, st.integers(2, 12), st.integers(4, 300))
def test_an_engine_ends_all_it_is_given_within_its_budget(
    prompts: list[tuple[int, int, int, float]], blocks: int, budget: int
) -> None:
    spec = replace(a_spec(blocks=blocks), step_tokens=budget, most_running=4)
    engine, now, ended = Engine(spec), 0.0, list[Job]()
    pending = [
        (
            at,
            Arrival(
                n, at, tokens, output, tuple(range(100 * kind, 100 * kind + -(-tokens // 512)))
            ),
        )
        for n, (kind, tokens, output, at) in enumerate(prompts)
    ]
    pending.sort(key=lambda each: each[0])
    while pending or engine.stint:
        ends = engine.stint.ends_at_s if engine.stint else float("inf")
        if pending and pending[0][0] < ends:
            now, arrival = pending.pop(0)
            engine.submit(Job(arrival, now), now)
        else:
            assert ends >= now
            now = ends
            for job in engine.finish()[1]:
                assert job.first_token_at_s is not None
                assert job.hit_tokens < job.arrival.prompt_tokens == job.computed
                ended.append(job)
        stint = engine.stint
        assert stint is None or stint.step_s <= spec.step_s + budget / 512 + 1e-9
    assert len(ended) == len(prompts)
    assert engine.jobs == []
    assert engine.promised == {}


@pytest.mark.parametrize("policy", COMPARATORS)
def test_no_policy_hits_more_than_the_ideal_cache(policy: str) -> None:
    arrivals, run = run_of("siblings-80", policy)
    assert sum(each.hit_tokens for each in run.served) <= sum(ideal_hit_tokens(arrivals))


def test_a_seed_gives_one_run_and_another_seed_another() -> None:
    first, again, other = (run_of("hot-80", "power-of-two", seed)[1] for seed in (1, 1, 2))
    assert first == again
    assert first != other
