"""Which replica? Examples of the shipped policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest

from gateway.choose.chooser import Chooser, R
from gateway.choose.filters import Decodes
from gateway.choose.pickers import Cheapest, InTurn
from gateway.choose.policies import POLICIES, policy
from gateway.choose.scorers import ExpectedWork, Indifferent
from gateway.request import GenerationRequest
from gateway.section import SettingsError
from gateway.settings import ChooseSettings
from gateway.vocabulary import Role
from tests.builders import a_replica, a_request


class KeepsNone:
    """A filter that nothing passes."""

    def sift(self, request: GenerationRequest, replicas: Sequence[R]) -> Sequence[R]:
        return []


def test_work_is_prompt_tokens_owed_plus_its_own_plus_what_running_requests_cost() -> None:
    replicas = [
        a_replica("idle"),
        a_replica("reading", requests=1, prompt_tokens=1000),
        a_replica("writing", requests=3),
    ]
    costs = ExpectedWork(256).quote(a_request(prompt_tokens=100), replicas, 0.0).costs
    assert costs == [100, 100 + 1000 + 256, 100 + 3 * 256]


def test_least_work_goes_where_least_is_in_flight(rng: Random) -> None:
    chooser = policy(ChooseSettings(policy="least-work"), rng)
    replicas = [
        a_replica("a", requests=2),
        a_replica("b", requests=1, prompt_tokens=100),
        a_replica("c", requests=1, prompt_tokens=101),
    ]
    assert {chooser.choose(a_request(), replicas).replica.id for _ in range(20)} == {"b:8000"}


def test_ties_are_spread(rng: Random) -> None:
    chooser = policy(ChooseSettings(policy="least-work"), rng)
    replicas = [a_replica(name) for name in "abcd"] + [a_replica("e", requests=1)]
    chosen = Counter(chooser.choose(a_request(), replicas).replica.id for _ in range(4000))
    assert set(chosen) == {"a:8000", "b:8000", "c:8000", "d:8000"}
    assert all(850 < count < 1150 for count in chosen.values()), chosen


def test_random_is_blind_to_load_and_even(rng: Random) -> None:
    chooser = policy(ChooseSettings(policy="random"), rng)
    replicas = [a_replica("a", requests=50), a_replica("b"), a_replica("c")]
    chosen = Counter(chooser.choose(a_request(), replicas).replica.id for _ in range(3000))
    assert all(850 < count < 1150 for count in chosen.values()), chosen


def test_round_robin_takes_turns_whatever_they_cost(rng: Random) -> None:
    chooser = policy(ChooseSettings(policy="round-robin"), rng)
    replicas = [a_replica("a", requests=50), a_replica("b"), a_replica("c")]
    turns = [str(chooser.choose(a_request(), replicas).replica.id) for _ in range(7)]
    assert [turn[0] for turn in turns] == list("abcabca")


def test_a_replica_that_only_prefills_is_not_sent_whole_requests() -> None:
    replicas = [a_replica("p", role=Role.PREFILL), a_replica("d", role=Role.DECODE, requests=9)]
    chooser = Chooser((Decodes(),), ExpectedWork(1), InTurn())
    assert {chooser.choose(a_request(), replicas).replica.id for _ in range(4)} == {"d:8000"}


def test_a_filter_that_leaves_nothing_is_ignored() -> None:
    replicas = [a_replica("a", role=Role.PREFILL), a_replica("b", role=Role.PREFILL)]
    for filters in ((KeepsNone(),), (Decodes(),), (KeepsNone(), Decodes())):
        chooser = Chooser(filters, Indifferent(), InTurn())
        assert [chooser.choose(a_request(), replicas).replica.id for _ in range(2)] == [
            "a:8000",
            "b:8000",
        ]


def test_a_filter_that_leaves_nothing_does_not_undo_the_one_before() -> None:
    replicas = [a_replica("a", role=Role.PREFILL), a_replica("b")]
    chooser = Chooser((Decodes(), KeepsNone()), Indifferent(), InTurn())
    assert {chooser.choose(a_request(), replicas).replica.id for _ in range(3)} == {"b:8000"}


def test_the_cheapest_of_equals_is_drawn_and_of_unequals_is_not(rng: Random) -> None:
    picker = Cheapest(rng)
    assert {picker.pick([2.0, 1.0, 3.0]) for _ in range(20)} == {1}
    assert {picker.pick([1.0, 1.0, 3.0]) for _ in range(50)} == {0, 1}


def test_a_policy_that_does_not_exist_is_named_with_those_that_do(rng: Random) -> None:
    with pytest.raises(
        SettingsError, match=r"'best'; there are cache-aware, consistent-hash, .*, round-robin"
    ):
        policy(ChooseSettings(policy="best"), rng)


def test_the_default_policy_exists() -> None:
    assert ChooseSettings().policy in POLICIES


def test_least_loaded_counts_requests_and_two_choices_take_the_lighter(rng: Random) -> None:
    replicas = [a_replica("a", requests=9), a_replica("b", requests=1, prompt_tokens=9000)]
    for name in ("least-loaded", "power-of-two"):
        chooser = policy(ChooseSettings(policy=name), rng)
        assert {chooser.choose(a_request(), replicas).replica.id for _ in range(20)} == {"b:8000"}
    chooser = policy(ChooseSettings(policy="power-of-two"), rng)
    replicas += [a_replica("c", requests=5)]
    chosen = Counter(chooser.choose(a_request(), replicas).replica.id for _ in range(3000))
    assert set(chosen) == {"b:8000", "c:8000"}  # the heaviest is never the lighter of two
    assert 900 < chosen[replicas[2].id] < 1100
