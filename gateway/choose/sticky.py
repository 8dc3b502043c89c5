"""Sessions that stick: where a session went last, it goes again, while that is no harm.

An option beside any policy. What a client calls its session is `GenerationRequest.session`. Its
replica is kept while it is among those to choose from, healthy and not overloaded; else the policy
chooses, and the session moves there. The least recently used sessions are forgotten.

Invariants. Never more than `capacity` sessions. A home is a replica that was truly sent to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.vocabulary import Health, ReplicaId, ReplicaView

SLACK: Final = 4
"""Requests in flight beyond the bound that are never overload: a mean of one says little."""

MOST_SESSIONS: Final = 100_000  # some 20 MB


class Sticky:
    """Which session lives where."""

    __slots__ = ("_bound", "_capacity", "_homes")

    def __init__(self, bound: float, capacity: int = MOST_SESSIONS) -> None:
        """`bound`: overloaded is who has more in flight than so many times the mean, and SLACK."""
        self._bound = bound
        self._capacity = capacity
        self._homes: dict[bytes, ReplicaId] = {}  # least recently used first

    def __len__(self) -> int:
        return len(self._homes)

    def __repr__(self) -> str:
        return f"<Sticky {len(self._homes)} sessions>"

    def home(self, session: bytes | None, replicas: Sequence[ReplicaView]) -> int | None:
        """The index of its replica; None where it has none, or must not stay. O(replicas)."""
        replica_id = None if session is None else self._homes.get(session)
        if replica_id is None:
            return None
        for index, one in enumerate(replicas):
            if one.id == replica_id:
                return index if self._may_stay(one, replicas) else None
        return None

    def _may_stay(self, home: ReplicaView, replicas: Sequence[ReplicaView]) -> bool:
        mean = sum([one.inflight_requests for one in replicas]) / len(replicas)
        return (
            home.health is Health.HEALTHY and home.inflight_requests <= self._bound * mean + SLACK
        )

    def sent(self, session: bytes | None, replica: ReplicaId) -> None:
        """It went there. O(1)."""
        if session is None:
            return
        homes = self._homes
        homes.pop(session, None)
        homes[session] = replica
        if len(homes) > self._capacity:
            del homes[next(iter(homes))]
