"""Consistent hashing: bounded, and no more moves than must."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gateway.choose.hashing import ConsistentHash
from gateway.fleet.ledger import Replica
from gateway.request import GenerationRequest
from tests.builders import a_replica, a_request, altered


def asking(prompt: bytes, session: bytes | None = None) -> GenerationRequest:
    return altered(a_request(), prompt=prompt, session=session)


def home(request: GenerationRequest, fleet: list[Replica], bound: float = 1.25) -> Replica:
    costs = ConsistentHash(bound, 100).quote(request, fleet, 0.0).costs
    return fleet[costs.index(min(costs))]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9), st.binary(), st.floats(1, 3))
def test_whoever_is_chosen_stays_within_the_bound(
    inflight: list[int], prompt: bytes, bound: float
) -> None:
    fleet = [a_replica(f"r{i}", requests=count) for i, count in enumerate(inflight)]
    chosen = home(asking(prompt), fleet, bound)
    assert chosen.inflight_requests < bound * (sum(inflight) + 1) / len(fleet) + 1


@given(st.integers(2, 8), st.binary(min_size=1), st.integers(0, 7))
def test_only_the_keys_of_who_leaves_move(size: int, prompt: bytes, leaver: int) -> None:
    fleet = [a_replica(f"r{i}") for i in range(size)]
    before = home(asking(prompt), fleet)
    stayed = [one for one in fleet if one.id != f"r{leaver}:8000"]
    if before in stayed:
        assert home(asking(prompt), stayed) is before


def test_a_session_is_the_key_where_there_is_one_and_else_the_beginning() -> None:
    fleet = [a_replica(f"r{i}") for i in range(16)]
    prompts = [b"%d" % i for i in range(50)]
    assert len({home(asking(each, b"s"), fleet).id for each in prompts}) == 1
    assert len({home(asking(b"x" * 100 + each), fleet).id for each in prompts}) == 1
    assert len({home(asking(each), fleet).id for each in prompts}) > 8


def test_keys_are_spread_evenly() -> None:
    fleet = [a_replica(f"r{i}") for i in range(4)]
    homes = [home(asking(Random(i).randbytes(20)), fleet).id for i in range(4000)]
    assert all(850 < homes.count(one.id) < 1150 for one in fleet)
