"""Were we right? Predicted hits against what engines say they found in their caches.

Every response that tells its cached tokens is compared with what was predicted when the replica was
chosen and, where the prompt's tokens are known, with what its events said it held at that instant
(*settled*). The verdict on the latter decides how far a replica's events are trusted: several wrong
of the last ones ask for all its events again; if that does not help it is taken at what we sent it,
until a whole run of verdicts is right again.

Invariant: a response that says nothing teaches nothing.
"""

from __future__ import annotations

from typing import Final

from gateway.vocabulary import Tokens

RECENT: Final = 8  # verdicts looked at
WRONG: Final = 3  # of those: something is amiss
RUN: Final = 16  # right ones in a row: trusted again

_MASK: Final = (1 << RECENT) - 1


class Tally:
    """Hits foretold and found; `error_tokens` sums the differences, whatever their sign."""

    __slots__ = ("error_tokens", "exact", "over", "under")

    def __init__(self) -> None:
        self.exact = 0
        self.over = 0
        self.under = 0
        self.error_tokens: Tokens = 0

    def __repr__(self) -> str:
        return f"<Tally {self.exact} exact, {self.over} over, {self.under} under>"

    def add(self, foretold: Tokens, found: Tokens, tolerance: Tokens = 0) -> None:
        """One response; what differs by no more than `tolerance` is exact."""
        error = foretold - found
        self.error_tokens += abs(error)
        if abs(error) <= tolerance:
            self.exact += 1
        elif error > 0:
            self.over += 1
        else:
            self.under += 1


class Audit:
    """The verdicts on one replica."""

    __slots__ = ("_history", "_right", "_was_repaired", "is_doubted", "misses", "predicted",
                 "settled", "wants_repair")  # fmt: skip

    def __init__(self) -> None:
        self.predicted = Tally()
        self.settled = Tally()
        self.is_doubted = False  # its events are not to be believed for now
        self.misses = False  # the last response found more than its events had told
        self.wants_repair = False
        self._history = 0  # one bit per verdict, 1 for wrong
        self._right = 0  # in a row
        self._was_repaired = False

    def __repr__(self) -> str:
        return f"<Audit {self.settled!r}{', doubted' if self.is_doubted else ''}>"

    def judge(self, least: Tokens, most: Tokens, found: Tokens) -> None:
        """Of a replica whose events are read: `found` should have been between the two."""
        is_wrong = not least <= found <= most
        self.misses = found > most
        self._history = (self._history << 1 | is_wrong) & _MASK
        self._right = 0 if is_wrong else self._right + 1
        if self._right >= RUN:
            self.is_doubted = self._was_repaired = False
        if self._history.bit_count() < WRONG:
            return
        self._history = 0
        if self._was_repaired:
            self.is_doubted = True
        else:
            self.wants_repair = self._was_repaired = True
