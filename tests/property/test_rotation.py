"""Gateways that wait for one replica take turns, though each goes by what it has seen alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.hold.rotation import UNHEARD_S, Rotation


def gateways(number: int) -> dict[str, Rotation]:
    found = {f"gateway {each}": Rotation() for each in range(number)}
    for name, rotation in found.items():
        rotation.name = name
    return found


def in_turn(all_: dict[str, Rotation], waiting: set[str], now: float) -> list[str]:
    return [name for name in waiting if all_[name].ours_at(waiting - {name}) <= now]


@given(
    st.integers(2, 6),
    st.lists(st.tuples(st.sets(st.integers(0, 5), min_size=1), st.floats(0.0, UNHEARD_S / 3))),
)
def test_one_at_a_time_and_who_waits_longest_is_next(
    number: int, gaps: list[tuple[set[int], float]]
) -> None:
    """Each gap is seen, and what was sent into it heard of, up to some ms late."""
    all_ = gateways(number)
    went: dict[str, float] = dict.fromkeys(all_, 0.0)
    now = 1.0
    for who, late_s in gaps:
        now += 3 * UNHEARD_S
        waiting = {f"gateway {each % number}" for each in who}
        for rotation in all_.values():
            rotation.gap(now)
        (next_,) = in_turn(all_, waiting, now)
        assert went[next_] == min(went[name] for name in waiting)
        went[next_] = now
        for name, rotation in all_.items():
            if name == next_:
                rotation.sent(now)
            else:
                rotation.other_sent(next_, now + late_s)


def test_who_does_not_go_keeps_the_others_waiting_no_longer_than_news_take() -> None:
    all_ = gateways(3)
    for rotation in all_.values():
        rotation.gap(5.0)
    waiting = set(all_)
    assert in_turn(all_, waiting, 5.0) == ["gateway 0"]
    assert len(in_turn(all_, waiting, 5.0 + UNHEARD_S)) == 2
    assert len(in_turn(all_, waiting, 5.0 + 2 * UNHEARD_S)) == 3


def test_those_that_went_at_the_same_time_go_by_their_names_and_who_is_gone_is_forgotten() -> None:
    ours = Rotation()
    ours.name = "b"
    ours.gap(9.0)
    ours.sent(8.0)
    ours.other_sent("a", 8.0 + UNHEARD_S / 2)
    ours.other_sent("c", 8.0 - UNHEARD_S / 2)
    assert ours.ours_at(["a", "c"]) == 9.0 + UNHEARD_S
    ours.other_sent("a", 8.5)
    assert ours.ours_at(["a", "c"]) == 9.0
    ours.other_sent("c", 7.0)
    assert ours.ours_at(["a", "c"]) == 9.0 + UNHEARD_S
    ours.sent(8.9)
    ours.gone("c")
    assert ours.ours_at(["c"]) == 9.0 + UNHEARD_S, "it has never sent, as far as is known"
