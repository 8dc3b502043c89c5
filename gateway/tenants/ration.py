"""How much of what is left may one of several gateways let in before it knows what the others did?

What is spent elsewhere is told a moment later. If everybody let in all that seems to be left, a
burst would pass a limit several times over. So turns are taken, by the wall clock, which gateways
share to within some milliseconds; and of what was left when a turn began, each of n gateways takes

    out of turn       a 2n-th part, rounded down
    in its turn       all that the others do not take so

Nothing is taken by right of a turn in its last part, so that the next in turn has heard. Who has
all of a tenant's requests to itself may still have all there is, the last one too, if it waits.
Something larger than that may be had in turn if it is the first: or it could never be had.

Invariants. While clocks agree and news is no later than that last part, what n gateways take in one
turn is no more than was left, but for what is larger than half of it. Alone, everything may be
taken. Whoever asks in its turn, and is first, gets what is left.
"""

from __future__ import annotations

from typing import Final

import msgspec

TURN_S: Final = 0.08
PAUSE_S: Final = 0.05  # at its end


class Ranks(msgspec.Struct, frozen=True):
    """How many gateways there are, and which of them, from 0, we are."""

    gateways: int = 1
    ours: int = 0

    def is_our_turn(self, wall: float) -> bool:
        """By the wall clock, in seconds."""
        turns = wall / TURN_S
        return int(turns) % self.gateways == self.ours and turns % 1.0 < 1.0 - PAUSE_S / TURN_S


ALONE: Final = Ranks()


class Ration:
    """Of one kind of thing: requests, tokens, or places."""

    __slots__ = ("_left", "_taken", "_turn")

    def __init__(self) -> None:
        self._turn = -1  # the one of which the rest is told
        self._left = 0
        self._taken = 0

    def __repr__(self) -> str:
        return f"<Ration: {self._taken} of {self._left} taken>"

    def allows(self, amount: int, left: int, ranks: Ranks, wall: float) -> bool:
        """May `amount`, no more than is `left`, be taken now? Changes nothing that is asked for
        twice."""
        turn = int(wall / TURN_S)
        if turn != self._turn:
            self._turn, self._left, self._taken = turn, left, 0
        part = self._left // (2 * ranks.gateways)
        if ranks.is_our_turn(wall):
            if not self._taken:
                return True
            part = self._left - (ranks.gateways - 1) * part
        return self._taken + amount <= part

    def take(self, amount: int) -> None:
        """It is taken."""
        self._taken += amount
