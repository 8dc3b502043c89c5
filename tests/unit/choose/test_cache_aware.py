"""The cache-aware policy: who holds what, who is how fast, and where a request goes."""

from __future__ import annotations

from random import Random

import pytest

from gateway.choose.cache_aware import PRICE, CacheAware
from gateway.choose.chooser import Choice
from gateway.choose.holdings import Holdings
from gateway.choose.pace import PRIOR_RATE_PER_S, Pace
from gateway.choose.policies import policy
from gateway.fleet.ledger import Replica
from gateway.settings import ChooseSettings
from gateway.vocabulary import GenerationRequest, ModelName
from tests.builders import a_replica, a_route


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


def a_scorer() -> CacheAware:
    return CacheAware(0, Holdings(100_000, 100_000.0))


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


def test_a_warm_replica_is_left_when_it_is_too_busy() -> None:
    scorer = a_scorer()
    warm, cold = a_replica("w"), a_replica("c")
    prompt = b"p" * 8_192  # 2048 tokens, 16 blocks
    with scorer.dispatched(asking(prompt), only(warm), 0.0) as claim:
        claim.first_byte(0.3)
    gain_s = (1.0 + PRICE) * 2_032 / PRIOR_RATE_PER_S  # whole blocks, short of the last token
    scorer.pace(warm.id).rate_per_s = PRIOR_RATE_PER_S
    for waiting_s, wins in ((gain_s - 0.05, warm), (gain_s + 0.05, cold)):
        scorer.pace(warm.id).free_at = 10.0 + waiting_s
        costs = scorer.quote(asking(prompt), [warm, cold], 10.0).costs
        assert (warm, cold)[costs.index(min(costs))] is wins


def test_nothing_is_remembered_of_a_replica_that_left() -> None:
    scorer = a_scorer()
    replica = a_replica("a")
    with scorer.dispatched(asking(b"x" * 4_608), only(replica), 0.0) as claim:
        claim.first_byte(0.1)
    assert scorer.quote(asking(b"x" * 4_608), [replica], 0.2).prediction(0).hit_tokens == 1_136
    scorer.forget(replica.id)
    assert scorer.quote(asking(b"x" * 4_608), [replica], 0.2).prediction(0).hit_tokens == 0


def test_a_claim_that_is_left_early_leaves_nothing_owed() -> None:
    scorer = a_scorer()
    replica = a_replica("a")
    with scorer.dispatched(asking(b"x" * 512), only(replica), 0.0):
        assert scorer.pace(replica.id).owed == 128
    assert scorer.pace(replica.id).owed == 0
