"""How much waits, of each tenant and in all, and who makes room.

Where all is full, lower classes make room for higher ones; within a class, whoever has the largest
part of what waits makes room for tenants who would still have less than that with one more. So one
tenant alone may fill it, and cannot keep others out.

Invariants. What is counted is what has joined and not left. Nobody joins beyond the bounds, unless
it leaves a place of its own for another (`gateway.hold.gate`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from gateway.errors import QueueFull, Rejected, TenantQueueFull
from gateway.hold.fair_queue import Ticket
from gateway.order import CLASSES
from gateway.settings import CrowdSettings
from gateway.vocabulary import Seconds, Tokens

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

    def plus(self, ticket: Ticket) -> Count:
        """With one more."""
        found = Count()
        found.requests = self.requests + 1
        found.tokens = self.tokens + ticket.uncached
        found.size_bytes = self.size_bytes + ticket.size_bytes
        return found

    def part_of(self, most: CrowdSettings) -> float:
        """Of the bound that it takes the most of."""
        return max(
            self.requests / most.requests,
            self.tokens / most.tokens,
            self.size_bytes / most.size_bytes,
        )


class Company(Generic[T]):
    """One tenant's."""

    __slots__ = ("count", "tickets")

    def __init__(self) -> None:
        self.count = Count()
        self.tickets: dict[T, None] = {}  # in order of coming

    def __repr__(self) -> str:
        return f"<Company {self.count!r}>"

    def last(self, rank: int) -> T | None:
        """Who came last, of a class no higher."""
        return next((each for each in reversed(self.tickets) if each.rank >= rank), None)


class Crowd(Generic[T]):
    """Everybody who waits, over all queues, by class and in order of coming. O(1) each; to make
    room O(tenants) and what the largest of them has."""

    __slots__ = ("_by_class", "_by_tenant", "_in_all", "_per_tenant", "count")

    def __init__(self, in_all: CrowdSettings, per_tenant: CrowdSettings) -> None:
        self._in_all = in_all
        self._per_tenant = per_tenant
        self.count = Count()
        self._by_tenant: dict[str, Company[T]] = {}
        self._by_class: tuple[dict[T, None], ...] = tuple({} for _ in CLASSES)

    def __repr__(self) -> str:
        return f"<Crowd {self.count!r}>"

    def __iter__(self) -> Iterator[T]:
        """In order of class, then of coming. A copy: they may leave meanwhile."""
        return iter([ticket for each in self._by_class for ticket in each])

    @property
    def fill(self) -> float:
        """Of what may wait in all, the part that does, by the bound that is fullest."""
        return self.count.part_of(self._in_all)

    def obstacle(self, ticket: T) -> Rejected | None:
        """Why it cannot join now; None if it can."""
        own = self._by_tenant.get(ticket.tenant.name)
        if own is not None and not own.count.has_room(ticket, self._per_tenant):
            return TenantQueueFull()
        return None if self.count.has_room(ticket, self._in_all) else QueueFull()

    def must_leave(self, ticket: T, retry_after_s: Seconds) -> T | None:
        """Who has to leave, the next of them, before it may join; None: nobody any more. Raises
        Rejected where that would not help either."""
        obstacle = self.obstacle(ticket)
        if obstacle is None:
            return None
        other = self.who_makes_room(ticket) if isinstance(obstacle, QueueFull) else None
        if other is None:
            obstacle.retry_after_s = retry_after_s
            raise obstacle
        return other

    def who_makes_room(self, ticket: T) -> T | None:
        """Of the lowest class below its own, who came last; else one of whoever has the most."""
        for rank in range(len(CLASSES) - 1, ticket.rank, -1):
            if self._by_class[rank]:
                return next(reversed(self._by_class[rank]))
        return self._of_the_largest(ticket)

    def _of_the_largest(self, ticket: T) -> T | None:
        """The last to come, of a class no higher; None where nobody has more than its tenant
        would have."""
        most, found = self._in_all, None
        own = self._by_tenant.get(ticket.tenant.name, Company[T]())
        part = own.count.plus(ticket).part_of(most) / ticket.tenant.weight
        for company in self._by_tenant.values():
            last = company.last(ticket.rank)
            if last is not None and company.count.part_of(most) / last.tenant.weight > part:
                part, found = company.count.part_of(most) / last.tenant.weight, last
        return found

    def join(self, ticket: T) -> None:
        """It waits from now on."""
        name = ticket.tenant.name
        self._by_class[ticket.rank][ticket] = None
        self.count.add(ticket, 1)
        own = self._by_tenant.get(name)
        if own is None:
            own = self._by_tenant[name] = Company()
        own.tickets[ticket] = None
        own.count.add(ticket, 1)

    def leave(self, ticket: T) -> None:
        """It waits no longer."""
        name = ticket.tenant.name
        del self._by_class[ticket.rank][ticket]
        self.count.add(ticket, -1)
        own = self._by_tenant[name]
        del own.tickets[ticket]
        own.count.add(ticket, -1)
        if not own.tickets:
            del self._by_tenant[name]

    def waiting(self) -> dict[str, int]:
        """How many wait, by class."""
        return {
            each.value: len(tickets) for each, tickets in zip(CLASSES, self._by_class, strict=True)
        }
