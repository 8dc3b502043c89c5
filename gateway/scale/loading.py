"""Which replicas are on the way: there, but not yet serving?

One that has been loading for too long counts no more: it will not come, and a model must not be
kept from going to zero by it.

Invariant. Who loads has joined, and has neither served nor left since.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

from gateway.vocabulary import Seconds

Name = TypeVar("Name", bound=str)


class Loading(Generic[Name]):
    """Since when each of them loads. O(1) per event."""

    __slots__ = ("_deadline_s", "_since")

    def __init__(self, deadline_s: Seconds) -> None:
        self._deadline_s = deadline_s
        self._since: dict[Name, Seconds] = {}

    def __repr__(self) -> str:
        return f"<Loading {list(self._since)}>"

    @property
    def names(self) -> AbstractSet[Name]:
        """Those on the way, the hopeless too."""
        return self._since.keys()

    def joined(self, replica: Name, now: Seconds) -> None:
        """It is there, and does not serve yet."""
        self._since.setdefault(replica, now)

    def over(self, replica: Name) -> None:
        """It serves, or is there no more."""
        self._since.pop(replica, None)

    def __call__(self, replica: Name, now: Seconds) -> bool:
        """Is it on the way, and still to be hoped for?"""
        since = self._since.get(replica)
        return since is not None and now - since < self._deadline_s
