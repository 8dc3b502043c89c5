"""The queue beside a slow model of it: lists that are searched from end to end."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.hold.fair_queue import FairQueue, Ticket
from gateway.hold.shares import Shares
from gateway.order import CLASSES
from gateway.vocabulary import ServiceClass, Tenant

TENANTS = [
    Tenant(f"{each.value}-{n}", each, weight, hope_s)
    for each in ServiceClass
    for n, (weight, hope_s) in enumerate(((1.0, None), (3.0, 2.0)))
]
FLOORS = (0.0, 0.25, 0.1)
RUN = 3


@dataclass(eq=False)
class Count:
    """What the model knows of a tenant that has waited."""

    counter: float = 0.0
    credit: float = 0.0
    waiting: int = 0


@dataclass(eq=False)
class ModelQueue:
    """One queue: tickets in order of coming, what is due when, and the runs of tenants."""

    tickets: list[Ticket] = field(default_factory=list)
    due: dict[Ticket, float] = field(default_factory=dict)
    late: set[Ticket] = field(default_factory=set)
    aside: list[Ticket] = field(default_factory=list)
    runs: dict[str, tuple[int | None, int]] = field(default_factory=dict)
    credit: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def band(self, rank: int) -> list[Ticket]:
        return [each for each in self.tickets if each.rank == rank]

    def all_of(self, rank: int) -> list[Ticket]:
        """Those that choose anew too."""
        return [each for each in self.tickets + self.aside if each.rank == rank]


class Model:
    """Several queues that share the counts of tenants."""

    def __init__(self, queues: int) -> None:
        self.queues = [ModelQueue() for _ in range(queues)]
        self.counts: dict[str, Count] = {}

    def push(self, queue: ModelQueue, ticket: Ticket) -> None:
        name = ticket.tenant.name
        if name not in self.counts or not self.counts[name].waiting:
            others = [
                self.counts[each.tenant.name].counter
                for one in self.queues
                for each in one.all_of(ticket.rank)
            ]
            least = min(others, default=0.0)
            if name not in self.counts or self.counts[name].counter <= least:
                # One who has had no more than those that wait is owed nothing, nor owes anything.
                self.counts[name] = Count(least)
        self.counts[name].waiting += 1
        queue.tickets.append(ticket)
        queue.due[ticket] = ticket.place[1]

    def leave(self, queue: ModelQueue, ticket: Ticket) -> None:
        self.set_aside(queue, ticket)
        self.let_go(queue, ticket)

    def set_aside(self, queue: ModelQueue, ticket: Ticket) -> None:
        name = ticket.tenant.name
        queue.tickets.remove(ticket)
        queue.aside.append(ticket)
        if not any(each.tenant.name == name for each in queue.tickets):
            queue.runs.pop(name, None)

    def let_go(self, queue: ModelQueue, ticket: Ticket) -> None:
        queue.aside.remove(ticket)
        self.counts[ticket.tenant.name].waiting -= 1
        if not queue.all_of(ticket.rank):
            queue.credit[ticket.rank] = 0.0
        if not any(one.all_of(ticket.rank) for one in self.queues):
            for tenant in TENANTS:
                if tenant.service_class is ticket.tenant.service_class:
                    self.counts.pop(tenant.name, None)

    def charge(self, tenant: Tenant, tokens: float) -> None:
        count = self.counts[tenant.name]
        owed = tokens / tenant.weight - count.credit
        count.counter += max(owed, 0.0)
        count.credit = max(-owed, 0.0)

    def head(self, queue: ModelQueue, now: float, with_batch: bool) -> Ticket | None:
        for rank in (2, 1):
            if queue.credit[rank] > 0.0 and queue.band(rank):
                ticket = self.of_band(queue, rank, now)
                if queue.credit[rank] >= ticket.charge:
                    return ticket
        for rank in range(3 if with_batch else 2):
            if queue.band(rank):
                return self.of_band(queue, rank, now)
        return None

    def of_band(self, queue: ModelQueue, rank: int, now: float) -> Ticket:
        names = {each.tenant.name for each in queue.band(rank)}
        name = min(names, key=lambda each: (self.counts[each].counter, each))
        own = [each for each in queue.band(rank) if each.tenant.name == name]
        while True:
            group, run = queue.runs.get(name, (None, 0))
            alike = [each for each in own if group is not None and each.group == group]
            ticket = min(
                alike if alike and run < RUN else own,
                key=lambda each: (queue.due[each], each.number),
            )
            wanted = ticket.wanted_at
            if (
                wanted is None
                or ticket in queue.late
                or now + ticket.work_s <= wanted
                or ticket.is_hopeless(now)
            ):
                return ticket
            queue.late.add(ticket)
            queue.due[ticket] = ticket.late_due()

    def take(self, queue: ModelQueue, ticket: Ticket) -> None:
        rank, name = ticket.rank, ticket.tenant.name
        group, run = queue.runs.get(name, (None, 0))
        same = group == ticket.group and run < RUN
        queue.runs[name] = (ticket.group, run + 1 if same else 1)
        is_ahead = any(each.rank < rank for each in queue.tickets)
        queue.credit[rank] = queue.credit[rank] - ticket.charge if is_ahead else 0.0
        for lower in range(rank + 1, 3):
            if queue.band(lower):
                queue.credit[lower] += FLOORS[lower] * ticket.charge
        self.charge(ticket.tenant, ticket.charge)
        self.leave(queue, ticket)


class QueueMachine(RuleBasedStateMachine):
    """Whatever comes, leaves and is served, queue and model agree on who is next."""

    @initialize(queues=st.integers(1, 3))
    def start(self, queues: int) -> None:
        shares = [Shares() for _ in CLASSES]
        self.queues = [FairQueue[Ticket](shares, FLOORS, RUN) for _ in range(queues)]
        self.shares = shares
        self.model = Model(queues)
        self.now = 0.0
        self.served: list[Ticket] = []

    @rule(
        data=st.data(),
        tenant=st.sampled_from(TENANTS),
        uncached=st.integers(1, 20_000),
        output=st.integers(0, 500),
        group=st.none() | st.integers(1, 2),
        copies=st.integers(1, 6),
        deadline_s=st.none() | st.none() | st.floats(0.1, 20.0),
        work_s=st.floats(0.0, 2.0),
    )
    def come(
        self,
        data: st.DataObject,
        tenant: Tenant,
        uncached: int,
        output: int,
        group: int | None,
        copies: int,
        deadline_s: float | None,
        work_s: float,
    ) -> None:
        deadline = None if deadline_s is None else self.now + deadline_s
        index = data.draw(st.integers(0, len(self.queues) - 1))
        for _ in range(copies):
            ticket = Ticket(
                tenant, self.now, uncached, output=output, deadline=deadline, group=group
            )
            ticket.work_s = work_s
            self.queues[index].push(ticket)
            self.model.push(self.model.queues[index], ticket)

    @rule(seconds=st.floats(0.0, 3.0) | st.floats(0.0, 30.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    @precondition(lambda self: any(self.queues))
    def leave(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from([i for i, each in enumerate(self.queues) if each]))
        ticket = data.draw(st.sampled_from(self.model.queues[index].tickets))
        self.queues[index].remove(ticket)
        self.model.leave(self.model.queues[index], ticket)

    @rule(data=st.data())
    @precondition(lambda self: any(self.queues))
    def choose_anew(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from([i for i, each in enumerate(self.queues) if each]))
        tickets = self.model.queues[index].tickets
        for ticket in data.draw(st.sampled_from([tickets[:1], tickets[-1:], list(tickets)])):
            self.queues[index].set_aside(ticket)
            self.model.set_aside(self.model.queues[index], ticket)

    @rule(data=st.data(), again=st.booleans())
    @precondition(lambda self: any(each.aside for each in self.model.queues))
    def have_chosen(self, data: st.DataObject, again: bool) -> None:
        """To wait once more, the same or elsewhere, or no longer."""
        index = data.draw(
            st.sampled_from([i for i, each in enumerate(self.model.queues) if each.aside])
        )
        aside = self.model.queues[index].aside
        for ticket in data.draw(st.sampled_from([aside[:1], list(aside)])):
            if again:
                another = Ticket(ticket.tenant, ticket.since, ticket.uncached, group=ticket.group)
                elsewhere = data.draw(st.integers(0, len(self.queues) - 1))
                self.queues[elsewhere].push(another)
                self.model.push(self.model.queues[elsewhere], another)
            self.queues[index].let_go(ticket)
            self.model.let_go(self.model.queues[index], ticket)

    @rule(data=st.data(), with_batch=st.booleans(), most=st.integers(1, 12))
    @precondition(lambda self: any(self.queues))
    def serve(self, data: st.DataObject, with_batch: bool, most: int) -> None:
        index = data.draw(st.sampled_from([i for i, each in enumerate(self.queues) if each]))
        queue, model = self.queues[index], self.model.queues[index]
        for _ in range(most):
            ticket = queue.head(self.now, with_batch=with_batch)
            assert ticket is self.model.head(model, self.now, with_batch)
            if ticket is None:
                return
            queue.take(ticket)
            self.model.take(model, ticket)
            self.served.append(ticket)

    @rule(data=st.data(), tokens=st.integers(-2000, 2000))
    @precondition(lambda self: any(self.queues))
    def settle(self, data: st.DataObject, tokens: int) -> None:
        waiting = [each for model in self.model.queues for each in model.tickets]
        ticket = data.draw(st.sampled_from(waiting))
        assert ticket.account is not None
        self.shares[ticket.rank].charge(ticket.account, tokens)
        self.model.charge(ticket.tenant, tokens)

    @invariant()
    def sums_are_those_of_the_tickets_that_wait(self) -> None:
        for queue, model in zip(
            getattr(self, "queues", []),
            self.model.queues if hasattr(self, "model") else [],
            strict=True,
        ):
            assert len(queue) == len(model.tickets)
            for tenant in TENANTS:
                stranger = Tenant("", tenant.service_class, tenant.weight)
                higher = [each for each in model.tickets if each.rank < a_rank(stranger)]
                assert queue.ahead(stranger) == sum(each.uncached for each in higher)
                band = sum(each.uncached for each in model.band(a_rank(tenant)))
                own = [each for each in model.tickets if each.tenant is tenant]
                ahead = queue.ahead(tenant) - sum(each.uncached for each in higher)
                assert sum(each.uncached for each in own) - 1e-6 <= ahead <= band + 1e-6

    @invariant()
    def classes_are_owed_what_they_have_waited_for(self) -> None:
        for queue, model in zip(
            getattr(self, "queues", []),
            self.model.queues if hasattr(self, "model") else [],
            strict=True,
        ):
            assert [band.credit for band in queue._bands] == model.credit

    @invariant()
    def whoever_was_served_waits_no_longer(self) -> None:
        assert not any(each.is_waiting for each in getattr(self, "served", []))


def a_rank(tenant: Tenant) -> int:
    return CLASSES.index(tenant.service_class)


QueueMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestFairQueue = QueueMachine.TestCase
