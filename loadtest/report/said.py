"""How figures are said: milliseconds, rates, shares, and a median with its range.

Pure. Three significant digits: more are not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

NONE = "\N{EN DASH}"


def number(value: float | None) -> str:
    """Three significant digits, whole from a hundred on, thousands apart."""
    if value is None:
        return NONE
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", "\N{THIN SPACE}")
    return f"{value:.3g}" if abs(value) >= 0.01 or value == 0 else f"{value:.1g}"


def ms(seconds: float | None) -> str:
    """Milliseconds, without the unit."""
    return NONE if seconds is None else number(seconds * 1e3)


def percent(ratio: float | None) -> str:
    """A ratio as per cent."""
    if ratio is None:
        return NONE
    return "100 %" if ratio == 1 else f"{ratio * 100:.1f} %"


def count(value: int) -> str:
    """A whole number, thousands apart."""
    return f"{value:,}".replace(",", "\N{THIN SPACE}")


class Spread(msgspec.Struct, frozen=True):
    """One figure over the repeats of a run."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """None unless every repeat has the figure."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        return cls(median(known), min(known), max(known))

    def times(self, factor: float) -> Spread:
        """In another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def __str__(self) -> str:
        if self.low == self.high:
            return number(self.median)
        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"
