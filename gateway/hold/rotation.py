"""Which of several gateways that wait for one replica is the next to fill a gap there? Pure.

All of them see the gap at about the same time, and each would send the prompt it has ready. Instead
whoever has not sent for longest goes first, and each of the others UNHEARD_S after the one before
it, if the gap is still there by then: who is in turn and does not go keeps nobody waiting longer.
No clock is shared: each goes by when it saw the others send, which is late by less than UNHEARD_S;
those that it saw go within that time of each other are taken in the order of their names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.vocabulary import Seconds

UNHEARD_S: Final = 0.03
"""After so long others' news are here, as a rule: a tick of `peers.tell_every_s`, and its way."""


class Rotation:
    """Of one replica, as one gateway sees it."""

    __slots__ = ("_gap_at", "_own_at", "_sent_at", "name")

    def __init__(self) -> None:
        self.name = ""
        """Our own; others compare it with theirs."""
        self._own_at: Seconds = 0.0
        self._sent_at: dict[str, Seconds] = {}  # by gateway
        self._gap_at: Seconds = 0.0

    def __repr__(self) -> str:
        return f"<Rotation of {self.name}, since {self._gap_at:.3f}>"

    def gap(self, now: Seconds) -> None:
        """There is room again."""
        self._gap_at = now

    def sent(self, now: Seconds) -> None:
        """We have."""
        self._own_at = now

    def other_sent(self, peer: str, now: Seconds) -> None:
        """Another gateway has."""
        self._sent_at[peer] = now

    def gone(self, peer: str) -> None:
        """It is not there any more."""
        self._sent_at.pop(peer, None)

    def ours_at(self, waiting: Iterable[str]) -> Seconds:
        """When we may go, if these others wait too. O(those that wait)."""
        before = sum([self._is_before_us(peer) for peer in waiting])
        return self._gap_at + before * UNHEARD_S

    def _is_before_us(self, peer: str) -> bool:
        later_s = self._sent_at.get(peer, 0.0) - self._own_at
        return peer < self.name if abs(later_s) <= UNHEARD_S else later_s < 0.0
