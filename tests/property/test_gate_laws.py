"""The gate under any order of events, a cancellation at any of them: nothing is lost or kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

import hypothesis.strategies as st
from hypothesis import given, settings

from gateway.errors import Evicted, Rejected
from gateway.hold.gate import Gate
from gateway.hold.turn import ChooseAgain, Turn
from gateway.kv_cache import EngineFacts
from gateway.request import GenerationRequest, Usage
from gateway.settings import CrowdSettings, HoldSettings
from gateway.vocabulary import ReplicaId, ServiceClass, Tenant
from tests.builders import a_replica, a_request
from tests.conftest import ManualClock

FLEET = [a_replica("r1"), a_replica("r2")]
REPLICAS = [each.id for each in FLEET]
TENANTS = [
    Tenant("i", ServiceClass.INTERACTIVE),
    Tenant("d", weight=2.0),
    Tenant("h", ttft_objective_s=1.0),
    Tenant("b", ServiceClass.BATCH),
]
ONE_OF_EACH_CLASS = [each for each in TENANTS if each.name != "h"]
SMALL = HoldSettings(
    commit_tokens=1000,
    max_sequences=4,
    in_all=CrowdSettings(requests=8, tokens=8000, size_bytes=8000),
    per_tenant=CrowdSettings(requests=5, tokens=5000, size_bytes=5000),
    max_wait_s=20.0,
)
EVENTS = (
    "come", "come", "come", "come", "first_byte", "first_byte", "finish", "finish", "finish",
    "leave", "leave at once", "leave at once", "pass", "check", "out", "in", "cleared", "facts",
    "loop", "loop",
)  # fmt: skip


class Someone:
    """A client, and what became of it."""

    def __init__(
        self, gate: Gate, clock: ManualClock, rng: Random, tenants: Sequence[Tenant]
    ) -> None:
        self.gate = gate
        self.clock = clock
        self.rng = rng
        self.received_at = clock()
        self.body = b"x" * rng.randrange(1500)
        self.comments = 0
        self.turn: Turn | None = None
        self.has_begun = False
        self.done = asyncio.Event()
        self.outcome = ""
        request = a_request(
            stream=rng.random() < 0.7,
            prompt_tokens=rng.randrange(1, 1500),
            max_tokens=rng.choice((None, 5)),
        )
        self.request = GenerationRequest(
            request.route, request.model, request.stream, request.prompt_bytes,
            request.prompt_tokens, request.max_tokens, prompt=b"p" * rng.choice((10, 3000)),
            tenant=rng.choice(tenants),
            deadline=rng.choice((None, None, clock() + rng.uniform(0.0, 10.0))),
        )  # fmt: skip

    def keep_waiting(self) -> None:
        self.comments += 1

    async def live(self) -> None:
        try:
            self.outcome = await self._live()
        except asyncio.CancelledError:
            self.outcome = "left"
            raise
        finally:
            self.gate.left(self)

    async def _live(self) -> str:
        keeps_its_place = False
        while True:
            replica = self.rng.choice(REPLICAS)
            try:
                with await self.gate.turn(self.request, replica, None, self) as self.turn:
                    await self.done.wait()
                    self.turn.answered(Usage(self.turn.uncached, 7, 0), self.clock())
            except ChooseAgain:
                keeps_its_place = self.turn is None  # not one that was displaced
                await asyncio.sleep(0)  # others come while it chooses
                continue
            except Rejected as error:
                if keeps_its_place:
                    return "refused its own place"
                return "rejected" if error.retry_after_s is not None else "left in the dark"
            except Evicted:
                return "evicted"
            finally:
                self.turn = None
            return "finished"


class World:
    """A gate, and everybody who has come to it."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.clock = ManualClock()
        self.out: set[ReplicaId] = set()
        self.gate = Gate(
            SMALL, self.clock, lambda _: [each for each in FLEET if each.id not in self.out]
        )
        self.people: list[tuple[Someone, asyncio.Task[None]]] = []
        self.tenants = self.rng.choice((TENANTS, ONE_OF_EACH_CLASS))

    async def happen(self, event: str) -> None:
        gate, replica = self.gate, self.rng.choice(REPLICAS)
        match event:
            case "come":
                someone = Someone(gate, self.clock, self.rng, self.tenants)
                self.people.append((someone, asyncio.create_task(someone.live())))
            case "first_byte":
                self.one(lambda each: each.turn is not None, self.begin)
            case "finish":
                self.one(lambda each: each.turn is not None, lambda each: each.done.set())
            case "leave":
                self.cancel()
            case "leave at once":
                await self.rest()
                self.leave_at_once()
                await self.rest()
                await self.judge()
            case "pass":
                self.let_time_pass()
            case "check":
                gate.check(self.clock())
            case "facts":
                gate.described(replica, EngineFacts(cache_tokens=self.rng.randrange(500, 5000)))
            case "out":
                self.out.add(replica)
                gate.moved(replica, takes_work=False)
            case "in":
                self.out.discard(replica)
                gate.moved(replica, takes_work=True)
            case "cleared":
                gate.ask_again(replica)
            case _:
                await self.rest()

    def let_time_pass(self) -> None:
        self.clock.advance(self.rng.uniform(0.0, 6.0))
        if self.tenants is ONE_OF_EACH_CLASS:
            self.gate.check(self.clock())

    def leave_at_once(self) -> None:
        """In the very tick in which it was given its turn."""
        waiting = list(self.gate.crowd)
        self.one(lambda each: each.turn is not None, self.begin)
        given = [each.client for each in waiting if not each.is_waiting]
        for someone, task in self.people:
            if someone in given:
                task.cancel()

    def one(self, which: Callable[[Someone], bool], do: Callable[[Someone], None]) -> None:
        found = [each for each, task in self.people if which(each) and not task.done()]
        if found:
            do(self.rng.choice(found))

    def begin(self, someone: Someone) -> None:
        assert someone.turn is not None
        someone.turn.first_byte(self.clock())

    def cancel(self) -> None:
        open_tasks = [task for _, task in self.people if not task.done()]
        if open_tasks:
            self.rng.choice(open_tasks).cancel()

    async def rest(self) -> None:
        """Until all tasks wait."""
        for _ in range(8):
            await asyncio.sleep(0)

    async def judge(self) -> None:
        """With all tasks at rest. What time alone has changed, and what is charged at one replica
        and makes another tenant the first at the next, is seen when the gate looks. All else holds
        without that: where it looks whenever time has passed, and each class is of one tenant."""
        self.count()
        if self.tenants is ONE_OF_EACH_CLASS:
            self.nobody_waits_in_vain()
        self.gate.check(self.clock())
        await self.rest()
        self.count()
        self.nobody_waits_in_vain()

    def nobody_waits_in_vain(self) -> None:
        for lane in self.gate._lanes.values():
            reads_at = self.clock() + lane.room.wait_s(0)  # who is first then, goes first
            first = lane.queue.head(reads_at, with_batch=lane.is_spare(self.clock()))
            assert (
                first is None
                or not lane.room.is_open(self.clock())
                or not lane.room.fits(first.uncached, first.output, self.clock())
            ), "nobody waits for an open replica"

    def count(self) -> None:
        """Counts are those of who is there."""
        turns = [each.turn for each, _ in self.people if each.turn is not None]
        waiting = list(self.gate.crowd)
        assert self.gate.crowd.count.requests == len(waiting) <= 8
        assert self.gate.crowd.count.tokens == sum(each.uncached for each in waiting)
        for lane in self.gate._lanes.values():
            held = [each for each in turns if each.lane is lane]
            assert lane.room.sequences == len(held) <= 4
            assert lane.room.kv_tokens == sum(each.uncached + each.output for each in held)
            assert lane.room.unbegun == sum(each.unbegun for each in held)
            assert lane.queue.requests == sum(each.lane is lane for each in waiting)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), min_size=10, max_size=150), st.integers(0, 2**32))
def test_whatever_happens_everybody_ends_once_and_nothing_is_kept(
    events: list[str], seed: int
) -> None:
    async def law() -> None:
        world = World(seed)
        for event in events:
            await world.happen(event)
            if world.rng.random() < 0.6:
                await asyncio.sleep(0)
            if event == "loop":
                await world.judge()
        async with asyncio.timeout(5.0):
            while any(not task.done() for _, task in world.people):
                for someone, _ in world.people:
                    someone.done.set()
                await asyncio.sleep(0)
                world.clock.advance(0.5)
                world.gate.check(world.clock())
        outcomes = Counter(each.outcome for each, _ in world.people)
        never = sum(task.cancelled() and not each.outcome for each, task in world.people)
        assert sum(outcomes.values()) == len(world.people)
        assert set(outcomes) <= {"finished", "rejected", "evicted", "left", ""}
        assert outcomes[""] == never, "cancelled before it had begun"
        assert not world.gate.crowd.count.requests
        for lane in world.gate._lanes.values():
            room = lane.room
            assert (room.sequences, room.kv_tokens, room.unbegun) == (0, 0, 0), room
            assert not len(lane.queue)

    asyncio.run(law())
