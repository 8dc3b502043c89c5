"""When a prompt is worth reading: while predictions are not known to come true without."""

from __future__ import annotations

from gateway.choose.audit import SOME, Audit

BLOCK = 16
DISPATCHES = 4 * SOME


def read(audit: Audit) -> int:
    """How many of the next prompts are."""
    return sum(audit.takes_reading() for _ in range(DISPATCHES))


def test_every_prompt_is_read_until_predictions_have_come_true() -> None:
    audit = Audit()
    assert read(audit) == DISPATCHES
    for _ in range(100):
        audit.foresaw(320, 320, BLOCK)
    assert read(audit) == DISPATCHES / SOME


def test_what_is_off_by_a_block_is_no_surprise() -> None:
    audit = Audit()
    for _ in range(100):
        audit.foresaw(320, 320 - BLOCK, BLOCK)
    assert read(audit) == DISPATCHES / SOME


def test_surprises_have_every_prompt_read_again() -> None:
    audit = Audit()
    for _ in range(100):
        audit.foresaw(320, 320, BLOCK)
    for _ in range(3):
        audit.foresaw(320, 0, BLOCK)
    assert read(audit) == DISPATCHES


def test_responses_that_say_nothing_leave_it_at_reading_all() -> None:
    assert read(Audit()) == DISPATCHES
