"""May we try again?

Three facts decide: the error's own retry rule, how often we tried, and the budget. The budget is
a bucket filled by requests (a share of each) and by time (a trickle), so that when everything fails
at once retries add at most that share of load: a storm cannot feed itself.

Invariant: over any span, retries <= burst + ratio x requests + trickle x seconds.
"""

from __future__ import annotations

from gateway.errors import GatewayError, Retry
from gateway.vocabulary import Seconds


class Retries:
    """The retry policy and its budget."""

    __slots__ = ("_at", "_burst", "_level", "_most", "_per_s", "_ratio")

    def __init__(self, most: int, ratio: float, per_s: float) -> None:
        """`most` tries per request; `ratio` retries earned per request, `per_s` per second."""
        self._most = most
        self._ratio = ratio
        self._per_s = per_s
        self._burst = max(1.0, 10.0 * per_s)
        self._level = self._burst
        self._at: Seconds = 0.0

    def __repr__(self) -> str:
        return f"<Retries budget {self._level:.1f} of {self._burst:.0f}>"

    def earn(self) -> None:
        """A request came in. O(1)."""
        self._level = min(self._burst, self._level + self._ratio)

    def may_follow(self, attempt: int, now: Seconds) -> bool:
        """Could another try follow this one, going by the count and the budget? Takes nothing."""
        self._trickle(now)
        return attempt < self._most and self._level >= 1.0

    def allows(self, error: GatewayError, attempt: int, now: Seconds) -> bool:
        """May try number `attempt`, which ended in `error`, be followed by another?

        Takes one from the budget when it says yes. The caller has made sure that no byte has
        reached the client.
        """
        if not self.may_follow(attempt, now):
            return False
        match error.retry:
            case Retry.NEVER:
                return False
            case Retry.ONCE if attempt > 1:
                return False
            case _:
                self._level -= 1.0
                return True

    def _trickle(self, now: Seconds) -> None:
        if now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self._per_s)
            self._at = now
