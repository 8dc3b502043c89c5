"""Who waits for a replica, beside a list that is looked through."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.choose.waiting import Waiting
from gateway.order import Place

PLACES = st.tuples(st.integers(0, 2), st.sampled_from((0.0, 1.0, 1.5, 9.0)))
EVENTS = st.lists(st.tuples(PLACES, st.integers(0, 3), st.integers(0, 5)), max_size=40)


@given(EVENTS, PLACES)
def test_it_knows_who_would_go_after_a_newcomer(
    events: list[tuple[Place, int, int]], newcomer: Place
) -> None:
    waiting = Waiting()
    there: list[tuple[Place, int]] = []
    for place, work, which in events:
        if which < len(there):
            waiting.remove(*there.pop(which))
        else:
            waiting.add(place, work)
            there.append((place, work))
        after = [theirs for at, theirs in there if at > newcomer]
        assert waiting.behind(newcomer) == (len(after), sum(after))
        assert len(waiting) == len(there)
    for each in there:
        waiting.remove(*each)
    assert not waiting
    assert waiting.behind((0, 0.0)) == (0, 0)
