"""Laws of choosing, for any fleet."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.choose.chooser import Chooser
from gateway.choose.policies import POLICIES, policy
from gateway.choose.scorers import ExpectedWork
from gateway.fleet.ledger import Replica
from gateway.request import GenerationRequest
from gateway.settings import ChooseSettings
from gateway.vocabulary import Role
from tests.builders import a_replica, a_request


@st.composite
def fleets(draw: st.DrawFn) -> list[Replica]:
    return [
        a_replica(
            f"r{number}",
            role=draw(st.sampled_from(Role)),
            requests=draw(st.integers(0, 5)),
            prompt_tokens=draw(st.sampled_from((0, 100, 5000))),
        )
        for number in range(draw(st.integers(1, 6)))
    ]


REQUESTS = st.builds(a_request, prompt_tokens=st.integers(0, 100_000))


class All:
    """A picker that picks nothing, to see what the costs were."""

    def __init__(self) -> None:
        self.costs: Sequence[float] = ()

    def pick(self, costs: Sequence[float]) -> int:
        self.costs = costs
        return 0


@given(fleets(), REQUESTS, st.sampled_from(sorted(POLICIES)), st.integers())
def test_the_chosen_is_one_of_the_given_and_can_decode_if_any_can(
    fleet: list[Replica], request: GenerationRequest, name: str, seed: int
) -> None:
    chosen = policy(ChooseSettings(policy=name), Random(seed)).choose(request, fleet).replica
    assert chosen in fleet
    if any(one.role is not Role.PREFILL for one in fleet):
        assert chosen.role is not Role.PREFILL


@given(fleets(), REQUESTS, st.randoms(use_true_random=False))
def test_permuting_replicas_permutes_costs(
    fleet: list[Replica], request: GenerationRequest, order: Random
) -> None:
    scorer = ExpectedWork(256)
    permuted = fleet.copy()
    order.shuffle(permuted)
    before = dict(zip(fleet, scorer.quote(request, fleet, 0.0).costs, strict=True))
    after = dict(zip(permuted, scorer.quote(request, permuted, 0.0).costs, strict=True))
    assert before == after


@settings(max_examples=50, deadline=None)
@given(fleets(), REQUESTS, st.integers(0, 2**32))
def test_least_work_chooses_among_the_cheapest_and_every_one_of_them(
    fleet: list[Replica], request: GenerationRequest, seed: int
) -> None:
    settings_ = ChooseSettings(policy="least-work")
    able = [one for one in fleet if one.role is not Role.PREFILL] or fleet
    costs = ExpectedWork(settings_.request_overhead_tokens).quote(request, able, 0.0).costs
    cheapest = {one for one, cost in zip(able, costs, strict=True) if cost == min(costs)}
    chooser = policy(settings_, Random(seed))
    assert {chooser.choose(request, fleet).replica for _ in range(60 * len(cheapest))} == cheapest


@given(fleets(), REQUESTS, st.integers(1, 5))
def test_more_work_never_makes_a_replica_cheaper(
    fleet: list[Replica], request: GenerationRequest, more: int
) -> None:
    scorer = ExpectedWork(256)
    before = scorer.quote(request, fleet, 0.0).costs
    with fleet[0].lease(more):
        after = scorer.quote(request, fleet, 0.0).costs
    assert after[0] > before[0]
    assert after[1:] == before[1:]


@given(fleets(), REQUESTS)
def test_choosing_leaves_the_fleet_as_it_was(
    fleet: list[Replica], request: GenerationRequest
) -> None:
    before = [(one.inflight_requests, one.inflight_prompt_tokens, one.health) for one in fleet]
    picker = All()
    Chooser((), ExpectedWork(256), picker).choose(request, fleet)
    assert len(picker.costs) == (len(fleet) if len(fleet) > 1 else 0)
    assert before == [
        (one.inflight_requests, one.inflight_prompt_tokens, one.health) for one in fleet
    ]
