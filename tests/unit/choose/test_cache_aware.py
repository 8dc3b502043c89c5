"""The cache-aware policy: who holds what, who is how fast, and where a request goes."""

from __future__ import annotations

from collections import Counter, deque
from random import Random

import pytest

from gateway.choose.cache_aware import LEAST_REUSE, CacheAware
from gateway.choose.chooser import Choice, Chooser, Claim
from gateway.choose.pace import PRIOR_RATE_PER_S, Pace
from gateway.choose.pickers import Cheapest
from gateway.choose.policies import policy
from gateway.choose.price import Price, work
from gateway.fleet.ledger import Replica
from gateway.kv_cache import BlocksStored, Certainty, EngineFacts, Reading
from gateway.request import GenerationRequest
from gateway.settings import ChooseSettings
from gateway.vocabulary import ModelName, ReplicaId
from tests.builders import a_replica, a_route, altered


def asking(
    prompt: bytes, *, model: str = "m", context: tuple[tuple[str, bytes], ...] = ()
) -> GenerationRequest:
    return GenerationRequest(
        route=a_route(),
        model=ModelName(model),
        stream=True,
        prompt_bytes=len(prompt),
        prompt_tokens=len(prompt) // 4,
        max_tokens=None,
        prompt=prompt,
        context=context,
    )


def test_a_clock_drains_with_time_and_is_set_right_by_a_first_byte() -> None:
    pace = Pace()
    pace.begin(8_000, now=10.0)
    one = 8_000 / PRIOR_RATE_PER_S
    assert pace.wait_s(10.0) == pytest.approx(one)
    assert pace.wait_s(10.0 + one / 2) == pytest.approx(one / 2)
    pace.begin(4_000, now=10.0)
    pace.prefilled(8_000, now=10.1)
    assert pace.wait_s(10.1) == pytest.approx(4_000 / pace.rate_per_s)
    pace.prefilled(4_000, now=10.2)
    assert (pace.wait_s(10.2), pace.owed) == (0.0, 0)


def test_a_unary_prompt_is_owed_until_its_prefill_should_be_done() -> None:
    pace = Pace()
    pace.begin_unseen(8_000, now=0.0)
    pace.begin(8_000, now=0.0)
    pace.prefilled(8_000, now=0.5)
    assert pace.wait_s(0.5) == pytest.approx(8_000 / PRIOR_RATE_PER_S), "the unary one is not done"
    assert pace.rate_per_s == PRIOR_RATE_PER_S, "and nobody knows what the span was spent on"
    pace.begin(800, now=5.0)
    pace.prefilled(800, now=5.1)
    assert pace.wait_s(5.1) == 0.0


@pytest.mark.parametrize(
    ("rate_per_s", "fixed_s"), [(500.0, 0.0), (20_000.0, 0.05), (90_000.0, 0.0)]
)
def test_a_rate_is_learnt_whatever_a_span_costs_beside(rate_per_s: float, fixed_s: float) -> None:
    pace, rng, now = Pace(), Random(3), 0.0
    for _ in range(200):
        tokens = rng.randrange(200, 12_000)
        pace.begin(tokens, now)
        now += fixed_s + tokens / rate_per_s
        pace.prefilled(tokens, now)
        now += 1.0
    assert pace.rate_per_s == pytest.approx(rate_per_s, rel=0.05)


def test_what_was_dropped_is_owed_no_more_and_teaches_nothing() -> None:
    pace = Pace()
    pace.begin(8_000, now=0.0)
    pace.begin(100, now=0.0)
    pace.dropped(8_000)
    pace.prefilled(100, now=50.0)
    assert (pace.owed, pace.rate_per_s) == (0, PRIOR_RATE_PER_S)
    assert pace.wait_s(50.0) == 0.0


def test_a_rate_is_learnt_under_a_load_that_never_ends() -> None:
    pace, now = Pace(), 0.0
    pace.begin(16_000, now)
    for _ in range(60):
        pace.begin(16_000, now)  # there is always one more
        now += 1.0
        pace.prefilled(16_000, now)
    assert pace.owed == 16_000
    assert pace.rate_per_s == pytest.approx(16_000, rel=0.1)


def test_a_few_users_are_spread_over_replicas_however_fast_these_turn_out_to_be() -> None:
    """Those that have shown nothing must not be thought slower than who was tried first."""
    for rate_per_s in (1_000.0, 8_000.0, 60_000.0):
        scorer, now = a_scorer(), 0.0
        replicas = tuple(a_replica(name) for name in "abcd")
        chooser = Chooser((), scorer, Cheapest(Random(7)), memory=scorer)
        running: deque[tuple[ReplicaId, Claim]] = deque()
        sent: Counter[ReplicaId] = Counter()
        for turn in range(240):
            if len(running) == 8:  # so many users, each waiting for an answer
                running.popleft()[1].__exit__(None, None, None)
            request = asking(b"%06d, and nothing like it before." % turn * 100)
            choice = chooser.choose(request, replicas, now)
            claim = chooser.dispatched(request, choice, now)
            claim.__enter__()
            running.append((choice.replica.id, claim))
            sent[choice.replica.id] += 1
            now += request.prompt_tokens / rate_per_s
            claim.first_byte(now)
            now += 0.1
            assert max(Counter(name for name, _ in running).values()) <= 5
        assert min(sent.values()) > 30, (rate_per_s, sent)


def test_a_prior_is_believed_until_something_is_seen_and_a_pin_for_ever() -> None:
    pace = Pace(1_000.0)
    pace.prior(4_000.0)
    assert pace.rate_per_s == 4_000.0
    pinned = Pace(5_000.0, is_pinned=True)
    pinned.prior(1.0)
    for at in range(100):
        for each in (pace, pinned):
            each.begin(20_000, float(at))
            each.prefilled(20_000, at + 1.0)
    pace.prior(1_000.0)
    assert pace.rate_per_s == pytest.approx(20_000, rel=0.2), "it has been seen by now"
    assert pinned.rate_per_s == 5_000.0


def a_scorer(**settings: object) -> CacheAware:
    return CacheAware(ChooseSettings.of({"cache_tokens": 100_000, **settings}))


def test_what_is_known_of_a_new_replica_before_it_has_done_anything() -> None:
    scorer = a_scorer(prefill_rates={"p:8000": 30_000})
    scorer.described(ReplicaId("t:8000"), EngineFacts(tensor_parallel=4))
    rates = [scorer.target(ReplicaId(f"{name}:8000")).pace.rate_per_s for name in "ptn"]
    assert rates == [30_000, 4 * PRIOR_RATE_PER_S, PRIOR_RATE_PER_S]
    for pace in (scorer.target(ReplicaId(f"{name}:8000")).pace for name in "tn"):
        for at in range(100):
            pace.begin(20_000, float(at))
            pace.prefilled(20_000, at + 1.0)
    late = scorer.target(ReplicaId("late:8000")).pace.rate_per_s
    assert late == pytest.approx(20_000, rel=0.15), "as fast as the others"


def only(replica: Replica) -> Choice[Replica]:
    """The choice of one out of one."""
    return Choice(replica, 0, [replica])


def test_the_next_turn_goes_where_the_last_one_went() -> None:
    chooser = policy(ChooseSettings(policy="cache-aware"), Random(5))
    fleet = [a_replica(name) for name in "abcd"]
    for conversation in range(20):
        prompt = bytes([conversation]) * 4_000
        first = chooser.choose(asking(prompt), fleet, float(conversation))
        with chooser.dispatched(asking(prompt), first, float(conversation)) as claim:
            claim.first_byte(conversation + 0.1)
        again = chooser.choose(
            asking(prompt + b"next turn" * 90), fleet, conversation + 0.5
        ).replica
        assert again is first.replica


def test_siblings_follow_their_leader_before_it_has_been_answered() -> None:
    chooser = policy(ChooseSettings(policy="cache-aware"), Random(5))
    fleet = [a_replica(name) for name in "ab"]
    prompt = b"p" * 20_000
    leader = chooser.choose(asking(prompt), fleet, 0.0)
    chooser.dispatched(asking(prompt), leader, 0.0).__enter__()
    assert chooser.choose(asking(prompt), fleet, 0.0).replica is leader.replica


def test_attention_makes_the_end_of_a_long_prompt_dear() -> None:
    assert work(1_000, 1_000, 50_000) == 1_010
    assert work(50_000, 50_000, 50_000) == 75_000
    assert work(50_000, 1_000, 50_000) == 1_990


def test_congestion_is_what_work_costs_those_behind_it_within_bounds() -> None:
    price = Price(idle_congestion=1.0, least_congestion=4.0, most_congestion=16.0)
    assert [price.congestion(busy) for busy in (0.0, 0.25, 0.5, 0.8)] == pytest.approx(
        [1.0, 2.5, 4.0, 4.0]
    )
    assert price.congestion(0.9) == pytest.approx(9.0)
    assert price.congestion(0.99) == price.congestion(1.0) == 16.0


def test_a_warm_replica_is_left_when_it_is_too_busy() -> None:
    scorer = a_scorer()
    warm, cold = a_replica("w"), a_replica("c")
    prompt = b"p" * 8_193  # 2048 tokens, up to the last mark
    with scorer.dispatched(asking(prompt), only(warm), 0.0) as claim:
        claim.first_byte(0.3)
    # What it saves: whole blocks, short of the last token.
    saved = work(2_048, 2_048, 50_000) - work(2_048, 16, 50_000)
    gain_s = (1.0 + Price().idle_congestion) * saved / PRIOR_RATE_PER_S
    scorer.target(warm.id).pace.rate_per_s = PRIOR_RATE_PER_S
    for waiting_s, wins in ((gain_s - 0.05, warm), (gain_s + 0.05, cold)):
        scorer.target(warm.id).pace.free_at = 10.0 + waiting_s
        costs = scorer.quote(asking(prompt), [warm, cold], 10.0).costs
        assert (warm, cold)[costs.index(min(costs))] is wins


def a_cost_of_tokens_in_use(scorer: CacheAware, prompt: bytes) -> float:
    """In tokens of prefill, of three requests that run at one of two idle replicas."""
    a, b = a_replica("a"), a_replica("b")
    claims = [scorer.dispatched(asking(prompt + b"%d" % n * 4), only(a), 0.0) for n in range(3)]
    for claim in claims:
        claim.__enter__().first_byte(0.0)
    rates = [scorer.target(each.id).pace.rate_per_s for each in (a, b)]
    costs = scorer.quote(asking(b"z" * 40), [a, b], 1_000.0).costs
    for claim in claims:
        claim.__exit__(None, None, None)
    assert scorer.target(a.id).footprint.tokens == 0
    assert rates[0] == rates[1]
    return (costs[0] - costs[1]) * rates[0]


def test_tokens_in_use_cost_as_much_as_is_come_back_for() -> None:
    scorer = a_scorer(prefill_rates={"a:8000": 8_000, "b:8000": 8_000})
    first = a_cost_of_tokens_in_use(scorer, b"x" * 4_000)
    # The second and third share what the first brought: 1000 tokens, and each its own 1 and 256.
    assert first == pytest.approx(Price().footprint * 0.5 * (1_000 + 1_000 + 3 * 257), rel=0.05)
    for number in range(1_500):  # strangers: nobody comes back
        scorer.dispatched(asking(b"%06d" % number * 100), only(a_replica("a")), 0.0)
    least = first * LEAST_REUSE / 0.5  # those that run are in each other's way all the same
    assert a_cost_of_tokens_in_use(scorer, b"y" * 4_000) == pytest.approx(least, rel=0.1)


def test_a_pool_is_known_again_and_forgotten_with_who_leaves() -> None:
    scorer = a_scorer()
    fleet = tuple(a_replica(name) for name in "ab")
    first = scorer.quote(asking(b"x" * 400), fleet, 0.0)
    assert scorer.quote(asking(b"x" * 400), fleet, 0.1).pool is first.pool
    assert scorer.quote(asking(b"x" * 400), list(fleet), 0.1).pool is not first.pool
    scorer.target(fleet[0].id).pace.begin(80_000, 0.1)
    costs = scorer.quote(asking(b"x" * 400), fleet, 0.1).costs
    assert costs[0] - costs[1] == pytest.approx(80_000 / PRIOR_RATE_PER_S)
    scorer.forget(fleet[0].id)
    costs = scorer.quote(asking(b"x" * 400), fleet, 0.1).costs
    assert costs[0] == costs[1]


def test_nothing_is_remembered_of_a_replica_that_left() -> None:
    scorer = a_scorer()
    replica = a_replica("a")
    with scorer.dispatched(asking(b"x" * 4_609), only(replica), 0.0) as claim:
        claim.first_byte(0.1)
    assert scorer.quote(asking(b"x" * 4_609), [replica], 0.2).prediction(0).hit_tokens == 1_136
    scorer.forget(replica.id)
    assert scorer.quote(asking(b"x" * 4_609), [replica], 0.2).prediction(0).hit_tokens == 0


def test_a_claim_that_is_left_early_leaves_nothing_owed() -> None:
    scorer = a_scorer()
    replica = a_replica("a")
    with scorer.dispatched(asking(b"x" * 512), only(replica), 0.0):
        assert scorer.target(replica.id).pace.owed == 128
    assert scorer.target(replica.id).pace.owed == 0


LONG = b"of many words " * 512  # 1792 tokens


def filled_by_others(*names: str) -> CacheAware:
    """A policy that has heard of more blocks there than it has sent."""
    scorer = CacheAware(ChooseSettings())
    for name in names:
        tokens = range(16 * 256)
        blocks = BlocksStored(range(1, 257), None, tokens, 16)
        scorer.certainty(ReplicaId(f"{name}:8000"), Certainty.EXACT)
        scorer.apply(ReplicaId(f"{name}:8000"), [blocks])
    scorer.tidy(0.0)
    return scorer


@pytest.mark.parametrize(
    ("held_at", "prompt", "pool", "doubts"),
    [
        ("ab", LONG, "ab", True),
        ("a", LONG, "ab", True),
        ("", LONG, "ab", False),
        ("c", LONG, "ab", False),
        ("ab", LONG[:4000], "ab", False),
        ("ab", LONG, "a", False),
    ],
)
def test_a_choice_is_doubted_where_a_long_new_prompt_may_be_held(
    held_at: str, prompt: bytes, pool: str, doubts: bool
) -> None:
    scorer = filled_by_others(*held_at)
    chooser = Chooser((), scorer, Cheapest(Random(1)), memory=scorer)
    replicas = [a_replica(name) for name in pool]
    request = asking(prompt)
    assert chooser.doubts(request, replicas) is doubts
    for other in (
        altered(request, reading=Reading()),
        altered(request, route=a_route("/v1/embeddings")),
    ):
        assert not chooser.doubts(other, replicas)
    choice = chooser.choose(request, replicas)
    chooser.dispatched(request, choice, 0.0)
    assert not chooser.doubts(request, replicas), "it is known now"
    plain = policy(ChooseSettings(policy="least-work"), Random(1))
    assert not plain.doubts(request, replicas)
