"""When a prompt is worth reading: while predictions do not come true without."""

from __future__ import annotations

import pytest

from gateway.choose.audit import SELDOM, SOME, Curiosity

BLOCK = 16
DISPATCHES = 4 * SOME


def read(curiosity: Curiosity) -> int:
    """How many of the next prompts are."""
    return sum(curiosity.takes() for _ in range(DISPATCHES))


def places(curiosity: Curiosity, found: int, prompts: int) -> list[int]:
    """Which of so many prompts are read, where each response says so much of 320 tokens."""
    taken = []
    for at in range(prompts):
        if curiosity.takes():
            taken.append(at)
        curiosity.foresaw(320, found, BLOCK)
    return taken


@pytest.mark.parametrize("found", [320, 320 - BLOCK])
def test_fewer_and_fewer_are_read_while_predictions_come_true_to_the_block(found: int) -> None:
    assert places(Curiosity(), found, 200) == [0, 16, 48, 112, 176]
    assert SELDOM == 64


def test_one_surprise_has_one_of_some_read_again() -> None:
    curiosity = Curiosity()
    places(curiosity, 320, 200)
    while len(places(curiosity, 0, 1)) == 0:
        pass
    assert len(places(curiosity, 320, SELDOM)) > SELDOM / SOME


def test_one_of_some_is_read_where_responses_say_nothing() -> None:
    curiosity = Curiosity()
    assert read(curiosity) == DISPATCHES / SOME
    assert read(curiosity) == DISPATCHES / SOME


def test_surprises_have_every_prompt_read() -> None:
    curiosity = Curiosity()
    for _ in range(100):
        curiosity.foresaw(320, 320, BLOCK)
    for _ in range(8):
        curiosity.foresaw(320, 0, BLOCK)
    assert sum(curiosity.takes() for _ in range(SOME)) == SOME


def test_where_responses_say_nothing_it_calms_down() -> None:
    curiosity = Curiosity()
    for _ in range(8):
        curiosity.foresaw(320, 0, BLOCK)
    for _ in range(DISPATCHES):
        curiosity.takes()
    assert read(curiosity) == DISPATCHES / SOME


def test_whoever_wants_all_of_them_gets_all() -> None:
    curiosity = Curiosity(is_all=True)
    for _ in range(100):
        curiosity.foresaw(320, 320, BLOCK)
    assert read(curiosity) == DISPATCHES
