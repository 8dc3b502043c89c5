"""What every policy of the registry must do, those that come later too."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.choose.policies import POLICIES, policy
from gateway.fleet.health import Standing
from gateway.fleet.ledger import Replica
from gateway.request import GenerationRequest
from gateway.settings import ChooseSettings
from gateway.vocabulary import Health, Role
from tests.builders import a_replica, a_request, altered

pytestmark = pytest.mark.parametrize("name", sorted(POLICIES))


def asking(number: int, session: bytes | None = None) -> GenerationRequest:
    """Requests of different prompts."""
    prompt = b"%d" % number * 600
    return altered(
        a_request(stream=True, prompt_bytes=len(prompt), prompt_tokens=len(prompt) // 4),
        prompt=prompt,
        session=session,
    )


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
    assert {chooser.choose(asking(i), fleet).replica for i in range(100)} == set(fleet)


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


@given(st.permutations(range(4)), st.lists(st.integers(0, 5), min_size=1, max_size=20))
@example([0, 1, 2, 3], [0, 0, 0, 0, 1, 2])  # whoever has shown little is priced once as twice
def test_permuting_replicas_permutes_costs(name: str, order: list[int], asked: list[int]) -> None:
    fleet = [a_replica(f"r{i}", requests=i % 3, prompt_tokens=100 * i) for i in range(4)]
    chooser = policy(ChooseSettings(policy=name), Random(1))
    for now, number in enumerate(asked):  # whatever it remembers by then
        choice = chooser.choose(asking(number), fleet, float(now))
        chooser.dispatched(asking(number), choice, float(now)).__enter__().first_byte(now + 0.5)
    permuted = [fleet[i] for i in order]
    costs = []
    for replicas in (fleet, permuted):
        quote, able = chooser.quote(asking(asked[0]), replicas, float(len(asked)))
        costs.append(dict(zip([one.id for one in able], quote.costs, strict=True)))
    assert costs[0] == pytest.approx(costs[1])


def test_a_session_sticks_while_its_replica_is_well_and_not_overloaded(name: str) -> None:
    fleet = [a_replica(each) for each in "abcd"]
    chooser = policy(ChooseSettings(policy=name, sticky_sessions=True), Random(1))
    first = chooser.choose(asking(0, b"s"), fleet)
    chooser.dispatched(asking(0, b"s"), first, 0.0)
    home = first.replica
    home.inflight_requests = 4  # no overload yet
    assert {chooser.choose(asking(n, b"s"), fleet).replica for n in range(20)} == {home}
    home.inflight_requests = 50
    moved = {chooser.choose(asking(n, b"s"), fleet).replica for n in range(100)}
    assert moved - {home}
    home.inflight_requests = 0
    assert {chooser.choose(asking(n, b"s"), fleet).replica for n in range(20)} == {home}
    others = [one for one in fleet if one is not home]
    assert chooser.choose(asking(1, b"s"), others).replica in others
    home.standing = Standing(Health.SUSPECT)
    sticky = chooser.sticky
    assert sticky is not None
    assert sticky.home(b"s", fleet) is None
