"""A policy at work: filter, score, pick.

Invariants. What is chosen is one of what was given. A filter that would leave nothing is ignored: a
request is refused by the fleet ("no replica") or by a replica, never by a preference. Scores depend
on the views alone, so permuting replicas permutes scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gateway.vocabulary import GenerationRequest, ReplicaView

R = TypeVar("R", bound=ReplicaView)


class Filter(Protocol):
    """May this replica serve this request?"""

    def keeps(self, request: GenerationRequest, replica: ReplicaView) -> bool: ...


class Scorer(Protocol):
    """What would the request cost on each replica? Any one unit, least wins."""

    def costs(
        self, request: GenerationRequest, replicas: Sequence[ReplicaView]
    ) -> Sequence[float]: ...


class Picker(Protocol):
    """Which one, given the costs? Returns an index into them; there is at least one."""

    def pick(self, costs: Sequence[float]) -> int: ...


@dataclass(frozen=True, slots=True)
class Chooser:
    """A profile of filters, scorer and picker. O(replicas)."""

    filters: tuple[Filter, ...]
    scorer: Scorer
    picker: Picker

    def choose(self, request: GenerationRequest, replicas: Sequence[R]) -> R:
        """The replica to send `request` to; `replicas` holds at least one."""
        for each in self.filters:
            replicas = [one for one in replicas if each.keeps(request, one)] or replicas
        if len(replicas) == 1:
            return replicas[0]
        return replicas[self.picker.pick(self.scorer.costs(request, replicas))]
