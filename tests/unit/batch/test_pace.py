"""How much room lines are left, and which make way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.batch.pace import Pace, displaced
from gateway.vocabulary import ReplicaId
from tests.builders import a_replica

R1, R2 = ReplicaId("r1:8000"), ReplicaId("r2:8000")


def test_a_quiet_replica_takes_many_and_a_busy_one_the_floor() -> None:
    pace = Pace(8, 1)
    quiet, busy = a_replica("r1", requests=5), a_replica("r2", requests=3)
    assert pace.caps([quiet, busy], {R1: 5, R2: 2}) == {R1: 8, R2: 1}


def test_the_window_grows_with_every_answer_up_to_the_room() -> None:
    pace = Pace(4, 1)
    caps = pace.caps([a_replica("r1"), a_replica("r2")], {})
    assert pace.allow(caps) == 2  # the floor of each
    allowed = []
    for _ in range(10):
        pace.answered()
        allowed.append(pace.allow(caps))
    assert allowed == [3, 4, 5, 6, 7, 8, 8, 8, 8, 8]


def test_interactive_work_cuts_the_window_at_once_and_it_grows_anew() -> None:
    pace = Pace(16, 1)
    quiet = pace.caps([a_replica("r1")], {})
    for _ in range(20):
        pace.answered()
        pace.allow(quiet)
    busy = pace.caps([a_replica("r1", requests=17)], {R1: 16})
    assert pace.allow(busy) == 1
    assert pace.allow(quiet) == 1
    pace.answered()
    assert pace.allow(quiet) == 2


def test_a_refusal_halves_it() -> None:
    pace = Pace(16, 1)
    caps = pace.caps([a_replica("r1")], {})
    for _ in range(20):
        pace.answered()
        pace.allow(caps)
    pace.refused()
    assert pace.allow(caps) == 8


def test_nothing_may_run_where_nobody_serves() -> None:
    assert Pace(16, 1).allow({}) == 0


def test_the_youngest_make_way_on_the_replica_that_is_wanted() -> None:
    lines = [(R1, 1), (R2, 2), (R1, 3), (None, 4), (R1, 5)]
    assert displaced({R1: 1, R2: 8}, lines) == [3, 5]
    assert displaced({R2: 0}, lines) == [2]


COUNTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=5)


@given(COUNTS, st.integers(1, 16), st.integers(0, 2), st.lists(st.booleans(), max_size=40))
def test_the_window_is_never_above_the_room(
    inflight: list[tuple[int, int]], per_replica: int, floor: int, answers: list[bool]
) -> None:
    """`inflight` is (ours, others') per replica."""
    pace = Pace(per_replica, floor)
    replicas = [a_replica(f"r{n}", requests=sum(both)) for n, both in enumerate(inflight)]
    ours = {replica.id: both[0] for replica, both in zip(replicas, inflight, strict=True)}
    room = sum(floor if others else per_replica for _, others in inflight)
    for answered in answers:
        if answered:
            pace.answered()
        else:
            pace.refused()
        allowed = pace.allow(pace.caps(replicas, ours))
        assert allowed <= max(room, len(inflight) * floor)
        assert allowed >= min(room, len(inflight) * floor)
