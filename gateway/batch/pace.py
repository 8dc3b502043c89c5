"""How many lines of batches may be in flight, and where: what interactive requests leave over.

Replicas are kept free for whoever waits: two for each interactive request, counted at the most that
were in flight at once in the last `CALM_S`. The others, those on which nothing but our lines runs,
take up to `per_replica` of them. Nothing is averaged: each replica is free or not. Where all are
kept free, `floor` lines in all go on, so that no batch starves.

Within that room a window grows by one with each line that is answered, as TCP's does at its start,
and halves when a replica says it is full. Lines on a replica that is wanted are displaced, the
youngest first, for they lose the least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.vocabulary import ReplicaId, ReplicaView, Seconds

CALM_S: Final = 10.0
FREE_PER_REQUEST: Final = 2


class Pace:
    """The room and the window of one model, in requests in flight.

    Invariants: the window is never above the room; where there is any replica and `floor` is not
    0, the room is never empty.
    """

    __slots__ = ("_floor", "_peak", "_peak_at", "_per_replica", "_window")

    def __init__(self, per_replica: int, floor: int) -> None:
        self._per_replica = per_replica
        self._floor = floor
        self._window = 1
        self._peak = 0  # of interactive requests in flight
        self._peak_at: Seconds = 0.0

    def __repr__(self) -> str:
        return f"<Pace window {self._window}, interactive at most {self._peak}>"

    def room(
        self, replicas: Sequence[ReplicaView], ours: Mapping[ReplicaId, int], now: Seconds
    ) -> dict[ReplicaId, int]:
        """How many lines each replica may have. `ours` is how many it has, of any model.

        O(n log n) for n replicas.
        """
        others = {
            replica.id: max(0, replica.inflight_requests - ours.get(replica.id, 0))
            for replica in replicas
        }
        self._note(sum(others.values()), now)
        quiet = [replica_id for replica_id, count in others.items() if not count]
        quiet.sort(key=lambda replica_id: not ours.get(replica_id, 0))  # where lines are, they stay
        taken = quiet[: max(0, len(others) - FREE_PER_REQUEST * self._peak)]
        room = dict.fromkeys(others, 0) | dict.fromkeys(taken, self._per_replica)
        if others and not taken:
            # The line that goes on goes on where it is: the least busy changes all the time.
            least = min(others, key=lambda each: (not ours.get(each, 0), others[each]))
            room[least] = self._floor
        return room

    def _note(self, interactive: int, now: Seconds) -> None:
        if interactive >= self._peak or now - self._peak_at > CALM_S:
            self._peak, self._peak_at = interactive, now

    def window(self, room: Mapping[ReplicaId, int]) -> int:
        """How many lines may be in flight in all."""
        self._window = min(self._window, max(1, sum(room.values())))
        return min(self._window, sum(room.values()))

    def answered(self) -> None:
        """A line was: there may be room for one more."""
        self._window += 1

    def refused(self) -> None:
        """A replica, or we, had no room."""
        self._window = max(1, self._window // 2)


def displaced(
    room: Mapping[ReplicaId, int], lines: Sequence[tuple[ReplicaId | None, int]]
) -> list[int]:
    """Which lines must make way: (replica, key) of each in flight, the oldest first; gives keys."""
    left = dict(room)
    keys: list[int] = []
    for replica, key in lines:
        if replica is None or replica not in left:
            continue
        left[replica] -= 1
        if left[replica] < 0:
            keys.append(key)
    return keys
