"""Those who wait for one replica, in the order that serves everyone best.

    class     interactive before default before batch, strictly; a class that waits behind others
              gains credit with all they are given, and goes first when it can pay for its next
    tenant    who has had least for its weight (`gateway.hold.shares`)
    request   up to `run` that begin alike one after another, while others of them wait; else the
              least due instant (`gateway.order`)

An objective that has become infeasible is noticed when it would be next. It is then due LATE_S
after it came, its work added, and holds nobody up (earliest deadline first alone would make every
later one infeasible too).

Who is to choose anew is set aside: it waits here no longer, and until it has chosen its tenant has
had what it had and its class is owed what it was.

Invariants. A ticket that was pushed leaves exactly once, by `take`, by `remove`, or by `set_aside`
and then `let_go`; sums are those of the tickets that wait. All is O(log n), amortised.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

from gateway.hold.shares import Account, Shares, charge_of
from gateway.order import AGING_S_PER_TOKEN, RANK, Place, place, wanted_at
from gateway.vocabulary import Seconds, Tenant, Tokens

LATE_S: Final = 60.0


class Ticket:
    """A request that waits. Used once: who waits again has another. Owned by its queue.

    `since` is its arrival; `alone` what it would have to prefill if it went before those it shares
    its beginning with, by which it is due: who follows does not overtake its leader; `group` names
    what it begins with, None where it is nothing to share; `work_s` how long its prefill is
    believed to take; `deadline` the instant by which its first byte must come.
    """

    __slots__ = (
        "account", "alone", "charge", "deadline", "due", "group", "is_waiting", "number",
        "output", "since", "size_bytes", "tenant", "uncached", "work_s",
    )  # fmt: skip

    def __init__(
        self,
        tenant: Tenant,
        since: Seconds,
        uncached: Tokens,
        *,
        output: Tokens = 0,
        deadline: Seconds | None = None,
        group: int | None = None,
    ) -> None:
        """`output` is how many tokens it is expected to generate."""
        self.tenant = tenant
        self.since = since
        self.uncached = uncached
        self.output = output
        self.alone = uncached
        self.charge = charge_of(uncached, output)
        self.deadline = deadline
        self.group = group
        self.work_s: Seconds = 0.0
        self.size_bytes = 0
        self.number = 0  # the queue's, which breaks ties
        self.due: Seconds = 0.0
        self.is_waiting = False
        self.account: Account | None = None

    def __repr__(self) -> str:
        return f"<Ticket {self.number} of {self.tenant.name!r}, {self.uncached} tokens>"

    @property
    def rank(self) -> int:
        """Of its class: 0 is served first."""
        return RANK[self.tenant.service_class]

    @property
    def wanted_at(self) -> Seconds | None:
        """By when its first byte is wanted."""
        return wanted_at(self.tenant, self.deadline, self.since)

    @property
    def place(self) -> Place:
        """Where it stands among those who wait, as long as what it wants can be had."""
        return place(self.tenant, self.deadline, self.since, self.alone)

    @property
    def stands(self) -> Place:
        """The place it has in its queue now."""
        return self.rank, self.due

    def is_hopeless(self, now: Seconds) -> bool:
        """Can its deadline not be met any more, even if it went at once?"""
        return self.deadline is not None and now + self.work_s > self.deadline

    def late_due(self) -> Seconds:
        """When it is due if that cannot be had."""
        return self.since + LATE_S + self.alone * AGING_S_PER_TOKEN


T = TypeVar("T", bound=Ticket)


class _Line(Generic[T]):
    """Tickets by due instant. Dead entries stay until they surface or outnumber the living."""

    __slots__ = ("_heap", "live")

    def __init__(self) -> None:
        self._heap: list[tuple[Seconds, int, T]] = []
        self.live = 0

    def push(self, ticket: T) -> None:
        heapq.heappush(self._heap, (ticket.due, ticket.number, ticket))
        self.live += 1

    def dropped(self) -> None:
        """One of the entries has died."""
        self.live -= 1
        if len(self._heap) > 2 * self.live + 16:
            self._heap = [each for each in self._heap if _is_alive(each)]
            heapq.heapify(self._heap)

    def head(self) -> T | None:
        heap = self._heap
        while heap and not _is_alive(heap[0]):
            heapq.heappop(heap)
        return heap[0][2] if heap else None


def _is_alive(entry: tuple[Seconds, int, Ticket]) -> bool:
    return entry[2].is_waiting and entry[2].due == entry[0]


class _OfTenant(Generic[T]):
    """The tickets of one tenant, and the run of like ones it is in."""

    __slots__ = ("_groups", "_line", "_longest", "_run", "_run_group", "account", "tokens")

    def __init__(self, account: Account, run: int) -> None:
        self._longest = run
        self.account = account
        self.tokens: Tokens = 0
        self._line = _Line[T]()
        self._groups: dict[int, _Line[T]] = {}
        self._run_group: int | None = None
        self._run = 0

    @property
    def live(self) -> int:
        return self._line.live

    def push(self, ticket: T) -> None:
        self._line.push(ticket)
        if ticket.group is not None:
            self._groups.setdefault(ticket.group, _Line[T]()).push(ticket)
        self.tokens += ticket.uncached

    def left(self, ticket: T) -> None:
        self.tokens -= ticket.uncached
        self._drop(ticket)
        if not self.live:
            self._run_group, self._run = None, 0

    def _drop(self, ticket: T) -> None:
        self._line.dropped()
        if ticket.group is not None:
            group = self._groups[ticket.group]
            group.dropped()
            if not group.live:
                del self._groups[ticket.group]

    def head(self, now: Seconds) -> T | None:
        """Who is next. What has become late is put back to its later place on the way."""
        while True:
            ticket = None
            if self._run_group is not None and self._run < self._longest:
                group = self._groups.get(self._run_group)
                ticket = None if group is None else group.head()
            if ticket is None:
                ticket = self._line.head()
            if ticket is None or not self._postpone(ticket, now):
                return ticket

    def _postpone(self, ticket: T, now: Seconds) -> bool:
        wanted, late = ticket.wanted_at, ticket.late_due()
        if wanted is None or ticket.due == late or now + ticket.work_s <= wanted:
            return False
        if ticket.deadline is not None and ticket.is_hopeless(now):
            return False  # nobody waits for it any more: it is to be let go, not to be late
        ticket.due = late
        self._line.push(ticket)
        if ticket.group is not None:
            self._groups[ticket.group].push(ticket)
        self._drop(ticket)
        return True

    def taken(self, ticket: T) -> None:
        """It goes: the run goes on, or another begins."""
        if ticket.group != self._run_group or self._run >= self._longest:
            self._run_group, self._run = ticket.group, 0
        self._run += 1


class _Band(Generic[T]):
    """One class: its tenants by what they have had."""

    __slots__ = (
        "_heap", "_run", "_tenants", "aside", "credit", "requests", "shares", "tokens", "weights",
    )  # fmt: skip

    def __init__(self, shares: Shares, run: int) -> None:
        self.shares = shares
        self._run = run
        self.credit = 0.0  # tokens that it may be given ahead of higher classes
        self.requests = 0
        self.aside = 0  # that are to choose anew
        self.tokens: Tokens = 0
        self.weights = 0.0  # of the tenants that wait here
        self._tenants: dict[str, _OfTenant[T]] = {}
        self._heap: list[tuple[float, Account]] = []  # one entry per tenant, never above its count

    def __repr__(self) -> str:
        return f"<{self.requests} of {sorted(self._tenants)}>"

    def push(self, ticket: T) -> None:
        account = ticket.account = self.shares.begin(ticket.tenant)
        found = self._tenants.get(account.name)
        if found is None or found.account is not account:
            found = self._tenants[account.name] = _OfTenant[T](account, self._run)
            heapq.heappush(self._heap, (account.counter, account))
        if not found.live:
            self.weights += account.weight
        found.push(ticket)
        self.requests += 1
        self.tokens += ticket.uncached

    def set_aside(self, ticket: T) -> None:
        account = ticket.account
        assert account is not None, "a ticket that waits has an account"
        found = self._tenants[account.name]
        found.left(ticket)
        if not found.live:
            self.weights -= account.weight
        self.requests -= 1
        self.tokens -= ticket.uncached
        if not self.requests:
            self._tenants.clear()
            self._heap.clear()
            self.weights = 0.0
        self.aside += 1

    def let_go(self, ticket: T) -> None:
        self.aside -= 1
        if not self.requests and not self.aside:
            self.credit = 0.0
        assert ticket.account is not None, "a ticket that has waited has an account"
        self.shares.end(ticket.account)

    def head(self, now: Seconds) -> T | None:
        heap = self._heap
        while heap:
            count, account = heap[0]
            found = self._tenants.get(account.name)
            if found is None or found.account is not account or not found.live:
                heapq.heappop(heap)
                if found is not None and found.account is account:
                    del self._tenants[account.name]
            elif account.counter > count:
                heapq.heapreplace(heap, (account.counter, account))
            else:
                return found.head(now)
        return None

    def taken(self, ticket: T) -> None:
        self._tenants[ticket.tenant.name].taken(ticket)

    def tenant_tokens(self, tenant: Tenant) -> Tokens:
        found = self._tenants.get(tenant.name)
        return 0 if found is None else found.tokens


class FairQueue(Generic[T]):
    """Those who wait for one replica. `shares`, one per class, are common to all queues."""

    __slots__ = ("_bands", "_floors", "_numbers", "requests")

    def __init__(self, shares: Sequence[Shares], floors: Sequence[float], run: int) -> None:
        """`floors`: the share of service that each class has while higher ones wait too; `run`: how
        many that begin alike may go in a row."""
        self._bands = [_Band[T](each, run) for each in shares]
        self._floors = floors
        self._numbers = 0
        self.requests = 0

    def __repr__(self) -> str:
        return f"<FairQueue {self._bands!r}>"

    def __len__(self) -> int:
        return self.requests

    def push(self, ticket: T) -> None:
        """It waits here from now on."""
        self._numbers += 1
        ticket.number = self._numbers
        _, ticket.due = ticket.place
        ticket.is_waiting = True
        self._bands[ticket.rank].push(ticket)
        self.requests += 1

    def remove(self, ticket: T) -> None:
        """It waits no longer, and was not served."""
        self.set_aside(ticket)
        self.let_go(ticket)

    def set_aside(self, ticket: T) -> None:
        """It is to choose anew."""
        ticket.is_waiting = False
        self.requests -= 1
        self._bands[ticket.rank].set_aside(ticket)

    def let_go(self, ticket: T) -> None:
        """It was set aside, and has chosen, or does so no more."""
        self._bands[ticket.rank].let_go(ticket)

    def head(self, now: Seconds, *, with_batch: bool = True) -> T | None:
        """Who is next; batches only `with_batch`, unless they have credit for it."""
        for band in reversed(self._bands[1:]):
            if band.credit > 0.0:
                ticket = band.head(now)
                if ticket is not None and band.credit >= ticket.charge:
                    return ticket
        for band in self._bands if with_batch else self._bands[:-1]:
            if band.requests:
                return band.head(now)
        return None

    def take(self, ticket: T) -> None:
        """It is served: the head that was seen. Its tenant is charged, lower classes credited."""
        rank = ticket.rank
        band = self._bands[rank]
        band.taken(ticket)
        is_ahead = any(each.requests for each in self._bands[:rank])
        band.credit = band.credit - ticket.charge if is_ahead else 0.0
        for lower, floor in zip(self._bands[rank + 1 :], self._floors[rank + 1 :], strict=True):
            if lower.requests:
                lower.credit += floor * ticket.charge
        account = ticket.account
        assert account is not None, "a ticket that waits has an account"
        band.shares.charge(account, ticket.charge)
        self.remove(ticket)

    def ahead(self, tenant: Tenant) -> float:
        """Uncached tokens that are served before what `tenant` would add now, about.

        All of higher classes, and of its own the smaller of all and its own, stretched by the share
        that it has.
        """
        rank = RANK[tenant.service_class]
        band = self._bands[rank]
        own = band.tenant_tokens(tenant)
        weights = band.weights + (0.0 if own else tenant.weight)
        fair = own * weights / tenant.weight
        return sum(each.tokens for each in self._bands[:rank]) + min(fair, band.tokens)
