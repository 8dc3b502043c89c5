"""How much waits, of each tenant and in all, and who makes room.

Invariants. What is counted is what has joined and not left. Nobody joins beyond the bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from gateway.errors import QueueFull, Rejected, TenantQueueFull
from gateway.hold.fair_queue import CLASSES, Ticket
from gateway.settings import CrowdSettings
from gateway.vocabulary import Tokens

T = TypeVar("T", bound=Ticket)


class Count:
    """A sum over tickets."""

    __slots__ = ("requests", "size_bytes", "tokens")

    def __init__(self) -> None:
        self.requests = 0
        self.tokens: Tokens = 0
        self.size_bytes = 0

    def __repr__(self) -> str:
        return f"<{self.requests} requests, {self.tokens} tokens, {self.size_bytes} bytes>"

    def add(self, ticket: Ticket, sign: int) -> None:
        """Count it (1), or count it no more (-1)."""
        self.requests += sign
        self.tokens += sign * ticket.uncached
        self.size_bytes += sign * ticket.size_bytes

    def has_room(self, ticket: Ticket, most: CrowdSettings) -> bool:
        """Would it still be within `most`? Whoever is alone is."""
        return not self.requests or (
            self.requests < most.requests
            and self.tokens + ticket.uncached <= most.tokens
            and self.size_bytes + ticket.size_bytes <= most.size_bytes
        )


class Crowd(Generic[T]):
    """Everybody who waits, over all queues, by class and in order of coming. O(1) each."""

    __slots__ = ("_by_class", "_by_tenant", "_in_all", "_per_tenant", "count")

    def __init__(self, in_all: CrowdSettings, per_tenant: CrowdSettings) -> None:
        self._in_all = in_all
        self._per_tenant = per_tenant
        self.count = Count()
        self._by_tenant: dict[str, Count] = {}
        self._by_class: tuple[dict[T, None], ...] = tuple({} for _ in CLASSES)

    def __repr__(self) -> str:
        return f"<Crowd {self.count!r}>"

    def __iter__(self) -> Iterator[T]:
        """In order of class, then of coming. A copy: they may leave meanwhile."""
        return iter([ticket for each in self._by_class for ticket in each])

    @property
    def fill(self) -> float:
        """Of what may wait in all, the part that does, by the bound that is fullest."""
        count, most = self.count, self._in_all
        return max(
            count.requests / most.requests,
            count.tokens / most.tokens,
            count.size_bytes / most.size_bytes,
        )

    def obstacle(self, ticket: T) -> Rejected | None:
        """Why it cannot join now; None if it can."""
        own = self._by_tenant.get(ticket.tenant.name)
        if own is not None and not own.has_room(ticket, self._per_tenant):
            return TenantQueueFull()
        return None if self.count.has_room(ticket, self._in_all) else QueueFull()

    def who_makes_room(self, ticket: T) -> T | None:
        """Of the lowest class below its own, who came last."""
        for rank in range(len(CLASSES) - 1, ticket.rank, -1):
            if self._by_class[rank]:
                return next(reversed(self._by_class[rank]))
        return None

    def join(self, ticket: T) -> None:
        """It waits from now on."""
        name = ticket.tenant.name
        self._by_class[ticket.rank][ticket] = None
        self.count.add(ticket, 1)
        own = self._by_tenant.get(name)
        if own is None:
            own = self._by_tenant[name] = Count()
        own.add(ticket, 1)

    def leave(self, ticket: T) -> None:
        """It waits no longer."""
        name = ticket.tenant.name
        del self._by_class[ticket.rank][ticket]
        self.count.add(ticket, -1)
        own = self._by_tenant[name]
        own.add(ticket, -1)
        if not own.requests:
            del self._by_tenant[name]

    def waiting(self) -> dict[str, int]:
        """How many wait, by class."""
        return {
            each.value: len(tickets) for each, tickets in zip(CLASSES, self._by_class, strict=True)
        }
