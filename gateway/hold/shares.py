"""What tenants have had, weighed by what they are owed: virtual token counters.

A tenant's counter rises by (uncached prompt tokens + 2 x output tokens) / weight for all that is
dispatched for it (VTC: Sheng et al., "Fairness in Serving Large Language Models", OSDI '24; only
what is computed is charged, or those who help the cache would pay for it). Whose counter is least
is next. Output is charged as expected when a request is dispatched and set right when it has ended.

Invariants. A counter never falls: what was charged too much is kept as credit against the next
charge. Who begins to wait is lifted to the least counter of those that wait: nobody saves up by
staying away. When nobody waits nobody is owed anything, and all counts begin anew.
"""

from __future__ import annotations

import heapq
from typing import Final

from gateway.vocabulary import Tenant, Tokens

OUTPUT_WEIGHT: Final = 2
"""What an output token costs beside an uncached prompt token."""


def charge_of(uncached_tokens: Tokens, output_tokens: Tokens) -> Tokens:
    """What a request is charged."""
    return uncached_tokens + OUTPUT_WEIGHT * output_tokens


class Account:
    """One tenant's count. `Shares` and the queues share it; only `Shares` moves it."""

    __slots__ = ("counter", "credit", "name", "waiting", "weight")

    def __init__(self, tenant: Tenant) -> None:
        self.name = tenant.name
        self.weight = tenant.weight
        self.counter = 0.0
        self.credit = 0.0  # weighed tokens charged too much so far
        self.waiting = 0  # requests, in all queues

    def __repr__(self) -> str:
        return f"<Account {self.name!r} {self.counter:.0f}, {self.waiting} waiting>"

    def __lt__(self, other: Account) -> bool:
        return self.name < other.name  # only to break ties in heaps


class Shares:
    """The counts of the tenants of one class, over all queues. O(log tenants) each, amortised."""

    __slots__ = ("_accounts", "_heap", "_waiting")

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._heap: list[tuple[float, Account]] = []  # one entry per account, never above its count
        self._waiting = 0

    def __repr__(self) -> str:
        return f"<Shares {list(self._accounts.values())!r}>"

    def begin(self, tenant: Tenant) -> Account:
        """One request more waits for this tenant, somewhere."""
        account = self._accounts.get(tenant.name)
        if account is None or not account.waiting:
            least = self._least()
            account = self._accounts.get(tenant.name)  # those that count no more are forgotten
            if account is None:
                account = self._accounts[tenant.name] = Account(tenant)
                heapq.heappush(self._heap, (least, account))
            if account.counter <= least:
                account.counter, account.credit = least, 0.0
            account.weight = tenant.weight
        account.waiting += 1
        self._waiting += 1
        return account

    def end(self, account: Account) -> None:
        """One of its requests waits no longer."""
        account.waiting -= 1
        self._waiting -= 1
        if not self._waiting:
            self._accounts.clear()
            self._heap.clear()

    def charge(self, account: Account, tokens: float) -> None:
        """It has had so much; negative: so much less than was charged before."""
        owed = tokens / account.weight - account.credit
        account.counter += max(owed, 0.0)
        account.credit = max(-owed, 0.0)

    def _least(self) -> float:
        """The least counter of those that wait; 0 where nobody does."""
        heap = self._heap
        while heap:
            count, account = heap[0]
            if account.counter > count:
                heapq.heapreplace(heap, (account.counter, account))
            elif not account.waiting:
                heapq.heappop(heap)
                del self._accounts[account.name]  # when it comes back it is lifted beyond this
            else:
                return count
        return 0.0
