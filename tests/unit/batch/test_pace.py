"""How much room lines are left, where, and which make way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.batch.pace import CALM_S, FREE_PER_REQUEST, Pace, displaced
from gateway.fleet.ledger import Replica
from gateway.vocabulary import ReplicaId
from tests.builders import a_replica

R1, R2 = ReplicaId("r1:8000"), ReplicaId("r2:8000")


def replicas(*requests: int) -> list[Replica]:
    return [a_replica(f"r{n}", requests=each) for n, each in enumerate(requests, 1)]


def test_a_fleet_that_serves_nobody_else_is_all_for_lines() -> None:
    assert Pace(8, 1).room(replicas(5, 0), {R1: 5}, 0.0) == {R1: 8, R2: 8}


def test_each_interactive_request_keeps_two_replicas_free() -> None:
    pace = Pace(8, 1)
    room = pace.room(replicas(1, 0, 3, 0), {ReplicaId("r3:8000"): 3}, 0.0)
    assert sorted(room.values()) == [0, 0, 8, 8]
    assert (room[R1], room[ReplicaId("r3:8000")]) == (0, 8)  # where lines are, they stay
    room = pace.room(replicas(2, 0, 3, 0), {ReplicaId("r3:8000"): 3}, 1.0)
    assert sum(room.values()) == 1


def test_it_is_the_most_of_late_that_counts() -> None:
    pace = Pace(8, 1)
    assert sum(pace.room(replicas(1, 1), {}, 0.0).values()) == 1
    for at in (0.1, CALM_S / 2, CALM_S):
        assert sum(pace.room(replicas(0, 0), {}, at).values()) == 1
    assert sum(pace.room(replicas(0, 0), {}, CALM_S + 0.1).values()) == 16


def test_where_nothing_is_left_over_the_least_busy_replica_goes_on_with_the_floor() -> None:
    pace = Pace(8, 2)
    assert pace.room(replicas(9, 4), {}, 0.0) == {R1: 0, R2: 2}
    assert pace.room(replicas(9, 10), {R2: 1}, 0.1) == {R1: 0, R2: 2}  # its line stays
    assert Pace(8, 0).room(replicas(9, 4), {}, 0.0) == {R1: 0, R2: 0}


def test_the_window_grows_with_every_answer_up_to_the_room() -> None:
    pace = Pace(4, 1)
    room = pace.room(replicas(0, 0), {}, 0.0)
    assert pace.window(room) == 1
    allowed = []
    for _ in range(9):
        pace.answered()
        allowed.append(pace.window(room))
    assert allowed == [2, 3, 4, 5, 6, 7, 8, 8, 8]
    pace.refused()
    assert pace.window(room) == 4


def test_interactive_work_cuts_the_window_at_once_and_it_grows_anew() -> None:
    pace = Pace(16, 1)
    for _ in range(20):
        pace.answered()
    assert pace.window(pace.room(replicas(16), {R1: 16}, 0.0)) == 16
    assert pace.window(pace.room(replicas(17), {R1: 16}, 0.1)) == 1
    quiet = pace.room(replicas(1), {R1: 1}, 0.1 + 2 * CALM_S)
    assert (sum(quiet.values()), pace.window(quiet)) == (16, 1)


def test_nothing_may_run_where_nobody_serves() -> None:
    pace = Pace(16, 1)
    assert pace.window(pace.room([], {}, 0.0)) == 0


def test_the_youngest_make_way_on_the_replica_that_is_wanted() -> None:
    lines = [(R1, 1), (R2, 2), (R1, 3), (None, 4), (R1, 5)]
    assert displaced({R1: 1, R2: 8}, lines) == [3, 5]
    assert displaced({R2: 0}, lines) == [2]


FLIGHTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), max_size=8)
STEPS = st.lists(st.tuples(FLIGHTS, st.booleans(), st.floats(0.0, 2 * CALM_S)), max_size=30)


@given(STEPS, st.integers(1, 16), st.integers(0, 2))
def test_lines_keep_to_what_is_left_over(
    steps: list[tuple[list[tuple[int, int]], bool, float]], per_replica: int, floor: int
) -> None:
    """Steps are (ours and others' per replica, was a line answered, seconds since the last)."""
    pace, now = Pace(per_replica, floor), 0.0
    for inflight, answered, later in steps:
        now += later
        ours = {ReplicaId(f"r{n}:8000"): own for n, (own, _) in enumerate(inflight, 1)}
        room = pace.room(replicas(*[sum(both) for both in inflight]), ours, now)
        interactive = sum(others for _, others in inflight)
        for replica, (_, others) in zip(room, inflight, strict=True):
            assert not others or room[replica] <= floor
        assert not inflight or sum(room.values()) >= min(floor, per_replica)
        filled = [each for each in room.values() if each]
        left_over = len(inflight) - FREE_PER_REQUEST * interactive
        assert len(filled) <= max(left_over, min(floor, 1))
        assert sum(filled) <= max(left_over * per_replica, floor)
        if answered:
            pace.answered()
        else:
            pace.refused()
        assert pace.window(room) <= sum(room.values())
        assert pace.window(room) >= min(1, sum(room.values()))
