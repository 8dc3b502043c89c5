"""The gate, example by example: who has a turn when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gateway.errors import Displaced, TenantQueueFull
from gateway.fleet.ledger import Replica
from gateway.hold.asking import ASK_AT_ONCE
from gateway.hold.gate import Gate
from gateway.hold.turn import ChooseAgain, Turn
from gateway.order import place
from gateway.request import GenerationRequest
from gateway.settings import CrowdSettings, HoldSettings
from gateway.vocabulary import ModelName, ReplicaId, Role, ServiceClass, Tenant
from tests.builders import MODEL, a_replica, a_route
from tests.conftest import ManualClock

FIRST, SECOND = a_replica("r1"), a_replica("r2")
R1, R2 = FIRST.id, SECOND.id
SCREEN = Tenant("screen", ServiceClass.INTERACTIVE)
BATCH = Tenant("batch", ServiceClass.BATCH)
SOME = Tenant("some")


class Client:
    """Somebody, who counts how often it was told to wait."""

    received_at = 1000.0
    body = b""

    def __init__(self) -> None:
        self.told = 0

    def keep_waiting(self) -> None:
        """Wait."""
        self.told += 1


def a_request(tenant: Tenant = SOME, tokens: int = 100, model: str = MODEL) -> GenerationRequest:
    return GenerationRequest(
        a_route(), ModelName(model), True, 4 * tokens, tokens, None, tenant=tenant
    )


def a_gate(clock: ManualClock, *fleet: Replica, **knobs: Any) -> Gate:
    return Gate(
        HoldSettings.of({"commit_tokens": 1000, **knobs}),
        clock,
        lambda model: [each for each in fleet or (FIRST, SECOND) if model in each.models],
    )


def a_turn(
    gate: Gate,
    tenant: Tenant = SOME,
    tokens: int = 100,
    replica: ReplicaId = R1,
    model: str = MODEL,
) -> Coroutine[Any, Any, Turn]:
    return gate.turn(a_request(tenant, tokens, model), replica, None, Client())


def at_once(turn: Coroutine[Any, Any, Turn]) -> Turn:
    """What it comes to without a single wait. Fails where it waits."""
    with pytest.raises(StopIteration) as end:
        turn.send(None)
    found = end.value.value
    assert isinstance(found, Turn)
    return found


async def rest() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_while_a_replica_is_open_a_turn_is_given_without_a_task_switch(clock: ManualClock) -> None:
    gate = a_gate(clock)
    turns = [at_once(a_turn(gate, tokens=250)) for _ in range(4)]
    for turn in turns:
        with turn:
            turn.first_byte(clock())
    assert at_once(a_turn(gate, tokens=250))


def test_each_replica_is_judged_alone(clock: ManualClock) -> None:
    gate = a_gate(clock)
    at_once(a_turn(gate, tokens=5000, replica=R1))
    assert at_once(a_turn(gate, tokens=5000, replica=R2))


def test_a_first_byte_opens_the_replica_for_who_waits(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock)
        first = await a_turn(gate, tokens=2000)
        waiting = asyncio.create_task(a_turn(gate))
        await rest()
        assert gate.crowd.waiting() == {"interactive": 0, "default": 1, "batch": 0}
        first.first_byte(clock())
        await rest()
        assert waiting.result().uncached == 100
        assert not gate.crowd.count.requests

    asyncio.run(law())


def test_a_long_prompt_waits_until_one_chunk_budget_is_left(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock)
        turns = [await a_turn(gate, tokens=300) for _ in range(3)]
        long = asyncio.create_task(a_turn(gate, tokens=5000))
        await rest()
        assert not long.done()
        turns[0].first_byte(clock())
        await rest()
        assert not long.done()
        turns[1].first_byte(clock())
        await rest()
        assert long.done()

    asyncio.run(law())


async def a_life(gate: Gate, tenant: Tenant, replicas: list[ReplicaId]) -> str:
    """Until it has been held on to for ever; takes another replica when asked to."""
    for replica in replicas:
        try:
            with await a_turn(gate, tenant, replica=replica):
                await asyncio.Event().wait()
        except ChooseAgain:
            continue
    return "asked again"


def test_a_batch_that_has_not_begun_makes_way(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock)
        batch = asyncio.create_task(a_life(gate, BATCH, [R1]))
        await rest()
        assert at_once(a_turn(gate, SCREEN))
        assert await batch == "asked again"
        assert not batch.cancelling(), "its own life goes on"

    asyncio.run(law())


def test_a_batch_that_has_begun_stays(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock)
        batch = await a_turn(gate, BATCH)
        batch.first_byte(clock())
        at_once(a_turn(gate, SCREEN))
        await rest()
        assert not batch.is_displaced

    asyncio.run(law())


def test_a_batch_that_makes_way_while_its_client_leaves_has_left(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock)
        batch = asyncio.create_task(a_life(gate, BATCH, [R1, R2]))
        await rest()
        batch.cancel()
        at_once(a_turn(gate, SCREEN))
        await rest()
        assert batch.cancelled()
        at_once(a_turn(gate, BATCH, replica=R2))

    asyncio.run(law())


@pytest.mark.parametrize("tenant", [SOME, BATCH])
def test_who_leaves_as_its_turn_is_given_leaves_it_to_the_next(
    clock: ManualClock, tenant: Tenant
) -> None:
    async def law() -> None:
        gate = a_gate(clock, max_sequences=1)
        first = await a_turn(gate, tenant)
        leaving, next_one = (asyncio.create_task(a_turn(gate, tenant)) for _ in range(2))
        await rest()
        with first:
            first.first_byte(clock())
        leaving.cancel()  # it has its turn, but has not run since
        await rest()
        assert leaving.cancelled()
        assert not next_one.cancelled()
        assert next_one.result().lane.batches == ({next_one.result()} if tenant is BATCH else set())

    asyncio.run(law())


def test_who_leaves_as_its_turn_is_given_is_charged_nothing(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock, max_sequences=1)
        first = await a_turn(gate)
        order: list[str] = []

        async def live(tenant: Tenant) -> None:
            with await a_turn(gate, tenant):
                order.append(tenant.name)

        tenants = [Tenant(name) for name in "aaabb"]
        leaving, *lives = [asyncio.create_task(live(each)) for each in tenants]
        await rest()
        with first:
            first.first_byte(clock())
        leaving.cancel()
        await asyncio.gather(*lives)
        assert order == ["b", "a", "a", "b"], "the second of `a` is what the one that left paid for"

    asyncio.run(law())


def test_batches_hold_back_only_while_others_come(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock)
        for _ in range(5):
            with await a_turn(gate, BATCH, 800) as turn:
                turn.first_byte(clock())
        with await a_turn(gate, SCREEN) as turn:
            turn.first_byte(clock())
        with await a_turn(gate, BATCH, 800) as turn:
            turn.first_byte(clock())
        waiting = asyncio.create_task(a_turn(gate, BATCH, 800))
        await rest()
        assert not waiting.done()
        clock.advance(1.0)  # ten times what 800 tokens take at the rate that is assumed
        gate.check(clock())
        await rest()
        assert waiting.done()

    asyncio.run(law())


def test_the_full_queue_makes_room_for_a_higher_class_only(clock: ManualClock) -> None:
    async def law() -> None:
        few = CrowdSettings(requests=1, tokens=10_000, size_bytes=10_000)
        gate = a_gate(clock, in_all=few)
        at_once(a_turn(gate, tokens=5000))
        lower = asyncio.create_task(a_turn(gate))
        await rest()
        higher = asyncio.create_task(a_turn(gate, SCREEN))
        await rest()
        with pytest.raises(Displaced):
            await lower
        assert not higher.done()
        higher.cancel()

    asyncio.run(law())


def test_a_tenant_fills_its_own_part_alone(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock, per_tenant=CrowdSettings(requests=1, tokens=10**6, size_bytes=10**6))
        at_once(a_turn(gate, tokens=5000))
        tasks = [asyncio.create_task(a_turn(gate)), asyncio.create_task(a_turn(gate, SCREEN))]
        await rest()
        with pytest.raises(TenantQueueFull) as refusal:
            await a_turn(gate)
        assert refusal.value.retry_after_s == pytest.approx(5200 / 8000)
        for task in tasks:
            task.cancel()

    asyncio.run(law())


def test_who_waits_chooses_again_when_another_replica_has_nothing_to_do(
    clock: ManualClock,
) -> None:
    async def law() -> None:
        fleet = [FIRST]
        gate = Gate(HoldSettings(commit_tokens=1000), clock, lambda _: fleet)
        at_once(a_turn(gate, tokens=5000))
        waiting = asyncio.create_task(a_life(gate, SOME, [R1]))
        await rest()
        gate.check(clock())
        await rest()
        assert not waiting.done(), "there is no other"
        fleet.append(SECOND)
        gate.moved(R2, takes_work=True)
        assert await waiting == "asked again"

    asyncio.run(law())


def test_nobody_chooses_again_for_a_replica_of_another_model(clock: ManualClock) -> None:
    async def law() -> None:
        other = a_replica("other", models=("another",))
        gate = a_gate(clock, FIRST, other)
        at_once(a_turn(gate, tokens=5000))
        waiting = asyncio.create_task(a_life(gate, SOME, [R1]))
        gate.moved(other.id, takes_work=True)
        await rest()
        gate.check(clock())
        await rest()
        assert not waiting.done()
        waiting.cancel()

    asyncio.run(law())


def test_nobody_chooses_again_for_a_replica_that_only_prefills(clock: ManualClock) -> None:
    """It is sent nothing, so it never has anything to do."""

    async def law() -> None:
        gate = a_gate(clock, FIRST, a_replica("prefill", role=Role.PREFILL))
        at_once(a_turn(gate, tokens=5000))
        waiting = asyncio.create_task(a_turn(gate))
        await rest()
        gate.check(clock())
        await rest()
        assert not waiting.done()
        waiting.cancel()

    asyncio.run(law())


def test_who_waits_for_one_model_is_not_forgotten_for_the_queue_of_another(
    clock: ManualClock,
) -> None:
    async def law() -> None:
        busy, free = (a_replica(name, models=("another",)) for name in ("busy", "free"))
        gate = a_gate(clock, FIRST, busy, free)
        for replica, model in ((R1, MODEL), (busy.id, "another")):
            at_once(a_turn(gate, tokens=5000, replica=replica, model=model))
        queue = [asyncio.create_task(a_turn(gate)) for _ in range(3)]
        one = asyncio.create_task(a_turn(gate, replica=busy.id, model="another"))
        await rest()
        gate.check(clock())
        with pytest.raises(ChooseAgain):
            await one
        assert not any(each.done() for each in queue)
        for each in queue:
            each.cancel()

    asyncio.run(law())


def test_of_every_queue_somebody_is_asked(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock, FIRST, SECOND, a_replica("free"))
        for replica in (R1, R2):
            at_once(a_turn(gate, tokens=5000, replica=replica))
        queue = [asyncio.create_task(a_turn(gate)) for _ in range(3 * ASK_AT_ONCE)]
        one = asyncio.create_task(a_turn(gate, replica=R2))
        await rest()
        gate.check(clock())
        with pytest.raises(ChooseAgain):
            await one
        assert [each.done() for each in queue].count(True) == ASK_AT_ONCE // 2
        assert not queue[0].done(), "those who came last wait for longest"
        for each in queue:
            each.cancel()
        await asyncio.gather(*queue, return_exceptions=True)

    asyncio.run(law())


def test_a_replica_that_rests_from_batches_has_nothing_to_do_for_others(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock)
        for tenant in (SCREEN, BATCH):  # whose prompts may take no more than a part of its time
            with at_once(a_turn(gate, tenant, 800, R2)) as turn:
                turn.first_byte(clock())
        at_once(a_turn(gate, SCREEN, 5000))
        tenants = {R2: BATCH, R1: SCREEN}
        batch, screen = (
            asyncio.create_task(a_turn(gate, tenant, replica=replica))
            for replica, tenant in tenants.items()
        )
        await rest()
        gate.check(clock())
        with pytest.raises(ChooseAgain):
            await screen
        assert not batch.done()
        batch.cancel()

    asyncio.run(law())


def test_batches_do_not_keep_others_from_choosing_again(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock)
        at_once(a_turn(gate, tokens=5000))
        screen = asyncio.create_task(a_turn(gate, SCREEN))
        batches = [asyncio.create_task(a_turn(gate, BATCH)) for _ in range(ASK_AT_ONCE)]
        await rest()
        gate.check(clock())
        with pytest.raises(ChooseAgain):
            await screen
        await asyncio.gather(*batches, return_exceptions=True)

    asyncio.run(law())


class Claim:
    """What the policy is told."""

    def __init__(self, alone: int | None = None) -> None:
        self.told: list[object] = []
        self.alone = alone
        self.uncached: int | None = None
        self.on_less: Callable[[int], object] | None = None

    def less(self, tokens: int) -> None:
        assert self.uncached is not None
        self.uncached -= tokens
        if self.on_less is not None:
            self.on_less(tokens)

    def follow(self, on_less: Callable[[int], object]) -> None:
        self.on_less = on_less

    def waits(self, place: object) -> None:
        self.told.append(place)

    def goes(self) -> None:
        self.told.append("goes")

    def first_byte(self, now: float) -> None:
        self.told.append("first byte")

    def answered(self, *_: object) -> None:
        self.told.append("answered")


def test_who_chooses_again_and_again_is_told_to_wait_no_more_often(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock, comment_every_s=10)
        client, asked, told = Client(), 0, []
        at_once(a_turn(gate, tokens=5000))

        async def life() -> None:
            nonlocal asked
            while True:
                try:
                    await gate.turn(a_request(), R1, None, client)
                except ChooseAgain:
                    asked += 1

        waiting = asyncio.create_task(life())  # it could go to the other replica, and never does
        for _ in range(140):
            clock.advance(0.25)
            await rest()
            gate.check(clock())
            told.append(client.told)
        waiting.cancel()
        assert asked > 100
        assert [told[at] for at in (38, 39, 78, 79, 139)] == [0, 1, 1, 2, 3]

    asyncio.run(law())


def test_the_policy_is_told_who_waits_and_where_and_who_no_longer(clock: ManualClock) -> None:
    async def scenario() -> None:
        gate = a_gate(clock)
        claims = [Claim() for _ in range(3)]

        async def live(claim: Claim, tokens: int, end: asyncio.Event) -> None:
            with await gate.turn(a_request(SOME, tokens), R1, None, Client(), claim) as turn:
                await end.wait()
                turn.first_byte(clock())

        ends = [asyncio.Event() for _ in claims]
        tasks = [
            asyncio.create_task(live(claim, tokens, end))
            for claim, tokens, end in zip(claims, (1000, 500, 400), ends, strict=True)
        ]
        await rest()
        places = [place(SOME, None, Client.received_at, tokens) for tokens in (500, 400)]
        assert [each.told for each in claims] == [[], [places[0]], [places[1]]]
        tasks[1].cancel()
        ends[0].set()
        await rest()
        assert [each.told for each in claims] == [["first byte"], [places[0]], [places[1], "goes"]]
        ends[2].set()
        await rest()
        assert claims[2].told == [places[1], "goes", "first byte"]

    asyncio.run(scenario())


def test_what_another_gateway_has_sent_too_takes_no_room_twice(clock: ManualClock) -> None:
    """Of who has been sent, and of who waits: there is room for less sooner."""

    async def law() -> None:
        gate = a_gate(clock, FIRST)
        gate.beside(2)
        claims = [Claim() for _ in range(3)]
        turns = []
        for claim in claims:
            claim.uncached = 900
            turn = gate.turn(a_request(SOME, 900), R1, 900, Client(), claim)
            turns.append(asyncio.create_task(turn))
            await rest()
        assert [each.done() for each in turns] == [True, False, False]
        claims[1].less(750)
        gate.check(clock())
        await rest()
        assert not turns[1].done(), "there is room for a hundred"
        clock.advance(1.0)  # what the other may have sent meanwhile has been heard
        claims[0].less(400)
        await rest()
        assert [each.done() for each in turns] == [True, True, False]
        assert gate.part(R1).unbegun == 500 + 150
        claims[2].less(600)
        clock.advance(1.0)
        gate.check(clock())
        await rest()
        assert gate.part(R1).unbegun == 500 + 150 + 300
        for each in turns:
            with each.result() as given:
                given.first_byte(clock())
        assert gate.part(R1).unbegun == gate.part(R1).kv_tokens == gate.part(R1).sequences == 0

    asyncio.run(law())


def test_who_follows_does_not_overtake_its_leader(clock: ManualClock) -> None:
    gate = a_gate(clock, alike_in_a_row=1)
    order: list[str] = []

    async def live(name: str, tokens: int, alone: int) -> None:
        turn = gate.turn(a_request(SOME, tokens), R1, tokens, Client(), Claim(alone))
        with await turn as given:
            order.append(name)
            await rest()
            given.first_byte(clock())

    async def scenario() -> None:
        with await a_turn(gate, tokens=1000) as first:
            names = [("leader", 900, 900), ("follower", 20, 900), ("another", 500, 500)]
            tasks = [asyncio.create_task(live(*each)) for each in names]
            await rest()
            first.first_byte(clock())
            await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert order == ["another", "leader", "follower"]
