"""Which one, given what each would cost?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.choose.chooser import Picker

if TYPE_CHECKING:
    from random import Random


class Cheapest(Picker):
    """The cheapest; among equals, any with the same chance.

    Chance matters: several gateways that broke ties alike would all send to the same replica.
    """

    __slots__ = ("_rng",)

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def pick(self, costs: list[float]) -> int:
        """O(replicas)."""
        least, found, alike = costs[0], 0, 0
        for at, cost in enumerate(costs):
            if cost < least:
                least, found, alike = cost, at, 1
            elif cost == least:
                alike += 1
        if alike == 1:
            return found
        return self._rng.choice([at for at, cost in enumerate(costs) if cost == least])


class TwoChoices(Picker):
    """The cheaper of two drawn at random.

    With stale loads, as of several gateways, everybody's cheapest is the same one; two draws are
    nearly as good as looking at all (Mitzenmacher) and do not herd.
    """

    __slots__ = ("_rng",)

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def pick(self, costs: list[float]) -> int:
        """O(1)."""
        if len(costs) == 1:
            return 0
        one, other = self._rng.sample(range(len(costs)), 2)
        return one if costs[one] <= costs[other] else other


class InTurn(Picker):
    """One after the other, whatever they cost."""

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn = -1

    def pick(self, costs: list[float]) -> int:
        """O(1)."""
        self._turn += 1
        return self._turn % len(costs)
