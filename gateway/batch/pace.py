"""How many lines of batches may be in flight: what interactive requests leave over.

A replica on which nothing but our lines runs is *quiet* and takes up to `per_replica` of them; one
that also serves somebody who waits takes `floor` (one, so that none starves). Nothing is averaged:
each replica is looked at by itself. Within that room a window grows by one with each line that is
answered, as TCP's does at its start, halves when a replica says it is full, and is cut at once
where interactive work has come: lines above it are displaced, the youngest first, for they lose the
least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.vocabulary import ReplicaId, ReplicaView


class Pace:
    """The window of one model. Invariant: never above the room, never below one while there is any.

    All figures are requests in flight.
    """

    __slots__ = ("_floor", "_per_replica", "window")

    def __init__(self, per_replica: int, floor: int) -> None:
        self._per_replica = per_replica
        self._floor = floor
        self.window = 1

    def __repr__(self) -> str:
        return f"<Pace window {self.window}>"

    def caps(
        self, replicas: Sequence[ReplicaView], ours: Mapping[ReplicaId, int]
    ) -> dict[ReplicaId, int]:
        """How many lines each replica may have. `ours` counts those of any model sent there."""
        return {
            replica.id: self._floor
            if replica.inflight_requests > ours.get(replica.id, 0)
            else self._per_replica
            for replica in replicas
        }

    def allow(self, caps: Mapping[ReplicaId, int]) -> int:
        """How many lines may be in flight in all; cuts the window at once where there is less room
        than that."""
        self.window = min(self.window, sum(caps.values()))
        if caps and self.window < len(caps) * self._floor:
            self.window = len(caps) * self._floor
        return self.window

    def answered(self) -> None:
        """A line was: there may be room for one more."""
        self.window += 1

    def refused(self) -> None:
        """A replica, or we, had no room."""
        self.window //= 2


def displaced(
    caps: Mapping[ReplicaId, int], lines: Sequence[tuple[ReplicaId | None, int]]
) -> list[int]:
    """Which lines must make way: (replica, key) of each in flight, the oldest first; gives keys."""
    left = dict(caps)
    keys: list[int] = []
    for replica, key in lines:
        if replica is None or replica not in left:
            continue
        left[replica] -= 1
        if left[replica] < 0:
            keys.append(key)
    return keys
