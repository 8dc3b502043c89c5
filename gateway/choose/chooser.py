"""A policy at work: filter, score, pick.

Invariants. What is chosen is one of what was given. A filter that would leave nothing is ignored: a
request is refused by the fleet ("no replica") or by a replica, never by a preference. Scores depend
on the views alone, so permuting replicas permutes scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

from gateway.vocabulary import GenerationRequest, ReplicaId, ReplicaView, Seconds

R = TypeVar("R", bound=ReplicaView)


class Filter(Protocol):
    """May this replica serve this request?"""

    def keeps(self, request: GenerationRequest, replica: ReplicaView) -> bool: ...


class Scorer(Protocol):
    """What would the request cost on each replica? Any one unit, least wins."""

    def costs(
        self, request: GenerationRequest, replicas: Sequence[ReplicaView], now: Seconds
    ) -> Sequence[float]: ...


class Picker(Protocol):
    """Which one, given the costs? Returns an index into them; there is at least one."""

    def pick(self, costs: Sequence[float]) -> int: ...


class Claim(Protocol):
    """What a policy remembers of one dispatch, until it ends. Used by `with`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def first_byte(self, now: Seconds) -> None:
        """The replica has read the prompt."""


class Memory(Protocol):
    """A policy that remembers is told what becomes of its choices."""

    def dispatched(
        self, request: GenerationRequest, replica: ReplicaView, now: Seconds
    ) -> Claim: ...

    def forget(self, replica: ReplicaId) -> None:
        """It has left."""


class _NoClaim:
    """The claim of a policy that remembers nothing."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def first_byte(self, now: Seconds) -> None: ...


NO_CLAIM: Final[Claim] = _NoClaim()


@dataclass(frozen=True, slots=True)
class Chooser:
    """A profile of filters, scorer and picker, and the memory of those that have one."""

    filters: tuple[Filter, ...]
    scorer: Scorer
    picker: Picker
    memory: Memory | None = None

    def choose(self, request: GenerationRequest, replicas: Sequence[R], now: Seconds = 0.0) -> R:
        """The replica to send `request` to; `replicas` holds at least one.

        `now` matters to policies that keep clocks. O(replicas), and what the scorer says.
        """
        for each in self.filters:
            replicas = [one for one in replicas if each.keeps(request, one)] or replicas
        if len(replicas) == 1:
            return replicas[0]
        return replicas[self.picker.pick(self.scorer.costs(request, replicas, now))]

    def dispatched(self, request: GenerationRequest, replica: ReplicaView, now: Seconds) -> Claim:
        """It goes there. The claim is to be entered, told of the first byte, and left."""
        return NO_CLAIM if self.memory is None else self.memory.dispatched(request, replica, now)

    def forget(self, replica: ReplicaId) -> None:
        """A replica has left."""
        if self.memory is not None:
            self.memory.forget(replica)
