"""What every policy of the registry must do, those that come later too."""

from __future__ import annotations

from random import Random

import pytest

from gateway.choose.policies import POLICIES, policy
from gateway.fleet.ledger import Replica
from gateway.settings import ChooseSettings
from gateway.vocabulary import Health, Role
from tests.builders import a_replica, a_request

pytestmark = pytest.mark.parametrize("name", sorted(POLICIES))


def a_fleet() -> list[Replica]:
    return [
        a_replica("a", requests=3, prompt_tokens=500),
        a_replica("b", health=Health.SUSPECT),
        a_replica("p", role=Role.PREFILL),
    ]


def test_a_policy_chooses_one_of_what_it_was_given(name: str) -> None:
    fleet = a_fleet()
    chooser = policy(ChooseSettings(policy=name), Random(1))
    for _ in range(50):
        assert chooser.choose(a_request(), fleet).replica in fleet[:2]
        assert chooser.choose(a_request(), tuple(fleet[1:2])).replica is fleet[1]
        assert chooser.choose(a_request(), fleet[2:]).replica is fleet[2]


def test_a_policy_uses_every_one_of_replicas_that_are_alike(name: str) -> None:
    fleet = [a_replica(each) for each in "abc"]
    chooser = policy(ChooseSettings(policy=name), Random(1))
    assert {chooser.choose(a_request(), fleet).replica for _ in range(100)} == set(fleet)


def test_a_policy_has_no_memory_of_a_replica_that_left(name: str) -> None:
    fleet = a_fleet()[:2]
    chooser = policy(ChooseSettings(policy=name), Random(1))
    for _ in range(7):
        chooser.choose(a_request(), fleet)
    assert chooser.choose(a_request(), fleet[1:]).replica is fleet[1]
    fresh = a_replica("c")
    assert chooser.choose(a_request(), [fresh]).replica is fresh


def test_the_same_chance_gives_the_same_choices(name: str) -> None:
    def choices() -> list[str]:
        chooser = policy(ChooseSettings(policy=name), Random(7))
        fleet = [a_replica(each) for each in "abc"]
        return [chooser.choose(a_request(), fleet).replica.id for _ in range(30)]

    assert choices() == choices()
