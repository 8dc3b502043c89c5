"""The gate and the policy together: nobody waits for a replica that is late for nothing."""

from __future__ import annotations

import asyncio
from random import Random

from gateway.choose.policies import policy
from gateway.hold.gate import Gate
from gateway.hold.turn import ChooseAgain
from gateway.request import GenerationRequest
from gateway.settings import ChooseSettings, HoldSettings
from gateway.vocabulary import ModelName, ReplicaId
from tests.builders import a_replica, a_route
from tests.conftest import ManualClock


class Client:
    """Somebody."""

    body = b""

    def __init__(self, received_at: float) -> None:
        self.received_at = received_at

    def keep_waiting(self) -> None:
        """It does."""


class World:
    """Two replicas, and engines that never answer."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.replicas = (a_replica("r1"), a_replica("r2"))
        self.gate = Gate(HoldSettings(), clock, lambda _: self.replicas)
        self.chooser = policy(ChooseSettings(policy="cache-aware"), Random(1))
        self.sent: list[ReplicaId] = []

    async def live(self, prompt: bytes) -> None:
        tokens = len(prompt) // 4
        request = GenerationRequest(
            a_route(), ModelName("m"), True, len(prompt), tokens, None, prompt=prompt
        )
        client = Client(self.clock())
        while True:
            choice = self.chooser.choose(request, self.replicas, self.clock())
            name = choice.replica.id
            try:
                with (
                    self.chooser.dispatched(request, choice, self.clock()) as claim,
                    await self.gate.turn(request, name, claim.uncached, client, claim),
                ):
                    self.sent.append(name)
                    await asyncio.Event().wait()
            except ChooseAgain:
                continue

    async def pass_by(self, span_s: float) -> None:
        """As the gate's own loop has it."""
        for _ in range(int(span_s / 0.25)):
            self.clock.advance(0.25)
            self.gate.check(self.clock())
            for _ in range(4):
                await asyncio.sleep(0)


def test_nobody_waits_for_ever_for_what_a_replica_holds_that_does_not_answer(
    clock: ManualClock,
) -> None:
    async def scenario() -> None:
        world, rng = World(clock), Random(3)
        text = bytes(rng.choices(range(97, 123), k=80_000))
        tasks = [asyncio.create_task(world.live(text))]  # more than the gate commits
        await world.pass_by(3.0)
        (busy,) = world.sent
        tasks.append(asyncio.create_task(world.live(text[:16_000] + b" and so on")))
        await asyncio.sleep(0)
        assert world.gate.crowd.count.requests == 1, "where its beginning is held"
        await world.pass_by(2.0)
        assert world.sent[1:] == [each.id for each in world.replicas if each.id != busy]
        for each in tasks:
            each.cancel()

    asyncio.run(scenario())
