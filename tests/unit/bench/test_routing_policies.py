"""The formulas of the comparators on cases that fit in the head, and the gateway's adapter."""

from collections.abc import Callable, Sequence
from random import Random

import pytest

from tests.bench.routing.adapters import GATEWAY, block_bytes, prompt_of
from tests.bench.routing.cache import Arrival
from tests.bench.routing.comparators import COMPARATORS, BoundedHash, Counting
from tests.bench.routing.engine import ReplicaSpec
from tests.bench.routing.world import Listener, Router, World

SPECS = (ReplicaSpec(1000.0, 100),) * 3
L = 1000


class Hits:
    """Caches that hold what the test says."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = list(tokens)

    def listen(self, listener: Listener) -> None:
        """Nothing ever changes."""

    def at(self, due_s: float, then: Callable[[float], None]) -> None:
        """Nobody is told of anything."""

    def hit_tokens(self, arrival: Arrival) -> list[int]:
        return self.tokens


def a_router(
    name: str,
    hits: Sequence[int] = (0, 0, 0),
    requests: Sequence[int] = (0, 0, 0),
    prefill: Sequence[int] = (0, 0, 0),
) -> Counting:
    router = COMPARATORS[name](SPECS, Hits(*hits), Random(1))
    assert isinstance(router, Counting)
    router.requests = list(requests)
    router.prefill_tokens = list(prefill)
    return router


def an_arrival(number: int = 0, tokens: int = L, blocks: tuple[int, ...] = (1, 2)) -> Arrival:
    return Arrival(number, 0.0, tokens, 10, blocks)


def chosen(router: Router, now: float = 0.0) -> int:
    return router.choose(an_arrival(), now)


def test_round_robin_takes_turns() -> None:
    router = a_router("round-robin")
    assert [router.choose(an_arrival(i), 0.0) for i in range(4)] == [0, 1, 2, 0]


def test_least_loaded_counts_requests_and_nothing_else() -> None:
    assert chosen(a_router("least-loaded", (999, 0, 0), (2, 1, 2), (0, 9000, 0))) == 1


def test_power_of_two_takes_the_lighter_of_two_and_never_the_heaviest() -> None:
    drawn = {a_router("power-of-two", requests=(1, 0, 9)).choose(an_arrival(), 0) for _ in range(9)}
    assert drawn == {chosen(a_router("power-of-two", requests=(1, 0, 9)))}
    rng_router = a_router("power-of-two", requests=(100, 0, 900))
    assert 2 not in {rng_router.choose(an_arrival(i), 0) for i in range(50)}


def test_the_bounded_hash_keeps_a_key_where_it_is_until_the_bound() -> None:
    router = a_router("bounded-hash")
    homes = [router.choose(an_arrival(i), 0.0) for i in range(12)]
    # 12 in flight on three: at most ceil(1.25 * 12 / 3) = 5 anywhere
    assert max(homes.count(i) for i in range(3)) == 5
    home = homes[0]
    assert homes[1:2] != [home]  # ceil(1.25 * 2 / 3) = 1: the second must go on
    idle = BoundedHash(SPECS, Hits(0, 0, 0), Random(2))
    assert idle.choose(an_arrival(), 0.0) == home


def test_lpwl_sums_what_is_owed_and_what_is_cold_then_counts_requests() -> None:
    assert chosen(a_router("lpwl", hits=(900, 0, 0), prefill=(1000, 50, 200))) == 1
    assert chosen(a_router("lpwl", hits=(900, 0, 0), prefill=(900, 50, 0), requests=(3, 0, 1))) == 2


def test_lmetric_multiplies_by_the_batch() -> None:
    # (0 + 100) * 11 = 1100, (0 + 1000) * 1 = 1000, 1000 * 2
    assert chosen(a_router("lmetric", hits=(900, 0, 0), requests=(10, 0, 1))) == 1
    assert chosen(a_router("lmetric", hits=(900, 0, 0), requests=(8, 0, 1))) == 0


def test_sticky_stays_with_the_warm_until_eighteen_seconds() -> None:
    assert chosen(a_router("llm-d-sticky", hits=(800, 0, 0), prefill=(18_000, 0, 10))) == 0
    assert chosen(a_router("llm-d-sticky", hits=(800, 0, 0), prefill=(18_001, 0, 10))) == 1
    assert chosen(a_router("llm-d-sticky", hits=(799, 0, 0), prefill=(900, 0, 10))) == 1


def test_smg_follows_a_match_over_half_unless_unbalanced() -> None:
    assert chosen(a_router("smg-cache-aware", hits=(501, 0, 0), requests=(32, 0, 9))) == 0
    assert chosen(a_router("smg-cache-aware", hits=(500, 0, 0), requests=(32, 0, 9))) == 1
    assert chosen(a_router("smg-cache-aware", hits=(501, 0, 0), requests=(33, 0, 9))) == 1


def test_dynamo_counts_a_shared_block_once() -> None:
    router = a_router("dynamo")
    first = router.choose(an_arrival(0), 0.0)
    router.first_token(an_arrival(0), first, 1.0)
    router.caches = Hits(*(L - 1 if i == first else 0 for i in range(3)))
    # its two blocks are active there already: 2 active, against 2 active and 2 of prefill
    assert router.choose(an_arrival(1), 1.0) == first
    router.ended(an_arrival(0), first, 2.0, 0)
    router.ended(an_arrival(1), first, 2.0, 0)
    assert "Counter()" in repr(router.__dict__["_active"][first])


def test_dynamo_goes_where_fewer_blocks_are_active() -> None:
    router = a_router("dynamo")
    for number in range(30):  # strangers, prefilled at once: blocks alone tell replicas apart
        arrival = an_arrival(number, blocks=(2 * number, 2 * number + 1))
        router.first_token(arrival, router.choose(arrival, 0.0), 0.0)
    assert router.requests == [10, 10, 10]


def until_it_turns_away(router: Router, now: float) -> int:
    """How many go to the first replica before one does not."""
    return next(sent for sent in range(99) if router.choose(an_arrival(sent), now) != 0)


def test_the_reference_prices_cold_work_four_times_over() -> None:
    # warm costs its wait and 0.1 s and 4 * 0.1 s, cold 1 s and 4 s: equal when 45 have gone there
    assert until_it_turns_away(a_router("reference", hits=(900, 0, 0)), 0.0) in (45, 46)


def test_the_reference_lets_time_drain_what_is_owed() -> None:
    router = a_router("reference", hits=(900, 0, 0))
    assert [router.choose(an_arrival(i), 0.0) for i in range(40)] == [0] * 40
    assert until_it_turns_away(router, 3.0) in (35, 36)  # 1 s of the 4 s is left


def test_the_reference_is_set_right_by_a_first_token() -> None:
    router = a_router("reference", hits=(900, 0, 0))
    assert [router.choose(an_arrival(i), 0.0) for i in range(40)] == [0] * 40
    router.first_token(an_arrival(0), 0, 3.0)  # later than thought: 3.9 s are still owed
    assert until_it_turns_away(router, 3.0) in (6, 7)


@pytest.mark.parametrize("name", COMPARATORS)
def test_at_rest_every_comparator_counts_nothing(name: str) -> None:
    router = a_router(name)
    homes = [router.choose(an_arrival(i), 0.0) for i in range(20)]
    for number, home in enumerate(homes):
        router.first_token(an_arrival(number), home, 1.0)
        router.ended(an_arrival(number), home, 2.0, 0)
    assert (router.requests, router.prefill_tokens) == ([0] * 3, [0] * 3)


def test_equal_blocks_are_equal_bytes_and_others_differ_at_once() -> None:
    assert len({block_bytes(i)[:32] for i in range(2000)}) == 2000
    short, long = an_arrival(tokens=600, blocks=(1, 2)), an_arrival(tokens=1500, blocks=(1, 2, 3))
    assert len(prompt_of(short)) == 2400
    assert prompt_of(long).startswith(prompt_of(short))
    assert prompt_of(an_arrival(tokens=1024, blocks=(1, 3)))[:2048] == prompt_of(long)[:2048]


@pytest.mark.parametrize("name", GATEWAY)
def test_the_gateway_s_policies_run_through_their_port(name: str) -> None:
    router = GATEWAY[name](SPECS, Hits(0, 0, 0), Random(1))
    homes = [router.choose(an_arrival(i), float(i)) for i in range(60)]
    assert set(homes) <= {0, 1, 2}
    for number, home in enumerate(homes):
        router.first_token(an_arrival(number), home, 60.0)
        router.ended(an_arrival(number), home, 61.0, 0)


def test_least_work_goes_where_least_prefill_is_owed() -> None:
    router = GATEWAY["headrace/least-work"](SPECS, Hits(0, 0, 0), Random(1))
    long = an_arrival(0, tokens=50_000)
    home = router.choose(long, 0.0)
    # a request in flight counts for 256 tokens: far from enough to send one to the long one
    assert home not in {router.choose(an_arrival(n, tokens=10), 0.0) for n in range(1, 13)}
    router.first_token(long, home, 1.0)
    assert router.choose(an_arrival(13, tokens=10), 1.0) == home


def test_the_prompt_and_the_clock_reach_the_gateway_s_policy() -> None:
    router = GATEWAY["headrace/cache-aware-sized"](SPECS, Hits(0, 0, 0), Random(1))
    leader = an_arrival(0, tokens=4096, blocks=tuple(range(8)))
    sibling = an_arrival(1, tokens=4608, blocks=(*range(8), 99))
    home = router.choose(leader, 0.0)
    assert router.choose(sibling, 0.0) == home
    strangers = [
        an_arrival(n, tokens=4096, blocks=tuple(range(8 * n, 8 * n + 8))) for n in range(20, 25)
    ]
    assert home not in {router.choose(each, 0.0) for each in strangers[:2]}, "it is busy"
    assert home in {router.choose(each, 450.0) for each in strangers[2:]}, "and no longer"


def test_a_hot_prefix_is_copied_when_who_holds_it_is_behind_and_no_sooner() -> None:
    """One prefix of 4096 tokens in every request; each brings 512 of its own: 32 ms of prefill."""
    specs = (ReplicaSpec(16_000.0, 2_000),) * 4
    prefix = tuple(range(8))

    def run(first: int, requests: int, every_s: float) -> list[Arrival]:
        return [
            Arrival(first + n, first + n * every_s, 4608, 2, (*prefix, 1000 + first + n))
            for n in range(requests)
        ]

    world = World(specs)
    quiet, busy = run(0, 50, 0.2), run(50, 1500, 0.02)
    router = GATEWAY["headrace/cache-aware"](specs, world, Random(3))
    served = world.run([*quiet, *busy], router).served
    at = [{each.replica for each in served if each.arrival in part} for part in (quiet, busy)]
    assert len(at[0]) == 1, "one replica keeps up with five a second"
    assert 2 <= len(at[1]) <= 4, "and not with fifty"
    misses = sum(each.hit_tokens == 0 for each in served)
    assert misses == len(at[0] | at[1]), "each copy is made once"
    assert max(each.ttft_s for each in served if each.arrival.number > 800) < 1.0
