"""Which replicas are on the way: there, but not yet serving?

One that has been loading for too long counts no more: it will not come, and a model must not be
kept from going to zero by it.

Invariant. Who loads has joined, and has neither served nor left since.
"""

from __future__ import annotations

from gateway.vocabulary import ReplicaId, Seconds


class Loading:
    """Since when each of them loads. O(1) per event."""

    __slots__ = ("_deadline_s", "_since")

    def __init__(self, deadline_s: Seconds) -> None:
        self._deadline_s = deadline_s
        self._since: dict[ReplicaId, Seconds] = {}

    def __repr__(self) -> str:
        return f"<Loading {list(self._since)}>"

    def joined(self, replica: ReplicaId, now: Seconds) -> None:
        """It is there, and does not serve yet."""
        self._since.setdefault(replica, now)

    def over(self, replica: ReplicaId) -> None:
        """It serves, or is there no more."""
        self._since.pop(replica, None)

    def __call__(self, replica: ReplicaId, now: Seconds) -> bool:
        """Is it on the way, and still to be hoped for?"""
        since = self._since.get(replica)
        return since is not None and now - since < self._deadline_s
