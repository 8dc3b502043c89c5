"""When a prompt is worth reading: while predictions do not come true without."""

from __future__ import annotations

from gateway.choose.audit import SOME, Curiosity

BLOCK = 16
DISPATCHES = 4 * SOME


def read(curiosity: Curiosity) -> int:
    """How many of the next prompts are."""
    return sum(curiosity.takes() for _ in range(DISPATCHES))


def test_one_of_some_is_read_while_predictions_come_true() -> None:
    curiosity = Curiosity()
    assert read(curiosity) == DISPATCHES / SOME
    for _ in range(100):
        curiosity.foresaw(320, 320, BLOCK)
    assert read(curiosity) == DISPATCHES / SOME


def test_what_is_off_by_a_block_is_no_surprise() -> None:
    curiosity = Curiosity()
    for _ in range(100):
        curiosity.foresaw(320, 320 - BLOCK, BLOCK)
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
