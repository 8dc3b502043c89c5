"""What several gateways send to one replica at once, and is read there once."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.choose.cache_aware import CacheAware
from gateway.choose.chooser import Choice
from gateway.choose.owed import Owed
from gateway.kv_cache import Placement
from gateway.request import GenerationRequest
from gateway.settings import ChooseSettings
from gateway.vocabulary import ROUTES, ModelName
from tests.builders import a_replica

REPLICA = a_replica("r1")
PREFIX = 8192
"""Bytes: there is a mark, and it is a whole number of blocks."""

SUFFIXES = st.lists(st.integers(4096, 6000), min_size=1, max_size=3)


def a_request(prompt: bytes, *, stream: bool = True) -> GenerationRequest:
    tokens = len(prompt) // 4
    return GenerationRequest(
        ROUTES[0], ModelName("m"), stream, len(prompt), tokens, None, prompt=prompt
    )


def a_prompt(family: int, own: int, suffix: int) -> bytes:
    """Begins like all of its family, and goes on like no other."""
    return bytes([65 + family]) * PREFIX + b"%08d" % own + b"x" * suffix


@dataclass
class Gateway:
    """One of several, and what it has on its way."""

    scorer: CacheAware
    claims: list[Owed]

    def sends(self, prompt: bytes, *, stream: bool = True) -> Owed:
        request = a_request(prompt, stream=stream)
        claim = self.scorer.dispatched(request, Choice(REPLICA, 0, (REPLICA,)), 1.0).__enter__()
        assert isinstance(claim, Owed)
        self.claims.append(claim)
        return claim

    def says(self) -> list[Placement]:
        said, self.scorer.placements = self.scorer.placements, []
        assert said is not None
        return said

    @property
    def uncached(self) -> int:
        return sum(each.uncached or 0 for each in self.claims)

    @property
    def owed(self) -> int:
        return self.scorer.target(REPLICA.id).pace.owed


def some(number: int) -> list[Gateway]:
    gateways = [Gateway(CacheAware(ChooseSettings()), []) for _ in range(number)]
    for ours, each in enumerate(gateways):
        each.scorer.beside(number, ours)
    return gateways


@given(
    st.lists(st.tuples(st.integers(0, 1), SUFFIXES), min_size=2, max_size=4),
    st.randoms(use_true_random=False),
)
def test_of_all_that_send_a_beginning_at_once_one_goes_on_counting_it(
    bursts: list[tuple[int, list[int]]], rng: Random
) -> None:
    """In whatever order they hear of each other."""
    gateways, numbers = some(len(bursts)), 0
    for each, (family, suffixes) in zip(gateways, bursts, strict=True):
        for suffix in suffixes:
            numbers += 1
            each.sends(a_prompt(family, numbers, suffix))
    news = [(at, said) for at, each in enumerate(gateways) for said in each.says()]
    heard = [(to, said) for to in range(len(gateways)) for at, said in news if at != to]
    rng.shuffle(heard)
    for to, said in heard:
        gateways[to].scorer.placed(said, 1.0)
    families = {family for family, _ in bursts}
    own = sum((8 + suffix) // 4 for _, suffixes in bursts for suffix in suffixes)
    read = len(families) * PREFIX // 4 + own
    assert sum(each.uncached for each in gateways) == pytest.approx(read, abs=40 * numbers)
    for family in families:
        brings = [
            any((claim.uncached or 0) > PREFIX // 4 for claim in each.claims)
            for each, (theirs, _) in zip(gateways, bursts, strict=True)
            if theirs == family
        ]
        assert brings.count(True) == 1
    for each in gateways:
        assert (
            each.owed
            == sum(claim.owed for claim in each.claims)
            == sum(claim.work for claim in each.claims)
        )
        for claim in each.claims:
            claim.__exit__(None, None, None)
        assert each.owed == 0
        assert not len(each.scorer._doubled)


def test_the_same_prompt_at_two_gateways_is_counted_by_one_of_them() -> None:
    one, other = some(2)
    for each in (one, other):
        each.sends(b"a" * PREFIX)
    assert one.uncached == other.uncached == PREFIX // 4
    from_one, from_other = one.says(), other.says()
    assert not any(one.scorer.placed(each, 1.0) for each in from_other), "it is the first"
    assert all(other.scorer.placed(each, 1.0) for each in from_one)
    assert one.uncached == PREFIX // 4
    assert 0 < other.uncached < PREFIX // 20


def test_what_was_given_up_to_one_says_nothing_of_what_two_others_share() -> None:
    """All begin alike; two of them go on alike."""
    common = bytes([65]) * PREFIX
    longer = common + b"y" * PREFIX
    gateways = some(3)
    for each, prompt in zip(
        gateways, (common + b"z" * 6000, longer + b"1", longer + b"2"), strict=True
    ):
        each.sends(prompt)
    news = [each.says() for each in gateways]
    for to, each in enumerate(gateways):
        for at, said in enumerate(news):
            for placement in said if at != to else []:
                each.scorer.placed(placement, 1.0)
    read = (len(longer) + 6000) // 4
    assert sum(each.uncached for each in gateways) == pytest.approx(read, abs=200)


def test_who_has_been_read_gives_nothing_up() -> None:
    one, other = some(2)
    for each in (one, other):
        each.sends(b"a" * PREFIX)
    said = one.says()
    other.claims[0].first_byte(1.0)
    assert not any(other.scorer.placed(each, 1.0) for each in said)
    assert other.uncached == PREFIX // 4
    assert [each.is_over for each in other.says()] == [False, True]


def test_who_follows_another_gateway_s_is_not_taken_to_bring_the_same() -> None:
    one, other = some(2)
    one.sends(a_prompt(0, 1, 6000))
    for each in one.says():
        other.scorer.placed(each, 1.0)
    other.sends(a_prompt(0, 2, 6000))
    assert other.uncached < PREFIX // 4
    was = one.uncached
    assert not any(one.scorer.placed(each, 1.0) for each in other.says())
    assert one.uncached == was


@pytest.mark.parametrize("stream", [True, False])
def test_it_is_told_to_who_follows_it_and_waits_with_less_work(stream: bool) -> None:
    one, other = some(2)
    prompt = b"a" * PREFIX
    claim = other.sends(prompt, stream=stream)
    told: list[int] = []
    claim.follow(told.append)
    claim.waits((1, 7.0))
    target = other.scorer.target(REPLICA.id)
    was, wait_s = claim.uncached, target.pace.wait_s(1.0)
    assert was is not None
    one.sends(prompt)
    for each in one.says():
        other.scorer.placed(each, 1.0)
    assert claim.uncached is not None
    assert told == [was - claim.uncached]
    assert target.waiting.work == claim.work < was // 10
    assert target.pace.wait_s(1.0) < wait_s / 5
    claim.goes()
    claim.__exit__(None, None, None)
    part = target.part()
    assert part.owed == part.owed_unseen == part.waiting == 0
    assert target.pace.wait_s(1.0) == pytest.approx(0.0, abs=1e-6)


@given(st.binary(max_size=40), st.integers(-3, 300), st.integers(-3, 2**62))
def test_whatever_is_said_of_marks_nothing_breaks(
    marks: bytes, fresh_from: int, gateway: int
) -> None:
    one, _ = some(2)
    claim = one.sends(b"a" * PREFIX)
    whole = one.says()[0].marks
    for each in (marks, whole[:24] + marks, whole[:-3]):
        one.scorer.placed(
            Placement(REPLICA.id, 0.25, each, fresh_from=fresh_from, gateway=gateway), 1.0
        )
        assert claim.uncached is not None
        assert 1 <= claim.uncached <= PREFIX // 4
        assert one.owed == claim.owed == claim.work
