"""Our default policy as it runs: what it chose is held until its replica is open.

The queue, its order and what a replica may be given are the gateway's own (`gateway.hold`); only
the tasks that wait are left out. Those that wait when their replica dies choose anew, and so do
some of those that wait while another has nothing to do. Each of several gateways has queues and
rooms of its own, and hears of the others' when it is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Final, Protocol, runtime_checkable

from gateway.choose.chooser import Claim
from gateway.hold.asking import ASK_AT_ONCE
from gateway.hold.capacity import Bounds, Load, Part, Room
from gateway.hold.fair_queue import FairQueue, Ticket
from gateway.hold.gate import WATCH_EVERY_S
from gateway.hold.shares import Shares
from gateway.order import CLASSES, FIRST, PATIENCE_S
from gateway.settings import HoldSettings
from gateway.vocabulary import Tenant
from tests.bench.routing.cache import BLOCK_TOKENS, Arrival
from tests.bench.routing.engine import Job, ReplicaSpec
from tests.bench.routing.world import Router, Run, World

EVERYBODY: Final = Tenant("everybody")


class Waiter(Ticket):
    """A job that has been promised to a replica."""

    __slots__ = ("claim", "job")

    def __init__(self, job: Job, claim: Claim) -> None:
        uncached = claim.uncached
        assert uncached is not None
        super().__init__(
            EVERYBODY, job.arrived_at_s, uncached, output=job.arrival.output_tokens
        )  # fmt: skip
        assert claim.alone is not None
        self.alone = claim.alone
        self.job = job
        self.claim = claim

    @property
    def beginning(self) -> int:
        """What names those that begin alike."""
        return self.job.arrival.blocks[0]

    @property
    def left(self) -> int:
        """What it has to prefill by now."""
        assert self.claim.uncached is not None
        return self.claim.uncached


@runtime_checkable
class Keeper(Router, Protocol):
    """A router that can make what it has chosen wait."""

    def door(self, arrival: Arrival) -> int:
        """The gateway it came to."""

    def claim(self, arrival: Arrival) -> Claim:
        """On what was chosen for it."""

    def sent(self, arrival: Arrival, replica: int, now: float) -> None:
        """It waits no longer."""


class Door:
    """What one gateway holds back, and what it counts at every replica."""

    def __init__(self, specs: Sequence[ReplicaSpec], gateways: int) -> None:
        hold = HoldSettings()
        shares = [Shares() for _ in CLASSES]
        floors = (0.0, hold.default_floor, hold.batch_floor)
        self.queues = [FairQueue[Waiter](shares, floors, hold.alike_in_a_row) for _ in specs]
        self.rooms = [
            Room(
                Bounds(
                    hold.commit_tokens,
                    each.most_running,
                    each.cache_blocks * BLOCK_TOKENS,
                    hold.commit_s,
                )
            )
            for each in specs
        ]
        for room in self.rooms:
            room.beside(gateways)
        self.timed: set[int] = set()  # replicas that will be looked at again by the clock
        self.waiting: list[dict[int, Waiter]] = [{} for _ in specs]  # by arrival, as they came
        self.is_watched = False  # will be looked at for replicas that have nothing to do

    def __repr__(self) -> str:
        return f"<Door {self.rooms!r} {self.queues!r}>"

    def part(self, replica: int, now: float) -> Part:
        """Its own, to be told."""
        queue = self.queues[replica]
        first = queue.head(now)
        return self.rooms[replica].part(queue.requests, FIRST if first is None else first.stands)

    def push(self, waiter: Waiter, replica: int) -> None:
        """It waits there."""
        self.queues[replica].push(waiter)
        self.waiting[replica][waiter.job.arrival.number] = waiter

    def is_free(self, replica: int, now: float) -> bool:
        """Has it nothing to do, and nobody who waits to be given that?"""
        return not self.queues[replica].requests and self.rooms[replica].is_open(now, to_batch=True)

    def asked(self, replica: int, most: int, now: float) -> list[Waiter]:
        """Of those that wait there, who is to choose anew: as `who_is_asked` has it."""
        waiters = list(self.waiting[replica].values())
        if self.rooms[replica].gateways == 1:
            return waiters[-most:]
        leading = {each.beginning for each in waiters if each.alone <= each.left}
        return [
            each
            for each in waiters[-most:]
            if each.beginning in leading or now - each.since > PATIENCE_S
        ]

    def may_go(self, waiter: Waiter, replica: int, now: float) -> bool:
        """Is there room for it?"""
        room = self.rooms[replica]
        place = waiter.stands if waiter.is_waiting else waiter.place
        return room.is_open(now) and room.fits(waiter.left, waiter.output, now, place)


class Held(World):
    """Replicas behind the queues of gateways."""

    def __init__(self, specs: Sequence[ReplicaSpec], gateways: int = 1) -> None:
        super().__init__(specs)
        self.doors = [Door(specs, gateways) for _ in range(gateways)]
        self._keeper: Keeper | None = None
        self._sent: dict[int, tuple[Room, Load]] = {}  # by arrival

    def __repr__(self) -> str:
        return f"<Held {self.doors!r}>"

    def run(self, arrivals: Sequence[Arrival], router: Router) -> Run:
        """Routers of others have nothing that waits."""
        assert isinstance(router, Keeper)
        self._keeper = router
        return super().run(arrivals, router)

    @property
    def keeper(self) -> Keeper:
        """Whose choices wait."""
        assert self._keeper is not None
        return self._keeper

    def _dispatch(self, job: Job, now: float, router: Router) -> None:
        index = router.choose(job.arrival, now)
        door = self.doors[self.keeper.door(job.arrival)]
        waiter = Waiter(job, self.keeper.claim(job.arrival))
        if not door.queues[index].requests and door.may_go(waiter, index, now):
            self._send(door, waiter, index, now)
        else:
            door.push(waiter, index)
            waiter.claim.waits(waiter.place)
            self.serve(door, index, now)
            if not door.is_watched:
                door.is_watched = True
                self.at(now + WATCH_EVERY_S, partial(self._watch, door))

    def _send(self, door: Door, waiter: Waiter, index: int, now: float) -> None:
        room, load = door.rooms[index], Load(waiter.left, waiter.output, is_stream=True)
        room.take(load, now)
        self._sent[waiter.job.arrival.number] = room, load
        waiter.claim.follow(partial(self._spared, waiter.job.arrival, index))
        self._submit(waiter.job, index, now)

    def _spared(self, arrival: Arrival, index: int, tokens: int) -> None:
        """As `Turn.spared`; who waits is served when the news that say so have been heard."""
        room, load = self._sent[arrival.number]
        room.spared(load, tokens, self.now)

    def serve(self, door: Door, index: int, now: float) -> None:
        """Send those who wait while there is room; look again when the clock alone may make it."""
        queue = door.queues[index]
        while queue.requests:
            waiter = queue.head(now)
            if waiter is None or not door.may_go(waiter, index, now):
                break
            queue.take(waiter)
            del door.waiting[index][waiter.job.arrival.number]
            waiter.claim.goes()
            self._send(door, waiter, index, now)
            self.keeper.sent(waiter.job.arrival, index, now)
        due = door.rooms[index].next_due(now) if queue.requests else None
        if due is not None and index not in door.timed:
            door.timed.add(index)
            self.at(due, partial(self._due, door, index))

    def _watch(self, door: Door, now: float) -> None:
        """As `Gate.check` has some choose anew."""
        lanes = [index for index, each in enumerate(door.waiting) if each]
        door.is_watched = bool(lanes)
        if not lanes:
            return
        self.at(now + WATCH_EVERY_S, partial(self._watch, door))
        if any(door.is_free(index, now) for index in self._alive(now)):
            most = max(ASK_AT_ONCE // len(lanes), 1)
            asked = [door.asked(index, most, now) for index in lanes]
            for index, waiters in zip(lanes, asked, strict=True):
                for waiter in waiters:
                    self._send_away(door, waiter, index, now)
            for waiter in chain.from_iterable(asked):
                self._dispatch(waiter.job, now, self.keeper)

    def _send_away(self, door: Door, waiter: Waiter, index: int, now: float) -> None:
        door.queues[index].remove(waiter)
        del door.waiting[index][waiter.job.arrival.number]
        self.keeper.ended(waiter.job.arrival, index, now, None)

    def _due(self, door: Door, index: int, now: float) -> None:
        door.timed.discard(index)
        self.serve(door, index, now)

    def _answered(self, job: Job, index: int, now: float) -> None:
        room, load = self._sent[job.arrival.number]
        room.begun(load, now)

    def _left(self, job: Job, index: int, now: float) -> None:
        room, load = self._sent.pop(job.arrival.number)
        room.give_back(load, now)

    def _stepped(self, index: int, now: float, router: Router) -> None:
        super()._stepped(index, now, router)
        for door in self.doors:
            self.serve(door, index, now)

    def _changed(self, index: int, now: float, router: Router) -> None:
        super()._changed(index, now, router)
        for door in self.doors:
            queue = door.queues[index]
            while self._dead[index] and (waiter := queue.head(now)) is not None:
                self._send_away(door, waiter, index, now)
                self._dispatch(waiter.job, now, router)
