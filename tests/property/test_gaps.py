"""Gateways that wait for one replica fill its gaps in the order that one queue would have, though
each goes by what it has been told alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.hold.capacity import NO_PART, TURN_S, Bounds, Load, Room
from gateway.order import Place

COMMIT = 4000
PLACES = st.tuples(st.integers(0, 2), st.floats(1.0, 90.0))


def gateways(firsts: list[Place]) -> list[Room]:
    """One for each place, that of its first waiter; the replica has room again at 5.0."""
    rooms = [Room(Bounds(commit_tokens=COMMIT)) for _ in firsts]
    loads = [Load(COMMIT // len(firsts), 0, is_stream=True) for _ in firsts]
    for room, load in zip(rooms, loads, strict=True):
        room.beside(len(firsts))
        room.take(load, 1.0)
    tell(rooms, firsts, 2.0)
    for room, load in zip(rooms, loads, strict=True):
        room.begun(load, 5.0)
    tell(rooms, firsts, 5.0)
    return rooms


def tell(rooms: list[Room], firsts: list[Place], now: float) -> None:
    """Everybody everything, at once."""
    parts = [room.part(1, first) for room, first in zip(rooms, firsts, strict=True)]
    for who, part in enumerate(parts):
        for other, room in enumerate(rooms):
            if other != who:
                room.others(str(who), part, now)


def may_go(room: Room, place: Place, now: float) -> bool:
    return room.is_open(now) and room.fits(COMMIT, 100, now, place)


@given(st.lists(PLACES, min_size=2, max_size=6, unique=True))
def test_the_best_place_goes_at_once_and_each_other_a_turn_later(firsts: list[Place]) -> None:
    rooms = gateways(firsts)
    for room, first in zip(rooms, firsts, strict=True):
        before = sorted(firsts).index(first)
        assert may_go(room, first, 5.0) == (before == 0)
        assert room.next_due(5.0) == (5.0 + before * TURN_S if before else None)
        assert may_go(room, first, 5.0 + before * TURN_S), "who does not go keeps nobody longer"


@given(st.lists(PLACES, min_size=2, max_size=6, unique=True))
def test_a_gap_that_the_first_has_filled_is_nobodys(firsts: list[Place]) -> None:
    rooms = gateways(firsts)
    went = firsts.index(min(firsts))
    rooms[went].take(Load(COMMIT, 100, is_stream=True), 5.0)
    tell(rooms, firsts, 5.001)
    later = 5.0 + len(firsts) * TURN_S
    assert not any(may_go(room, first, later) for room, first in zip(rooms, firsts, strict=True))


def test_who_waits_no_longer_or_is_gone_is_left_no_turn() -> None:
    ours, place = Room(Bounds(commit_tokens=COMMIT)), (1, 30.0)
    ours.beside(3)
    theirs = Room(Bounds(commit_tokens=COMMIT))
    ours.others("one", theirs.part(2, (1, 20.0)), 1.0)
    ours.others("two", theirs.part(1, (0, 99.0)), 1.0)
    assert not ours.fits(100, 0, TURN_S, place)
    ours.others("two", theirs.part(0), 1.0)
    assert ours.fits(100, 0, TURN_S, place)
    assert not ours.fits(100, 0, 0.0, place)
    ours.others("one", NO_PART, 1.0)
    assert ours.fits(100, 0, 0.0, place)


def test_what_ends_unread_and_a_sequence_that_was_the_last_one_leave_gaps_too() -> None:
    bounds = Bounds(commit_tokens=COMMIT, sequences=2)
    ours, theirs, place = Room(bounds), Room(bounds), (1, 30.0)
    ours.beside(2)
    ours.take(unread := Load(COMMIT, 0, is_stream=True), 1.0)
    ours.take(last := Load(0, 0, is_stream=True), 1.0)
    ours.others("one", theirs.part(1, (1, 20.0)), 1.0)
    ours.give_back(last, 5.0)
    assert ours.next_due(5.0) is None
    assert not ours.fits(0, 0, 5.0, place), "it was one of as many as may be"
    assert ours.next_due(5.0) == 5.0 + TURN_S
    ours.give_back(unread, 6.0)
    assert not ours.fits(100, 0, 6.0, place)
    assert ours.next_due(6.0) == 6.0 + TURN_S
    assert ours.fits(100, 0, 6.0 + TURN_S, place)


def test_a_newcomer_is_not_sent_past_those_that_wait_elsewhere() -> None:
    ours = Room(Bounds(commit_tokens=COMMIT))
    ours.others("one", Room(Bounds()).part(1, (1, 20.0)), 1.0)
    assert not ours.try_take(Load(100, 0, is_stream=True), 9.0)
    ours.others("one", NO_PART, 9.0)
    assert ours.try_take(Load(100, 0, is_stream=True), 9.0)
