"""The table of an engine process's states."""

from __future__ import annotations

import itertools

import pytest

from serving.readiness import TRANSITIONS, Readiness, Sign, after


@pytest.mark.parametrize("sign", list(Sign))
def test_nothing_leaves_dead(sign: Sign) -> None:
    assert after(Readiness.DEAD, sign) is Readiness.DEAD


@pytest.mark.parametrize("signs", list(itertools.product(Sign, repeat=3)))
def test_a_draining_engine_never_becomes_ready_again(signs: tuple[Sign, ...]) -> None:
    state = Readiness.DRAINING
    for sign in signs:
        state = after(state, sign)
        assert state in (Readiness.DRAINING, Readiness.DEAD)


def test_an_exit_is_death_from_every_state() -> None:
    assert {after(state, Sign.EXITED) for state in Readiness} == {Readiness.DEAD}


def test_an_engine_starts_becomes_ready_drains_and_ends() -> None:
    states = [Readiness.STARTING]
    for sign in (Sign.ANSWERED, Sign.ANSWERED, Sign.ASKED_TO_STOP, Sign.ANSWERED, Sign.EXITED):
        states.append(after(states[-1], sign))
    starting, ready, draining, dead = Readiness
    assert states == [starting, ready, ready, draining, draining, dead]


def test_every_state_has_its_row() -> None:
    assert set(TRANSITIONS) == set(Readiness)
