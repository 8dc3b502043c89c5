"""Idle connections, per replica, without I/O.

Asked: "is there an idle connection to this replica that its peer will not close under us?"

Invariants. A connection is in the pool or it is not: never twice, never in two places; it leaves by
`take`, `remove`, `expire` or `drain`, exactly once. Newest first, so that surplus connections age
and go. Every operation is O(1) per connection touched.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from gateway.vocabulary import Seconds


class Idle(Protocol):
    """What the pool asks of a connection: hashable by identity."""

    def __hash__(self) -> int: ...


C = TypeVar("C", bound=Idle)
K = TypeVar("K")


class Pool(Generic[K, C]):
    """Idle connections by key. Whoever is handed a connection owns it."""

    __slots__ = ("_idle", "_idle_s", "_most")

    def __init__(self, idle_s: Seconds, most_per_key: int) -> None:
        """`idle_s`: an older one is not handed out; `most_per_key`: more are not kept."""
        self._idle_s = idle_s
        self._most = most_per_key
        self._idle: dict[K, dict[C, Seconds]] = {}

    def __len__(self) -> int:
        return sum(len(shelf) for shelf in self._idle.values())

    def __repr__(self) -> str:
        shelves = ", ".join(f"{key}: {len(shelf)}" for key, shelf in self._idle.items())
        return f"<Pool idle [{shelves}]>"

    def take(self, key: K, now: Seconds) -> C | None:
        """The most recently used connection, or None if there is none young enough."""
        shelf = self._idle.get(key)
        if not shelf:
            return None
        connection, since = shelf.popitem()
        if now - since < self._idle_s:
            return connection
        shelf[connection] = since  # too old, and so are all beneath it: expire() will close them
        return None

    def put_back(self, key: K, connection: C, now: Seconds) -> bool:
        """Keep a connection for later. False when there is no room: the caller closes it."""
        shelf = self._idle.setdefault(key, {})
        if len(shelf) >= self._most:
            return False
        shelf[connection] = now
        return True

    def remove(self, key: K, connection: C) -> None:
        """Forget a connection that died while idle; nothing happens if it is not here."""
        shelf = self._idle.get(key)
        if shelf is not None:
            shelf.pop(connection, None)

    def expire(self, now: Seconds) -> list[C]:
        """Take out every connection that has idled too long; the caller closes them."""
        expired: list[C] = []
        for shelf in self._idle.values():
            while shelf:
                oldest = next(iter(shelf))
                if now - shelf[oldest] < self._idle_s:
                    break
                del shelf[oldest]
                expired.append(oldest)
        return expired

    def drain(self, key: K) -> list[C]:
        """Take out every connection to a replica that has left; the caller closes them."""
        return list(self._idle.pop(key, {}))

    def drain_all(self) -> list[C]:
        """Take out everything; the caller closes it."""
        return [connection for key in list(self._idle) for connection in self.drain(key)]
