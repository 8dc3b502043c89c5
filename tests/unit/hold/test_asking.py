"""Who is asked to choose anew when a replica has nothing to do."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.hold.asking import ASK_AT_ONCE, who_is_asked
from gateway.hold.gate import Gate
from gateway.hold.turn import Lane, Turn, Waiter
from gateway.order import PATIENCE_S
from tests.builders import altered
from tests.conftest import ManualClock
from tests.unit.hold.test_gate import R1, Claim, Client, a_gate, a_request

FAMILIES = tuple(name * 3000 for name in (b"a", b"b", b"c"))
WHOLE, OWN = 1000, 100


def a_waiter(gate: Gate, lane: Lane, family: bytes, alone: int, uncached: int) -> Waiter:
    """One that finds all but its own there if those before it have been read."""
    claim = Claim(alone)
    claim.uncached = uncached
    turn = Turn(uncached, 10, True, gate, lane)
    turn.claim = claim
    request = altered(a_request(tokens=WHOLE), prompt=family)
    return Waiter(request, turn, Client())


def a_lane(clock: ManualClock, gateways: int) -> tuple[Gate, Lane]:
    gate = a_gate(clock)
    gate.beside(gateways)
    return gate, gate._lane(R1)


def asked(waiters: Sequence[Waiter], now: float) -> list[Waiter]:
    found = who_is_asked(waiters, lambda *_: True, now)
    return [each for some in found.values() for each in some]


def test_of_several_gateways_none_takes_followers_away_from_who_waits_elsewhere(
    clock: ManualClock,
) -> None:
    gate, lane = a_lane(clock, 4)
    leader = a_waiter(gate, lane, FAMILIES[0], WHOLE, WHOLE)
    beside = a_waiter(gate, lane, FAMILIES[0], WHOLE, OWN)
    follower = a_waiter(gate, lane, FAMILIES[1], WHOLE, OWN)
    at_home = a_waiter(gate, lane, FAMILIES[2], OWN, OWN)
    waiters, now = [leader, beside, follower, at_home], leader.since
    assert asked(waiters, now) == [leader, beside, at_home]
    assert asked(waiters, now + PATIENCE_S + 0.1) == waiters, "it may be led nowhere"


def test_who_another_gateway_has_come_before_follows_it(clock: ManualClock) -> None:
    gate, lane = a_lane(clock, 2)
    leader = a_waiter(gate, lane, FAMILIES[0], WHOLE, WHOLE)
    follower = a_waiter(gate, lane, FAMILIES[0], WHOLE, OWN)
    claim = leader.turn.claim
    assert isinstance(claim, Claim)
    claim.less(WHOLE - OWN)
    assert asked([leader, follower], leader.since) == []


def test_one_gateway_takes_all_of_them_along(clock: ManualClock) -> None:
    gate, lane = a_lane(clock, 1)
    waiters = [a_waiter(gate, lane, FAMILIES[0], WHOLE, OWN) for _ in range(3)]
    assert asked(waiters, waiters[0].since) == waiters


@given(
    st.lists(st.tuples(st.sampled_from(FAMILIES), st.booleans()), max_size=2 * ASK_AT_ONCE),
    st.sampled_from([1, 3]),
    st.sampled_from([0.0, PATIENCE_S + 1.0]),
)
def test_they_are_the_last_of_those_that_follow_nobody_elsewhere(
    drawn: list[tuple[bytes, bool]], gateways: int, waited_s: float
) -> None:
    gate, lane = a_lane(ManualClock(), gateways)
    waiters = [
        a_waiter(gate, lane, family, WHOLE, OWN if follows else WHOLE) for family, follows in drawn
    ]
    led_here = {family for family, follows in drawn if not follows}
    goes = [gateways == 1 or waited_s > 0.0 or family in led_here for family, _ in drawn]
    last = list(zip(waiters, goes, strict=True))[-ASK_AT_ONCE:]
    since = waiters[0].since if waiters else 0.0
    assert asked(waiters, since + waited_s) == [waiter for waiter, is_asked in last if is_asked]


@pytest.mark.parametrize("gateways", [1, 2])
def test_nobody_is_asked_while_no_replica_is_free(clock: ManualClock, gateways: int) -> None:
    gate, lane = a_lane(clock, gateways)
    leader = a_waiter(gate, lane, FAMILIES[0], WHOLE, WHOLE)
    assert not who_is_asked([leader], lambda *_: False, leader.since)
