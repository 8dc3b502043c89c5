"""Replicas priced together: what work costs at each, and what one teaches of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.choose.target import Target
    from gateway.vocabulary import ReplicaView


class Pool:
    """Some replicas that are priced together, and what changes slowly between them.

    `slopes` is what a token of work costs at each, own time and others'.
    """

    __slots__ = ("mean_s", "names", "replicas", "rows", "slopes", "targets")

    def __init__(self, replicas: Sequence[ReplicaView], targets: list[Target]) -> None:
        self.replicas = replicas
        self.names = [one.id for one in replicas]
        self.targets = targets
        self.refresh()

    def __repr__(self) -> str:
        return f"<Pool of {len(self.targets)} replicas>"

    def refresh(self) -> None:
        """Rates have been learnt, or others have become busy.

        The mean is one over the mean rate, not the mean of one over rates: one slow replica must
        not make uncached work look dear to a pool that would hardly feel it.
        """
        self._share()
        rates = [each.pace.rate_per_s for each in self.targets]
        self.mean_s = len(rates) / sum(rates, 0.0)
        self.slopes = [
            1.0 / rate + each.congestion * self.mean_s
            for rate, each in zip(rates, self.targets, strict=True)
        ]
        self.rows = [  # what is looked at for every request
            (each.pace, each.footprint, slope)
            for each, slope in zip(self.targets, self.slopes, strict=True)
        ]

    def _share(self) -> None:
        """What others have shown is likely of those that have shown less than is usual, each for
        its degree.

        Else those that are believed to be slower than they are would be given nothing, and never
        show it, and whoever is tried first would be given everything. What they have shown
        themselves soon outweighs it.
        """
        own = [(each, each.pace.evidence) for each in self.targets]
        usual = sum([evidence for _, evidence in own], 0.0) / len(own)
        shown = sum([evidence * each.pace.shown_per_s for each, evidence in own], 0.0)
        degrees = sum([evidence * each.degree for each, evidence in own], 0.0)
        for each, evidence in own:
            if evidence < usual:
                of_others = shown - evidence * each.pace.shown_per_s
                each.pace.likely(of_others / (degrees - evidence * each.degree) * each.degree)
