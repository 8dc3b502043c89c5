"""How long does a model take to come up, and how much longer will this one?

Asked when a client is told when to come back. Answered from the last cold starts of the same model:
of those that took longer than this one has taken already, three in four were up by then. One that
takes longer than any before is believed to take half as long again as it has.

Invariants. What is told is above zero. With the same history it only shrinks while time passes,
except past a start that would by now be over.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from gateway.vocabulary import Seconds

REMEMBERED: Final = 16
QUANTILE: Final = 0.75
OVERTIME_RATIO: Final = 0.5
LEAST_S: Final = 1.0


class ColdStarts:
    """Those of one model."""

    __slots__ = ("_prior_s", "_took_s", "count", "sum_s")

    def __init__(self, prior_s: Seconds) -> None:
        """`prior_s` is believed until one has been seen."""
        self._prior_s = prior_s
        self._took_s: deque[Seconds] = deque(maxlen=REMEMBERED)
        self.count = 0
        self.sum_s: Seconds = 0.0

    def __repr__(self) -> str:
        return f"<ColdStarts: {self.count}, {self.remaining_s(0.0):.1f} s expected>"

    def took(self, seconds: Seconds) -> None:
        """One is over."""
        self._took_s.append(seconds)
        self.count += 1
        self.sum_s += seconds

    def remaining_s(self, elapsed_s: Seconds) -> Seconds:
        """How much longer one will take that began `elapsed_s` ago. O(log) of a few."""
        longer = sorted(took for took in self._took_s or (self._prior_s,) if took > elapsed_s)
        if not longer:
            return max(LEAST_S, elapsed_s * OVERTIME_RATIO)
        up_by = longer[min(len(longer) - 1, int(len(longer) * QUANTILE))]
        return max(LEAST_S, up_by - elapsed_s)
