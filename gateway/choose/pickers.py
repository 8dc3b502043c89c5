"""Which one, given what each would cost?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random


class Cheapest:
    """The cheapest; among equals, any with the same chance.

    Chance matters: several gateways that broke ties alike would all send to the same replica.
    """

    __slots__ = ("_rng",)

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def pick(self, costs: Sequence[float]) -> int:
        """O(replicas)."""
        least = min(costs)
        if costs.count(least) == 1:
            return costs.index(least)
        return self._rng.choice([i for i, cost in enumerate(costs) if cost == least])


class InTurn:
    """One after the other, whatever they cost."""

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn = -1

    def pick(self, costs: Sequence[float]) -> int:
        """O(1)."""
        self._turn += 1
        return self._turn % len(costs)
