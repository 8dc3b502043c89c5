"""The highest rate at which the objectives are met: bracketing, then bisection.

Pure. Rates go up by doubling until one is missed (or down by halving until one is met), and the
bracket is halved until it is `precision` of its lower end wide. Measured rates are noisy near the
edge: the answer is a bracket, whose ends were both tried.
"""

from __future__ import annotations

from math import sqrt


class Search:
    """Owns the bracket. Ask for `next_rate`, try it, `tell`, until there is none."""

    def __init__(
        self,
        first_per_s: float,
        *,
        least_per_s: float = 0.0,
        precision: float = 0.05,
        most_tries: int = 16,
    ) -> None:
        """`least_per_s` is the lowest rate at which enough comes to judge by."""
        if first_per_s <= 0 or precision <= 0:
            raise ValueError("the first rate and the precision are above 0")
        self.highest_met: float | None = None
        self.lowest_missed: float | None = None
        self.tries = 0
        self._first = first_per_s
        self._least = least_per_s
        self._precision = precision
        self._most_tries = most_tries

    def __repr__(self) -> str:
        return f"<Search {self.highest_met} .. {self.lowest_missed} after {self.tries}>"

    def next_rate(self) -> float | None:
        """What to try now; None when the bracket is narrow enough, or tries are used up."""
        met, missed = self.highest_met, self.lowest_missed
        if self.tries >= self._most_tries:
            return None
        if met is None:
            rate = self._first if missed is None else missed / 2
            return rate if rate >= self._least else None
        if missed is None:
            return met * 2
        if missed <= met * (1 + self._precision):
            return None
        return sqrt(met * missed)

    def tell(self, rate_per_s: float, is_met: bool) -> None:
        """What became of a try."""
        self.tries += 1
        if is_met:
            self.highest_met = max(rate_per_s, self.highest_met or 0.0)
        else:
            self.lowest_missed = min(rate_per_s, self.lowest_missed or rate_per_s)
