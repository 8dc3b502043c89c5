"""Verdicts that are still good: a bounded memory in which all are good for equally long.

Invariants. No more than `most` are kept; none is told that is older than `good_for_s`; where there
is no room the oldest goes. O(1) each, over time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.trust.question import Verdict
    from gateway.vocabulary import Seconds


class Verdicts:
    """By the key of the question."""

    __slots__ = ("_good_for_s", "_known", "_most")

    def __init__(self, good_for_s: Seconds, most: int) -> None:
        self._good_for_s = good_for_s
        self._most = most
        self._known: dict[bytes, tuple[Seconds, Verdict]] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return f"<Verdicts {len(self._known)}>"

    def known(self, key: bytes, now: Seconds) -> Verdict | None:
        """None: to be asked."""
        found = self._known.get(key)
        return None if found is None or now - found[0] >= self._good_for_s else found[1]

    def remember(self, key: bytes, verdict: Verdict, now: Seconds) -> None:
        """Told now; what it replaces is forgotten."""
        self._known.pop(key, None)
        while self._known:
            oldest = next(iter(self._known))
            is_good = now - self._known[oldest][0] < self._good_for_s
            if is_good and len(self._known) < self._most:
                break
            del self._known[oldest]
        if self._good_for_s > 0:
            self._known[key] = (now, verdict)
