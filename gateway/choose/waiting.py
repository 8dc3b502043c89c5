"""Who waits for one replica and in which order, for those who price a wait there.

A replica owes the prefill of everybody who was promised to it. Of those who still wait in the
gateway, though, only the ones who go first stand before a newcomer: a short prompt overtakes long
ones, and must not be kept from a replica by what it will not wait for.

Invariant. What was added and not removed is here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.order import Place
    from gateway.vocabulary import Tokens


class Waiting:
    """Work by place. Looking costs O(log n) and a sum over those behind; n is small while a pool
    keeps up."""

    __slots__ = ("_places", "_works")

    def __init__(self) -> None:
        self._places: list[Place] = []  # in order
        self._works: list[Tokens] = []  # in the same order

    def __repr__(self) -> str:
        return f"<Waiting {len(self._places)}, {sum(self._works)} work>"

    def __len__(self) -> int:
        return len(self._places)

    @property
    def work(self) -> Tokens:
        """Of all that wait. O(n)."""
        return sum(self._works)

    def add(self, place: Place, work: Tokens) -> None:
        """It waits. Among equals, who came first goes first."""
        at = bisect_right(self._places, place)
        self._places.insert(at, place)
        self._works.insert(at, work)

    def remove(self, place: Place, work: Tokens) -> None:
        """It waits no longer."""
        at = bisect_left(self._places, place)
        while self._works[at] != work:  # equals are told apart by their work, if by anything
            at += 1
        del self._places[at], self._works[at]

    def behind(self, place: Place) -> tuple[int, Tokens]:
        """Who would go after a newcomer with this place: how many, and their work."""
        works = self._works[bisect_right(self._places, place) :]
        return len(works), sum(works)
