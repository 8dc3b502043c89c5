"""A room beside a list of what is in it."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gateway.hold.capacity import BATCH_ALLOWANCE, Bounds, Load, Room

STEPS = st.lists(
    st.tuples(
        st.sampled_from(("take", "take", "begun", "give_back", "look")),
        st.floats(0.0, 1.0),  # seconds before it
        st.integers(1, 5000),
        st.integers(0, 300),
        st.booleans(),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.booleans())
def test_a_room_holds_what_is_in_it_and_is_empty_at_rest(
    steps: list[tuple[str, float, int, int, bool]], has_rate: bool
) -> None:
    bounds = Bounds(commit_tokens=6000, sequences=5, cache_tokens=20_000)
    room = Room(bounds)
    rate = 2000.0 if has_rate else None
    now = 100.0
    loads: list[Load] = []
    for kind, after_s, uncached, output, is_stream in steps:
        now += after_s
        room.rate_per_s = rate  # learnt elsewhere: here it stands still
        match kind:
            case "take":
                load = Load(uncached, output, is_stream)
                room.take(load, now)
                loads.append(load)
            case "begun" if loads:
                room.begun(loads[uncached % len(loads)], now)
            case "give_back" if loads:
                room.give_back(loads.pop(uncached % len(loads)), now)
        is_open = room.is_open(now)
        assert room.sequences == len(loads)
        assert room.kv_tokens == sum(each.uncached + each.output for each in loads)
        assert room.unbegun == sum(each.unbegun for each in loads)
        assert all(not each.unbegun for each in loads if not each.is_stream and each.due <= now)
        assert is_open == (room.unbegun < 6000 and len(loads) < 5)
        assert room.is_open(now, to_batch=True) == (
            len(loads) < 5 and (not room.unbegun or room.unbegun < 6000 * BATCH_ALLOWANCE)
        )
        commits = room.unbegun <= 3000 or room.unbegun + uncached <= 6000
        assert room.fits(uncached, output, now) == (
            commits and (not loads or room.kv_tokens + uncached + output <= 20_000)
        )
        due = room.next_due(now)
        assert due is None or due > now
    for load in loads:
        room.give_back(load, now)
    assert (room.sequences, room.kv_tokens, room.unbegun) == (0, 0, 0)
    assert room.next_due(now) is None


def test_a_slow_replica_is_given_what_it_reads_in_some_time_but_never_less_than_a_chunk() -> None:
    room = Room(Bounds(commit_tokens=16_384, commit_s=0.25))
    assert room.commitment() == 16_384, "nothing is known of its pace yet"
    for rate_per_s, commitment in ((100_000.0, 16_384), (16_000.0, 4_000), (50.0, 2_048)):
        room.rate_per_s = rate_per_s
        assert room.commitment() == commitment
        room.take(first := Load(commitment - 1, 0, is_stream=True), 0.0)
        assert room.is_open(0.0)
        assert not room.fits(2, 0, 0.0)
        assert room.fits(1, 0, 0.0)
        room.take(last := Load(1, 0, is_stream=True), 0.0)
        assert not room.is_open(0.0)
        room.give_back(first, 0.0)
        room.give_back(last, 0.0)


def test_an_unbounded_room_is_always_open() -> None:
    room = Room(Bounds())
    for _ in range(10_000):
        room.take(Load(100_000, 0, is_stream=True), 0.0)
    assert room.is_open(0.0)
    assert room.fits(100_000, 0, 0.0)


def test_the_rate_is_that_of_spans_in_which_there_was_always_something_to_read() -> None:
    room = Room(Bounds(commit_tokens=16_384))
    now = 0.0
    queue = [Load(2000, 0, is_stream=True) for _ in range(40)]
    for load in queue[:4]:
        room.take(load, now)
    for load, following in zip(queue, queue[4:], strict=False):
        now += 0.125
        room.begun(load, now)
        room.take(following, now)
    assert room.rate_per_s == pytest.approx(16_000)


def test_unary_prompts_count_until_they_should_have_been_read() -> None:
    room = Room(Bounds(commit_tokens=2000))
    room.take(Load(5000, 0, is_stream=False), 0.0)
    assert room.is_open(0.0), "nothing is known of its pace yet"
    room.rate_per_s = 1000.0
    room.take(Load(1500, 0, is_stream=False), 0.0)
    room.take(Load(1000, 0, is_stream=False), 0.0)
    assert not room.is_open(1.4)
    assert room.next_due(1.4) == 1.5
    assert room.is_open(1.5)
    assert room.next_due(1.5) == 2.5
    assert room.next_due(2.5) is None
