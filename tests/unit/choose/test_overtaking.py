"""What a wait is worth where those who wait are served in an order: short prompts overtake."""

from __future__ import annotations

from random import Random

import pytest

from gateway.choose.cache_aware import CacheAware
from gateway.choose.chooser import Choice, Chooser, Claim
from gateway.choose.pickers import Cheapest
from gateway.choose.target import Part
from gateway.fleet.ledger import Replica
from gateway.order import place
from gateway.request import GenerationRequest
from gateway.settings import ChooseSettings
from gateway.vocabulary import ModelName, ServiceClass, Tenant
from tests.builders import a_replica, a_route

RATE_PER_S = 1_000.0
A, B = a_replica("a"), a_replica("b")


def asking(what: str, tokens: int, tenant: Tenant) -> GenerationRequest:
    prompt = (what * 4 * tokens).encode()[: 4 * tokens]
    return GenerationRequest(
        a_route(), ModelName("m"), True, len(prompt), tokens, None, prompt=prompt, tenant=tenant
    )


class Busy:
    """Two replicas: A has 1 s of work, and three wait for it; B has 4 s of work, nobody waits."""

    def __init__(self) -> None:
        rates = {each.id: RATE_PER_S for each in (A, B)}
        self.scorer = CacheAware(
            ChooseSettings.of(
                {"prefill_rates": rates, "attention_tokens": 10**9, "cache_tokens": 10**6}
            )
        )
        self.chooser = Chooser((), self.scorer, Cheapest(Random(1)), memory=self.scorer)
        self.somebody = Tenant("somebody")
        self.sent(A, "x", 1_000)
        self.sent(B, "y", 4_000)
        self.waiting = [self.waits(each) for each in "pqr"]

    def sent(self, replica: Replica, what: str, tokens: int) -> Claim:
        request = asking(what, tokens, self.somebody)
        claim = self.chooser.dispatched(request, Choice(replica, 0, (replica,)), 0.0)
        return claim.__enter__()

    def waits(self, what: str) -> Claim:
        claim = self.sent(A, what, 2_000)
        claim.waits(place(self.somebody, None, 0.0, 2_000))
        return claim

    def where(self, tokens: int, tenant: Tenant | None = None) -> tuple[object, object]:
        """The replica, and the wait for A that is expected."""
        request = asking("n", tokens, tenant or self.somebody)
        choice = self.chooser.choose(request, (A, B), 0.0)
        assert choice.quote is not None
        wait_s = choice.quote.prediction(0).wait_s
        assert wait_s is not None
        return choice.replica.id, wait_s


def test_a_short_prompt_goes_where_it_overtakes_and_a_long_one_does_not() -> None:
    busy = Busy()
    assert busy.where(100) == (A.id, pytest.approx(1.0)), "only what was sent stands before it"
    assert busy.where(2_001) == (B.id, pytest.approx(7.0)), "three times 2 s, and what was sent"


def test_what_it_costs_those_it_overtakes_is_its_own_time_for_each() -> None:
    busy = Busy()
    assert busy.where(700)[0] == A.id, "1 s and 3 x 0.7 s for others, beside 4 s"
    assert busy.where(1_100)[0] == B.id, "1 s and 3 x 1.1 s, and A is the fuller one"


def test_classes_overtake_whatever_their_length() -> None:
    busy = Busy()
    urgent, patient = (Tenant("t", each) for each in (ServiceClass.INTERACTIVE, ServiceClass.BATCH))
    assert busy.where(2_001, urgent)[1] == pytest.approx(1.0)
    assert busy.where(100, patient)[1] == pytest.approx(7.0)


def test_whoever_is_sent_or_leaves_waits_no_longer() -> None:
    busy = Busy()
    first, second, third = busy.waiting
    first.goes()
    assert busy.where(100)[1] == pytest.approx(3.0)
    second.__exit__(None, None, None)
    third.goes()
    third.__exit__(None, None, None)
    assert busy.where(100)[1] == pytest.approx(3.0)
    assert not busy.scorer.target(A.id).waiting
    assert busy.scorer.target(A.id).pace.owed == 3_000


def test_what_is_only_on_its_way_is_not_there_for_whoever_would_go_first() -> None:
    busy = Busy()
    leader = busy.sent(A, "z", 3_000)
    follower = busy.sent(A, "z", 3_000)
    assert (leader.uncached, leader.alone) == (3_000, 3_000)
    assert follower.uncached is not None
    assert follower.uncached < 300, "it will find what its leader brings"
    assert follower.alone == 3_000
    leader.first_byte(1.0)
    again = busy.sent(A, "z", 3_000)
    assert again.alone == again.uncached == follower.uncached
    stranger = busy.sent(A, "0", 3_000)
    assert stranger.alone == 3_000


def test_a_replica_that_has_left_keeps_nobody_waiting_whoever_waited_for_it_elsewhere() -> None:
    scorer = CacheAware(ChooseSettings())
    scorer.others(A.id, "another gateway", Part(sent=500, waiting=1, waiting_work=500), 0.0)
    assert scorer._crowded
    scorer.forget(A.id)
    assert not scorer._crowded
