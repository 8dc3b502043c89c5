"""Who waits for a model that nothing serves: any order of events, cancellations at any of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from fractions import Fraction
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gateway.errors import Evicted, QueueFull, Rejected
from gateway.hold.cold import ColdHold
from gateway.hold.cold_starts import LEAST_S, REMEMBERED, ColdStarts
from gateway.hold.crowd import Crowd
from gateway.hold.fair_queue import Ticket
from gateway.request import GenerationRequest
from gateway.settings import CrowdSettings, HoldSettings, ModelSettings
from gateway.vocabulary import ModelName, ServiceClass, Tenant
from tests.builders import a_request
from tests.conftest import ManualClock

MODELS = {
    name: ModelSettings(
        name=name, held=CrowdSettings(requests=5, tokens=3000, size_bytes=4000), max_hold_s=30.0
    )
    for name in (ModelName("m"), ModelName("n"))
}
TENANTS = [Tenant("i", ServiceClass.INTERACTIVE), Tenant("d"), Tenant("b", ServiceClass.BATCH)]
HOLD = HoldSettings(per_tenant=CrowdSettings(requests=3, tokens=2500, size_bytes=3500))
EVENTS = (
    "come", "come", "come", "come", "leave", "leave at once", "pass", "check", "ready", "served",
    "gone", "loop",
)  # fmt: skip


class Someone:
    """A client, and what became of it."""

    def __init__(self, world: World) -> None:
        rng = world.rng
        self.world = world
        self.received_at = world.clock()
        self.body = b"x" * rng.randrange(1500)
        self.comments = 0
        self.outcome = ""
        self.model = rng.choice(list(MODELS.values()))
        request = a_request(
            self.model.name, stream=rng.random() < 0.5, prompt_tokens=rng.randrange(1, 1500)
        )
        self.request = GenerationRequest(
            request.route, request.model, request.stream, request.prompt_bytes,
            request.prompt_tokens, None, tenant=rng.choice(TENANTS),
            deadline=rng.choice((None, None, world.clock() + rng.uniform(0.0, 20.0))),
        )  # fmt: skip

    def keep_waiting(self) -> None:
        assert self.request.stream
        self.comments += 1

    async def live(self) -> None:
        world = self.world
        try:
            while self.model.name not in world.served:
                await world.hold.wait(self.model, self.request, self)
        except asyncio.CancelledError:
            self.outcome = "left"
            raise
        except Rejected as error:
            self.outcome = "rejected" if error.retry_after_s else "left in the dark"
        except Evicted as error:
            self.outcome = "evicted" if error.retry_after_s else "left in the dark"
        else:
            self.outcome = "went on"


class World:
    """A hold, and everybody who has come to it."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.clock = ManualClock()
        self.served: set[ModelName] = set()
        self.hold = ColdHold(HOLD, self.clock, self.served.__contains__)
        self.people: list[tuple[Someone, asyncio.Task[None]]] = []
        self.triggers: Counter[ModelName] = Counter()
        self.hold.on_activation(self.trigger)

    def trigger(self, model: ModelName) -> None:
        assert self.hold.count(model).requests == 1, "the first to come, and already counted"
        self.triggers[model] += 1

    def waiting(self) -> list[Someone]:
        return [each for each, task in self.people if not task.done() and not each.outcome]

    async def happen(self, event: str) -> None:
        model = self.rng.choice(list(MODELS))
        match event:
            case "come":
                someone = Someone(self)
                self.people.append((someone, asyncio.create_task(someone.live())))
            case "leave":
                self.cancel(self.people)
            case "leave at once":  # in the very tick in which it may go on
                await self.rest()
                waiting = self.waiting()
                self.ready(model)
                self.cancel([pair for pair in self.people if pair[0] in waiting])
            case "pass":
                self.clock.advance(self.rng.uniform(0.0, 12.0))
            case "check":
                self.hold.check(self.clock())
            case "ready":
                self.ready(model)
            case "served":  # by one that took work already, and nobody says so
                self.served.add(model)
            case "gone":
                self.served.discard(model)
            case _:
                await self.rest()

    def ready(self, model: ModelName) -> None:
        self.served.add(model)
        self.hold.arrived([model])

    def cancel(self, people: list[tuple[Someone, asyncio.Task[None]]]) -> None:
        running = [task for _, task in people if not task.done()]
        if running:
            self.rng.choice(running).cancel()

    async def rest(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    def check(self) -> None:
        """The counts are those of who waits, and within the bounds; with all tasks at rest."""
        for name, model in MODELS.items():
            waiting = [each for each in self.waiting() if each.model is model]
            count = self.hold.count(name)
            assert count.requests == len(waiting) <= model.held.requests
            assert count.tokens == sum(each.request.prompt_tokens for each in waiting)
            assert count.size_bytes == sum(len(each.body) for each in waiting)
            fullest = max(
                Fraction(count.requests, model.held.requests),
                Fraction(count.tokens, model.held.tokens),
                Fraction(count.size_bytes, model.held.size_bytes),
            )
            assert self.hold.fill().get(name, 0.0) == float(fullest)
        assert self.hold.held == len(self.waiting())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), min_size=10, max_size=120), st.integers(0, 2**32))
def test_whatever_happens_everybody_ends_once_and_nothing_is_kept(
    events: list[str], seed: int
) -> None:
    async def law() -> None:
        world = World(seed)
        for event in events:
            await world.happen(event)
            await world.rest()
            world.check()
        world.served.update(MODELS)
        world.hold.check(world.clock())
        await world.rest()
        outcomes = Counter(each.outcome for each, _ in world.people)
        never = sum(task.cancelled() and not each.outcome for each, task in world.people)
        assert set(outcomes) <= {"went on", "rejected", "evicted", "left", ""}
        assert outcomes[""] == never, "cancelled before it had begun"
        assert world.hold.held == 0

    asyncio.run(law())


def test_one_trigger_however_many_wait_and_another_once_all_have_left() -> None:
    async def law() -> None:
        world = World(0)
        model = MODELS[ModelName("m")]

        def come() -> asyncio.Task[None]:
            someone = Someone(world)
            someone.model, someone.request = model, a_request("m", prompt_tokens=10)
            return asyncio.create_task(someone.live())

        first = [come() for _ in range(3)]
        await world.rest()
        assert world.triggers == {"m": 1}
        for task in first:
            task.cancel()
        await world.rest()
        last = come()
        await world.rest()
        assert world.triggers == {"m": 2}
        world.clock.advance(90.0)
        world.ready(ModelName("m"))
        await last
        starts = world.hold.starts(ModelName("m"))
        assert (starts.count, starts.sum_s) == (1, 90.0), "learnt once, from the first who came"

    asyncio.run(law())


def test_who_is_refused_is_told_what_the_last_starts_have_taught() -> None:
    async def law() -> None:
        world = World(0)
        name = ModelName("m")
        world.hold.starts(name).took(80.0)
        tasks = []
        for _ in range(3):  # as many as one tenant may have
            someone = Someone(world)
            someone.model, someone.request = MODELS[name], a_request("m", prompt_tokens=1)
            someone.body = b""
            tasks.append(asyncio.create_task(someone.live()))
        await world.rest()
        refused = Someone(world)
        refused.model, refused.request = MODELS[name], a_request("m", prompt_tokens=1)
        world.clock.advance(20.0)
        with pytest.raises(Rejected) as caught:
            await world.hold.wait(refused.model, refused.request, refused)
        assert (caught.value.status, caught.value.retry_after_s) == (429, 60.0)
        world.ready(name)
        await asyncio.gather(*tasks)

    asyncio.run(law())


@given(
    st.lists(st.integers(1, 1000), max_size=40),  # whole seconds add up exactly
    st.lists(st.integers(0, 3000), min_size=2, max_size=2),
)
def test_what_is_left_of_a_start_follows_from_those_that_took_longer(
    past: list[int], instants: list[int]
) -> None:
    starts = ColdStarts(120)
    for took in past:
        starts.took(took)
    early, late = sorted(instants)
    known = past[-REMEMBERED:] or [120]
    for elapsed in (early, late):
        left = starts.remaining_s(elapsed)
        longer = [took for took in known if took > elapsed]
        assert left >= LEAST_S
        if longer:
            assert left <= max(LEAST_S, max(longer) - elapsed)
            assert sum(took <= elapsed + left for took in longer) >= len(longer) * 0.75
        else:
            assert left == max(LEAST_S, elapsed / 2)
    if all((took > early) == (took > late) for took in known) and late < max(known):
        assert starts.remaining_s(late) <= starts.remaining_s(early)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 900)), min_size=6, max_size=40),
    st.lists(st.sampled_from((0.5, 1.0, 2.0)), min_size=4, max_size=4),
)
def test_nobody_is_kept_out_by_who_has_more_of_a_full_hold(
    arrivals: list[tuple[int, int]], weights: list[float]
) -> None:
    """Tenants of one class: who is refused, or makes room, would have had the largest part."""
    bounds = CrowdSettings(requests=5, tokens=3000, size_bytes=4000)
    crowd = Crowd[Ticket](bounds, bounds)

    def part(tenant: Tenant, more: int = 0) -> float:
        own = [each.uncached for each in crowd if each.tenant is tenant]
        requests = len(own) + (more > 0)
        return max(requests / 5, (sum(own) + more) / 3000) / tenant.weight

    tenants = [Tenant(f"t{i}", weight=weight) for i, weight in enumerate(weights)]
    for who, tokens in arrivals:
        tenant = tenants[who]
        ticket = Ticket(tenant, 0.0, tokens)
        while isinstance(crowd.obstacle(ticket), QueueFull):
            others = max((part(each) for each in tenants if each is not tenant), default=0.0)
            other = crowd.who_makes_room(ticket)
            if other is None:
                assert part(tenant, tokens) >= others
                break
            assert other.tenant is not tenant
            assert part(other.tenant) == others > part(tenant, tokens)
            assert other is [each for each in crowd if each.tenant is other.tenant][-1]
            crowd.leave(other)
        if crowd.obstacle(ticket) is None:
            crowd.join(ticket)
