"""Simulated engines behind the gateway's own gate, and one run of arrivals through both.

Invariants. Every arrival ends once: answered, or sent away. Same arrivals and seeds give the same
run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Final

from gateway.choose.chooser import Chooser
from gateway.choose.policies import policy
from gateway.errors import GatewayError
from gateway.fleet.health import Standing
from gateway.fleet.ledger import Replica
from gateway.hold.gate import Gate
from gateway.hold.turn import ChooseAgain
from gateway.kv_cache import EngineFacts
from gateway.request import GenerationRequest, Usage
from gateway.settings import ChooseSettings, CrowdSettings, HoldSettings
from gateway.vocabulary import ROUTES, Health, ModelName, ReplicaAddress, ServiceClass, Tenant
from serving.sim.engine import Engine, EngineRequest, FinishReason
from serving.sim.timing import EngineShape, StepTiming
from tests.bench.holding.loop import run_virtual

if TYPE_CHECKING:
    from gateway.fleet.ledger import Lease
    from gateway.hold.turn import Turn

REPLICAS: Final = 2
PREFILL_PER_S: Final = 16_000.0
TIMING: Final = StepTiming(
    base_s=0.008,
    prefill_token_s=1 / PREFILL_PER_S,
    prefill_token_pair_s=0.0,
    decode_s=0.0,
    decode_sequence_s=0.000_05,
    decode_context_token_s=2e-8,
)
SHAPE: Final = EngineShape(
    block_size=128, blocks=8192, max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=65_536
)
COMMIT_TOKENS: Final = 2 * SHAPE.max_num_batched_tokens
BYTES_PER_TOKEN: Final = 4
ENDLESS: Final = CrowdSettings(requests=10**9, tokens=10**12, size_bytes=10**15)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of an open loop. `prefix` names what it begins with, so many tokens of it."""

    at_s: float
    tenant: Tenant
    prompt_tokens: int
    output_tokens: int
    prefix: int | None = None
    prefix_tokens: int = 0


@dataclass(slots=True, eq=False)
class Fate:
    """How an arrival fared; instants in virtual seconds, None for what never came."""

    arrival: Arrival
    sent_at_s: float | None = None
    first_at_s: float | None = None
    ended_at_s: float | None = None
    cached_tokens: int = 0
    reason: str = ""
    _first: asyncio.Event = field(default_factory=asyncio.Event)
    _end: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ttft_s(self) -> float:
        """From arrival to first token; for ever where none came."""
        return float("inf") if self.first_at_s is None else self.first_at_s - self.arrival.at_s

    @property
    def charge(self) -> int:
        """What it was given, in the tenant's coin."""
        had = self.arrival.prompt_tokens - self.cached_tokens
        return had + 2 * self.arrival.output_tokens


class Behind:
    """A replica: an engine, stepped in virtual time while it has work."""

    def __init__(self, number: int) -> None:
        self.replica = Replica(ReplicaAddress(f"http://replica-{number}:8000"))
        self.replica.standing = Standing(Health.HEALTHY)
        self.engine = Engine(SHAPE, TIMING)
        self._fates: dict[str, Fate] = {}
        self._work = asyncio.Event()
        self._numbers = count()

    async def answer(self, number: int, fate: Fate, tokens: Sequence[int]) -> None:
        """Compute one request's first token; `fate` learns the rest later."""
        name = f"{number}/{next(self._numbers)}"  # a batch that was displaced comes again
        self._fates[name] = fate
        output = range(fate.arrival.output_tokens)
        request = EngineRequest(name, tokens, output, FinishReason.LENGTH)
        self.engine.submit(request, asyncio.get_running_loop().time())
        self._work.set()
        try:
            await fate._first.wait()
        except asyncio.CancelledError:
            if fate.first_at_s is None:
                self.engine.abort(name)
                del self._fates[name]
            raise

    async def run(self) -> None:
        """Step for ever."""
        loop = asyncio.get_running_loop()
        while True:
            batch = self.engine.begin(loop.time())
            if batch is None:
                self._work.clear()
                await self._work.wait()
                continue
            await asyncio.sleep(batch.duration_s)
            now = loop.time()
            outputs, _ = self.engine.complete(batch)
            for output in outputs:
                fate = self._fates[output.request_id]
                if fate.first_at_s is None:
                    fate.first_at_s = now
                    fate.cached_tokens = output.cached_tokens
                    fate._first.set()
                if output.finish is not None:
                    fate.ended_at_s = now
                    del self._fates[output.request_id]
                    fate._end.set()


class World:
    """Replicas, a chooser and a gate; made inside the running loop."""

    def __init__(self, hold: HoldSettings) -> None:
        loop = asyncio.get_running_loop()
        self.behind = [Behind(number) for number in range(REPLICAS)]
        self.clock = loop.time
        replicas = [each.replica for each in self.behind]
        self.gate = Gate(hold, self.clock, lambda _: replicas)
        self.chooser: Chooser = policy(ChooseSettings(policy="cache-aware"), Random(1))
        self._by_id = {each.replica.id: each for each in self.behind}
        facts = EngineFacts(
            block_size=SHAPE.block_size, cache_tokens=SHAPE.blocks * SHAPE.block_size
        )
        for each in self.behind:
            self.gate.described(each.replica.id, facts)

    async def live(self, number: int, fate: Fate) -> None:
        """One request's life, as the corridor has it."""
        request, client = _request(fate.arrival, number), _Client(fate.arrival.at_s)
        try:
            while True:
                try:
                    return await self._attempt(request, client, number, fate)
                except ChooseAgain:
                    continue
        except GatewayError as error:
            fate.reason = error.reason

    async def _attempt(
        self, request: GenerationRequest, client: _Client, number: int, fate: Fate
    ) -> None:
        replicas = [each.replica for each in self.behind]
        choice = self.chooser.choose(request, replicas, self.clock())
        replica = choice.replica
        if request.tenant.service_class is ServiceClass.BATCH:
            uncached = choice.uncached(request.prompt_tokens)
            with (
                await self.gate.turn(request, replica.id, uncached, client) as turn,
                replica.lease(request.prompt_tokens) as lease,
                self.chooser.dispatched(request, choice, self.clock()) as turn.claim,
            ):
                return await self._serve(replica, number, fate, (turn, lease))
        with (
            replica.lease(request.prompt_tokens) as lease,
            self.chooser.dispatched(request, choice, self.clock()) as claim,
            await self.gate.turn(request, replica.id, claim.uncached, client, claim) as turn,
        ):
            return await self._serve(replica, number, fate, (turn, lease))

    async def _serve(
        self, replica: Replica, number: int, fate: Fate, held: tuple[Turn, Lease]
    ) -> None:
        turn, lease = held
        arrival = fate.arrival
        fate.sent_at_s = self.clock()
        await self._by_id[replica.id].answer(number, fate, _tokens(arrival, number))
        lease.prefilled()
        turn.first_byte(self.clock())
        await fate._end.wait()
        usage = Usage(arrival.prompt_tokens, arrival.output_tokens, fate.cached_tokens)
        turn.answered(usage, self.clock())

    async def run(self, arrivals: Sequence[Arrival], until_s: float) -> list[Fate]:
        """Let all of them come and live, up to an instant."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(each.run()) for each in self.behind]
        tasks.append(loop.create_task(self.gate.watch()))
        fates = [Fate(each) for each in arrivals]
        lives: list[asyncio.Task[None]] = []
        for number, fate in enumerate(fates):
            pause_s = fate.arrival.at_s - loop.time()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            if loop.time() >= until_s:
                break
            lives.append(loop.create_task(self.live(number, fate)))
        if loop.time() < until_s and lives:
            await asyncio.wait(lives, timeout=until_s - loop.time())
        for task in (*lives, *tasks):
            task.cancel()
        await asyncio.gather(*lives, *tasks, return_exceptions=True)
        return fates


@dataclass(frozen=True, slots=True)
class _Client:
    received_at: float
    body: bytes = b""

    def keep_waiting(self) -> None:
        """Nobody listens."""


def _tokens(arrival: Arrival, number: int) -> list[int]:
    own = range(10**9 + number * 65_536, 10**9 + (number + 1) * 65_536)
    prefix: Sequence[int] = ()
    if arrival.prefix is not None:
        first = arrival.prefix * 65_536
        prefix = range(first, first + arrival.prefix_tokens)
    return [*prefix, *own[: arrival.prompt_tokens - len(prefix)]]


def _request(arrival: Arrival, number: int) -> GenerationRequest:
    """Four bytes a token: equal beginnings are equal beginnings."""
    prefix = b"" if arrival.prefix is None else b"%03x " % (arrival.prefix % 4096)
    prompt = (prefix * arrival.prefix_tokens + b"%d " % number).ljust(
        arrival.prompt_tokens * BYTES_PER_TOKEN, b"."
    )
    return GenerationRequest(
        route=ROUTES[0],
        model=ModelName("m"),
        stream=True,
        prompt_bytes=len(prompt),
        prompt_tokens=arrival.prompt_tokens,
        max_tokens=None,
        prompt=prompt,
        tenant=arrival.tenant,
    )


def held(commit_tokens: int | None = COMMIT_TOKENS, run: int = 8) -> HoldSettings:
    """Settings without bounds on who may wait; None sends all at once."""
    return HoldSettings(
        commit_tokens=commit_tokens,
        max_sequences=SHAPE.max_num_seqs if commit_tokens is not None else None,
        in_all=ENDLESS,
        per_tenant=ENDLESS,
        max_wait_s=1e9,
        alike_in_a_row=run,
    )


def simulate(
    arrivals: Sequence[Arrival],
    hold: HoldSettings,
    *,
    until_s: float,
) -> list[Fate]:
    """One run, from an empty pool."""

    async def main() -> list[Fate]:
        return await World(hold).run(arrivals, until_s)

    return run_virtual(main())
