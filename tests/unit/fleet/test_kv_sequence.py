"""The rules of `kv_sequence`, one by one, each where chance seldom leads."""

from __future__ import annotations

import pytest

from gateway.fleet.kv_sequence import Apply, Ask, Effect, EventSequence, Patience, Retold, Say
from gateway.kv_cache import Certainty

PATIENCE = Patience()
EXACT, PARTIAL, DEGRADED = Certainty.EXACT, Certainty.PARTIAL, Certainty.DEGRADED


def b(number: int, life: int = 0) -> bytes:
    return b"%d of life %d" % (number, life)


def applied(effects: list[Effect]) -> list[int]:
    return [effect.number for effect in effects if isinstance(effect, Apply)]


def asked(effects: list[Effect]) -> int | None:
    """From which number on."""
    asks = [effect.first for effect in effects if isinstance(effect, Ask)]
    assert len(asks) <= 1
    return asks[0] if asks else None


def caught_up(numbers: int = 3, patience: Patience = PATIENCE) -> EventSequence:
    """EXACT, having been replayed so many batches."""
    sequence = EventSequence(True, patience)
    assert asked(sequence.begin(0.0)) == 0
    for number in range(numbers):
        sequence.replayed(1, number, b(number), 0.0)
    assert asked(sequence.ended(1, 0.0)) == numbers - 1
    sequence.replayed(2, numbers - 1, b(numbers - 1), 0.0)
    assert sequence.ended(2, 0.0) == [Say(EXACT)]
    return sequence


def adrift() -> EventSequence:
    """Without a replay: 0, then 2."""
    sequence = EventSequence(False, PATIENCE)
    sequence.begin(0.0)
    sequence.live(0, b(0), 0.0)
    assert sequence.certainty is EXACT
    assert applied(sequence.live(2, b(2), 0.0)) == [2]
    assert sequence.certainty is DEGRADED
    return sequence


def test_a_round_that_brought_news_is_not_believed_to_be_whole() -> None:
    sequence = EventSequence(True, PATIENCE)
    sequence.begin(0.0)
    sequence.replayed(1, 0, b(0), 0.0)
    assert asked(sequence.ended(1, 0.0)) == 0  # numbers 1 and 2 were lost
    sequence.replayed(2, 0, b(0), 0.0)
    assert applied(sequence.replayed(2, 1, b(1), 0.0)) == [1]
    sequence.replayed(2, 2, b(2), 0.0)
    assert sequence.certainty is DEGRADED


def test_but_where_the_live_stream_goes_on_from_its_end() -> None:
    sequence = EventSequence(True, PATIENCE)
    sequence.begin(0.0)
    sequence.live(1, b(1), 0.0)
    sequence.live(2, b(2), 0.0)
    sequence.replayed(1, 0, b(0), 0.0)
    effects = sequence.ended(1, 0.0)
    assert applied(effects) == [1, 2]
    assert effects[-1] == Say(EXACT)


def test_a_gap_in_a_round_ends_it() -> None:
    sequence = EventSequence(True, PATIENCE)
    sequence.begin(0.0)
    sequence.replayed(1, 0, b(0), 0.0)
    assert asked(sequence.replayed(1, 2, b(2), 0.0)) == 0
    assert sequence.replayed(1, 1, b(1), 0.0) == []  # of the round before
    assert sequence.ended(1, 0.0) == []


def test_a_gap_is_asked_for_and_what_came_since_waits() -> None:
    sequence = caught_up()
    assert sequence.live(4, b(4), 1.0) == [Say(DEGRADED), Ask(2, 3)]
    assert sequence.live(5, b(5), 1.0) == []
    sequence.replayed(3, 2, b(2), 1.0)
    assert applied(sequence.replayed(3, 3, b(3), 1.0)) == [3]
    assert sequence.ended(3, 1.0) == [Apply(4, b(4)), Apply(5, b(5)), Say(EXACT)]
    assert sequence.gaps == 1


@pytest.mark.parametrize("reply", ["another batch", "nothing"])
def test_who_does_not_know_the_last_batch_lives_another_life(reply: str) -> None:
    sequence = caught_up()
    assert asked(sequence.idle(PATIENCE.verify_after_s)) == 2
    if reply == "nothing":
        effects = sequence.ended(3, 31.0)
    else:
        effects = sequence.replayed(3, 2, b(2, life=1), 31.0)
    assert effects == [Say(DEGRADED), Ask(0, 4)]
    effects = sequence.replayed(4, 0, b(0, life=1), 31.0)
    assert effects == [Retold(), Apply(0, b(0, life=1))]


def test_numbers_that_start_again_are_another_life() -> None:
    sequence = caught_up()
    sequence.live(3, b(3), 1.0)
    assert sequence.live(0, b(0, 1), 1.0) == [Retold(), Say(DEGRADED), Ask(0, 3)]
    silent = adrift()
    assert silent.live(0, b(0, 1), 1.0) == [Retold(), Apply(0, b(0, 1)), Say(EXACT)]


def test_what_is_no_longer_kept_makes_all_that_is_partial() -> None:
    sequence = caught_up()
    sequence.live(9, b(9), 1.0)
    assert sequence.replayed(3, 8, b(8), 1.0) == [Retold(), Apply(8, b(8))]
    assert sequence.ended(3, 1.0) == [Apply(9, b(9)), Say(PARTIAL)]


def test_a_cut_wire_is_a_reason_to_look() -> None:
    assert asked(caught_up().cut(1.0)) == 2
    silent = EventSequence(False, PATIENCE)
    silent.begin(0.0)
    silent.live(0, b(0), 0.0)
    assert silent.cut(0.0) == [Say(DEGRADED)]
    assert applied(silent.live(1, b(1, life=1), 0.0)) == [1]
    assert silent.certainty is DEGRADED


def test_a_first_live_number_below_what_is_known_is_a_reason_to_look() -> None:
    assert asked(caught_up().live(1, b(1, life=1), 1.0)) == 2
    assert caught_up().live(3, b(3), 1.0) == [Apply(3, b(3))]


def test_only_what_comes_after_a_hole_makes_up_for_it() -> None:
    sequence = adrift()
    assert sequence.cleared(0) == []
    assert sequence.cleared(2) == [Say(EXACT)]
    assert sequence.unreadable(3) == [Say(DEGRADED)]
    assert sequence.cleared(3) == []
    assert sequence.cleared(4) == [Say(EXACT)]


def test_live_batches_for_which_there_was_no_room_are_asked_for() -> None:
    sequence = EventSequence(True, Patience(held_batches=1))
    sequence.begin(0.0)
    for number in (1, 2):
        sequence.live(number, b(number), 0.0)
    sequence.replayed(1, 0, b(0), 0.0)
    effects = sequence.ended(1, 0.0)
    assert applied(effects) == [1]
    assert asked(effects) == 1


def failed(patience: Patience = PATIENCE) -> tuple[EventSequence, list[Effect]]:
    """A gap at 3, then 5 and 8, and nobody answers."""
    sequence = caught_up(patience=patience)
    for number in (4, 5, 8):
        sequence.live(number, b(number), 1.0)
    now, effects = 1.0, list[Effect]()
    for _ in range(patience.fruitless_rounds):
        now += patience.silence_s
        effects = sequence.idle(now)
    return sequence, effects


def test_what_cannot_be_had_is_passed_over_and_asked_for_later() -> None:
    sequence, effects = failed()
    assert applied(effects) == [4, 5, 8]
    assert sequence.certainty is DEGRADED
    assert sequence.cleared(5) == []  # before the last hole
    assert applied(sequence.live(9, b(9), 5.0)) == [9]
    assert sequence.idle(5.0) == []
    assert asked(sequence.idle(5.0 + PATIENCE.retry_after_s)) == 0
    assert sequence.cleared(9) == []


def test_a_clearing_after_the_last_hole_ends_the_drift() -> None:
    sequence, _ = failed()
    assert sequence.cleared(8) == [Say(EXACT)]
    assert asked(sequence.live(10, b(10), 5.0)) == 8


def test_what_there_was_no_room_for_is_a_hole() -> None:
    sequence, effects = failed(Patience(held_batches=2))
    assert applied(effects) == [4, 5]
    assert sequence.cleared(5) == []
    roomy = Patience(held_bytes=2 * len(b(4)))
    assert applied(failed(roomy)[1]) == [4, 5]
