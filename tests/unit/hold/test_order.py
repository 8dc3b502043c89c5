"""The laws of order, each alone, in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import pytest

from gateway.hold.fair_queue import LATE_S, FairQueue, Ticket
from gateway.hold.shares import Shares
from gateway.order import AGING_S_PER_TOKEN, CLASSES
from gateway.vocabulary import ServiceClass, Tenant

RUN = 4
INTERACTIVE = Tenant("i", ServiceClass.INTERACTIVE)
DEFAULT = Tenant("d")
BATCH = Tenant("b", ServiceClass.BATCH)
HOPEFUL = Tenant("h", ttft_objective_s=2.0)


def a_queue(floors: Sequence[float] = (0.0, 0.0, 0.0)) -> FairQueue[Ticket]:
    return FairQueue[Ticket]([Shares() for _ in CLASSES], floors, RUN)


def put(queue: FairQueue[Ticket], *tickets: Ticket) -> None:
    for ticket in tickets:
        queue.push(ticket)


def served(queue: FairQueue[Ticket], most: int = 1_000_000, now: float = 0.0) -> list[Ticket]:
    """Who is served, in order."""
    order: list[Ticket] = []
    while len(order) < most and (ticket := queue.head(now)) is not None:
        queue.take(ticket)
        order.append(ticket)
    return order


def tokens_by_tenant(tickets: Iterable[Ticket]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for ticket in tickets:
        sums[ticket.tenant.name] += ticket.charge
    return sums


def test_higher_classes_are_served_first_whatever_came_first() -> None:
    queue = a_queue()
    put(queue, *(Ticket(each, 0.0, 10) for each in (BATCH, DEFAULT, INTERACTIVE) * 2))
    assert [each.tenant for each in served(queue)] == [
        INTERACTIVE, INTERACTIVE, DEFAULT, DEFAULT, BATCH, BATCH,
    ]  # fmt: skip


@pytest.mark.parametrize(("tenant", "rank"), [(DEFAULT, 1), (BATCH, 2)])
def test_a_class_has_its_floor_while_higher_ones_never_end(tenant: Tenant, rank: int) -> None:
    floors = [0.0, 0.0, 0.0]
    floors[rank] = 0.1
    queue = a_queue(floors)
    put(queue, *(Ticket(tenant, 0.0, 700) for _ in range(500)))
    put(queue, *(Ticket(INTERACTIVE, 0.0, 300) for _ in range(4000)))
    sums = tokens_by_tenant(served(queue, 2000))
    assert sums[tenant.name] / sums["i"] == pytest.approx(0.1, rel=0.01)


def test_batches_wait_for_spare_room_but_not_for_ever() -> None:
    queue = a_queue((0.0, 0.0, 0.5))
    put(queue, Ticket(BATCH, 0.0, 100), Ticket(BATCH, 0.0, 100))
    assert queue.head(0.0, with_batch=False) is None
    put(queue, *(Ticket(INTERACTIVE, 0.0, 100) for _ in range(3)))
    order = []
    while (ticket := queue.head(0.0, with_batch=False)) is not None:
        queue.take(ticket)
        order.append(ticket.tenant.name)
    assert order == ["i", "i", "b", "i"]


def test_service_follows_weights_in_tokens_not_in_requests() -> None:
    queue = a_queue()
    one, three = Tenant("one"), Tenant("three", weight=3.0)
    put(queue, *(Ticket(one, 0.0, 4000, output=50) for _ in range(400)))
    put(queue, *(Ticket(three, 0.0, 300, output=200) for _ in range(8000)))
    sums = tokens_by_tenant(served(queue, 3000))
    assert sums["three"] / sums["one"] == pytest.approx(3.0, rel=0.02)


def test_what_was_charged_is_set_right_when_it_is_known() -> None:
    shares = [Shares() for _ in CLASSES]
    queue = FairQueue[Ticket](shares, (0.0, 0.0, 0.0), RUN)
    short, long = Tenant("short"), Tenant("long")
    put(queue, *(Ticket(each, 0.0, 100, output=100) for each in (short, long) * 2000))
    sums: Counter[str] = Counter()
    for _ in range(1000):
        ticket = queue.head(0.0)
        assert ticket is not None
        queue.take(ticket)
        assert ticket.account is not None
        had = 100 + 2 * (10 if ticket.tenant is short else 400)
        shares[ticket.rank].charge(ticket.account, had - ticket.charge)
        sums[ticket.tenant.name] += had
    assert sums["short"] / sums["long"] == pytest.approx(1.0, rel=0.02)


def test_nobody_saves_up_by_staying_away() -> None:
    queue = a_queue()
    steady, late = Tenant("steady"), Tenant("late")
    put(queue, *(Ticket(steady, 0.0, 100) for _ in range(2000)))
    served(queue, 1000)
    put(queue, *(Ticket(late, 1.0, 100) for _ in range(1000)))
    sums = tokens_by_tenant(served(queue, 200))
    assert abs(sums["steady"] - sums["late"]) <= 100


def test_a_flood_delays_another_tenant_by_one_request_at_most() -> None:
    queue = a_queue()
    put(queue, *(Ticket(Tenant("flood"), 0.0, 100) for _ in range(1000)))
    served(queue, 10)
    put(queue, Ticket(Tenant("victim"), 1.0, 100))
    assert "victim" in [each.tenant.name for each in served(queue, 2)]


def test_the_earliest_deadline_is_first() -> None:
    queue = a_queue()
    deadlines = [9.0, 3.0, 7.0, 1.0]
    put(queue, *(Ticket(DEFAULT, 0.0, 10, deadline=each) for each in deadlines))
    assert [each.deadline for each in served(queue)] == sorted(deadlines)


def test_an_objective_that_cannot_be_met_holds_up_none_that_can() -> None:
    queue = a_queue()
    old, new = Ticket(HOPEFUL, 0.0, 10), Ticket(HOPEFUL, 2.5, 10)
    put(queue, old, new)
    assert served(queue, now=3.0) == [new, old]


def test_what_it_takes_to_read_a_prompt_counts_against_its_objective() -> None:
    queue = a_queue()
    long, short = Ticket(HOPEFUL, 0.0, 10), Ticket(HOPEFUL, 0.5, 10)
    long.work_s = 1.5
    put(queue, long, short)
    assert served(queue, now=0.6) == [short, long]


def test_even_what_is_late_has_its_turn_in_the_end() -> None:
    queue = a_queue()
    old = Ticket(HOPEFUL, 0.0, 10)
    queue.push(old)
    now, others = 3.0, 0
    while old.is_waiting:
        queue.push(Ticket(HOPEFUL, now, 10))
        (ticket,) = served(queue, 1, now)
        others += ticket is not old
        now += 1.0
    assert now <= LATE_S + 3.0
    assert others > 50


def test_the_least_work_is_first_among_those_that_came_together() -> None:
    queue = a_queue()
    put(queue, *(Ticket(DEFAULT, 0.0, tokens) for tokens in (5000, 10, 700)))
    assert [each.uncached for each in served(queue)] == [10, 700, 5000]


def test_waiting_makes_up_for_work() -> None:
    queue = a_queue()
    large = Ticket(DEFAULT, 0.0, 8000)
    queue.push(large)
    now = 0.0
    while large.is_waiting:
        now += 0.5
        queue.push(Ticket(DEFAULT, now, 0))
        served(queue, 1, now)
    assert now == pytest.approx(8000 * AGING_S_PER_TOKEN, abs=0.6)


def test_those_that_begin_alike_go_in_a_row_but_only_so_many() -> None:
    queue = a_queue()
    for n in range(2 * RUN):
        put(queue, Ticket(DEFAULT, n, 10, group=1), Ticket(DEFAULT, n + 0.5, 10, group=2))
    groups = [each.group for each in served(queue)]
    assert groups == [1] * RUN + [2] * RUN + [1] * RUN + [2] * RUN


def test_a_run_does_not_go_on_at_the_cost_of_other_tenants() -> None:
    queue = a_queue()
    put(queue, *(Ticket(Tenant("a"), 0.0, 10, group=1) for _ in range(4)))
    put(queue, *(Ticket(Tenant("b"), 0.0, 10) for _ in range(4)))
    assert "".join(each.tenant.name for each in served(queue)) == "abababab"
