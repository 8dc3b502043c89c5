"""Who is asked to choose anew has waited: it keeps what it had until it has chosen."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import Displaced, QueueFull
from gateway.hold.gate import Gate
from gateway.hold.turn import ChooseAgain, Turn
from gateway.settings import CrowdSettings, HoldSettings
from gateway.vocabulary import ReplicaId, Tenant
from tests.builders import MODEL, a_replica
from tests.conftest import ManualClock
from tests.unit.hold.test_gate import (
    BATCH,
    R1,
    R2,
    SCREEN,
    SECOND,
    SOME,
    Client,
    a_gate,
    a_request,
    a_turn,
    at_once,
    rest,
)

ONE = CrowdSettings(requests=1, tokens=10_000, size_bytes=10_000)


async def a_life(gate: Gate, tenant: Tenant, *replicas: ReplicaId) -> Turn:
    """A turn at the first of these, or at the next when it is asked to choose anew."""
    client = Client()
    for replica in replicas:
        try:
            return await gate.turn(a_request(tenant), replica, None, client)
        except ChooseAgain:
            continue
    gate.left(client)
    raise ChooseAgain


def a_full_gate(clock: ManualClock) -> Gate:
    """Nobody may be sent anything any more, and one may wait for it."""
    gate = a_gate(clock, in_all=ONE)
    for replica in (R1, R2):
        at_once(a_turn(gate, tokens=5000, replica=replica))
    return gate


def test_who_has_waited_is_not_refused_for_who_came_meanwhile(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_full_gate(clock)
        waiting = asyncio.create_task(a_life(gate, SOME, R1, R2))
        await rest()
        gate.ask_again(R1)
        with pytest.raises(QueueFull):  # before the other has chosen
            await a_turn(gate)
        await rest()
        assert not waiting.done()
        assert gate.crowd.count.requests == 1
        waiting.cancel()
        await rest()
        assert not gate.crowd.count.requests

    asyncio.run(law())


def test_who_has_waited_is_not_refused_for_how_long_it_would_wait(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock, max_wait_s=0.5)
        turn = at_once(a_turn(gate, tokens=2000, replica=R2))
        clock.advance(10.0)
        turn.first_byte(clock())  # 200 tokens a second
        for replica in (R1, R2):
            at_once(a_turn(gate, tokens=5000, replica=replica))
        waiting = asyncio.create_task(a_life(gate, SOME, R1, R2))
        await rest()
        gate.ask_again(R1)
        await rest()
        assert not waiting.done()
        with pytest.raises(QueueFull):
            await a_turn(gate, replica=R2)
        waiting.cancel()
        await rest()

    asyncio.run(law())


@pytest.mark.parametrize("leaves", [True, False])
def test_who_chooses_no_more_keeps_no_place(clock: ManualClock, leaves: bool) -> None:
    async def law() -> None:
        gate = a_full_gate(clock)
        waiting = asyncio.create_task(a_life(gate, SOME, R1))
        await rest()
        gate.ask_again(R1)
        if leaves:
            waiting.cancel()
        await rest()
        assert waiting.done()
        assert not gate.crowd.count.requests
        another = asyncio.create_task(a_turn(gate))
        await rest()
        assert not another.done()
        another.cancel()
        await rest()

    asyncio.run(law())


def test_who_has_a_turn_elsewhere_waits_no_longer(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock, in_all=ONE)
        at_once(a_turn(gate, tokens=5000))
        waiting = asyncio.create_task(a_life(gate, SOME, R1, R2))
        await rest()
        gate.ask_again(R1)
        assert (await waiting).lane.replica == R2
        assert not gate.crowd.count.requests

    asyncio.run(law())


def test_a_higher_class_takes_the_place_of_who_chooses_too(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_full_gate(clock)
        waiting = asyncio.create_task(a_life(gate, SOME, R1, R2))
        await rest()
        gate.ask_again(R1)
        higher = asyncio.create_task(a_turn(gate, SCREEN))
        await rest()
        assert gate.crowd.waiting() == {"interactive": 1, "default": 0, "batch": 0}
        with pytest.raises(Displaced):
            await waiting
        higher.cancel()
        await rest()

    asyncio.run(law())


def test_where_all_of_a_class_choose_anew_it_is_owed_what_it_was(clock: ManualClock) -> None:
    """Behind others a batch is given a tenth of what they are: its tokens here, after ten."""

    async def scenario(*, asked: bool) -> list[str]:
        gate = a_gate(clock, max_sequences=1, batch_floor=0.1)
        order: list[str] = []

        async def live(tenant: Tenant) -> None:
            client = Client()
            while True:
                try:
                    with await gate.turn(a_request(tenant), R1, None, client) as turn:
                        order.append(tenant.name)
                        await rest()
                        turn.first_byte(clock())
                        return
                except ChooseAgain:
                    continue

        with at_once(a_turn(gate, SCREEN)) as first:
            first.first_byte(clock())
            lives = [asyncio.create_task(live(each)) for each in [BATCH] + [SCREEN] * 14]
            await rest()
        while len(order) < 9:
            await asyncio.sleep(0)
        if asked:
            gate.ask_again(R1)
        await asyncio.gather(*lives)
        return order

    undisturbed = asyncio.run(scenario(asked=False))
    assert undisturbed.index("batch") == 10
    assert asyncio.run(scenario(asked=True)) == undisturbed


def test_tenants_of_a_class_that_chooses_anew_have_had_what_they_had(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock, max_sequences=1)
        greedy, modest = Tenant("a"), Tenant("b")
        turn = at_once(a_turn(gate, greedy))
        order: list[str] = []

        async def live(tenant: Tenant) -> None:
            nonlocal turn
            turn = await a_life(gate, tenant, *[R1] * 4)
            order.append(tenant.name)

        lives = [asyncio.create_task(live(each)) for each in (greedy, greedy, modest)]
        for _ in range(3):
            await rest()
            gate.ask_again(R1)
            await rest()
            with turn:
                turn.first_byte(clock())
        await asyncio.gather(*lives)
        assert order == ["a", "b", "a"]

    asyncio.run(law())


def test_what_waits_behind_who_is_asked_to_choose_anew_may_go(clock: ManualClock) -> None:
    async def law() -> None:
        fleet = [a_replica("r1", models=(MODEL, "another"))]
        gate = Gate(
            HoldSettings(commit_tokens=1000),
            clock,
            lambda model: [each for each in fleet if model in each.models],
        )
        at_once(a_turn(gate, tokens=600))
        long = asyncio.create_task(a_turn(gate, SCREEN, 900))
        small = asyncio.create_task(a_turn(gate, model="another"))
        await rest()
        assert not small.done(), "the long one is first"
        fleet.append(SECOND)
        gate.moved(R2, takes_work=True)
        await rest()
        with pytest.raises(ChooseAgain):
            await long
        assert small.done()

    asyncio.run(law())


def test_what_waits_behind_who_makes_room_may_go(clock: ManualClock) -> None:
    async def law() -> None:
        gate = a_gate(clock, in_all=CrowdSettings(requests=10, tokens=1000, size_bytes=10_000))
        at_once(a_turn(gate, tokens=600))
        at_once(a_turn(gate, tokens=5000, replica=R2))
        long, small = (
            asyncio.create_task(a_turn(gate, tenant, tokens))
            for tenant, tokens in ((Tenant("a"), 900), (Tenant("b"), 100))
        )
        await rest()
        assert not small.done(), "the long one is first"
        another = asyncio.create_task(a_turn(gate, replica=R2))
        await rest()
        with pytest.raises(Displaced):
            await long
        assert small.done()
        another.cancel()
        await rest()

    asyncio.run(law())
