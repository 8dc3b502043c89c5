"""Our default policy as it runs: what it chose is held until its replica is open.

The queue, its order and what a replica may be given are the gateway's own (`gateway.hold`); only
the tasks that wait are left out. Those that wait when their replica dies choose anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.choose.chooser import Claim
from gateway.hold.capacity import Bounds, Load, Room
from gateway.hold.fair_queue import FairQueue, Ticket
from gateway.hold.shares import Shares
from gateway.order import CLASSES
from gateway.settings import HoldSettings
from gateway.vocabulary import Tenant
from tests.bench.routing.adapters import GatewayRouter
from tests.bench.routing.cache import BLOCK_TOKENS
from tests.bench.routing.engine import Job, ReplicaSpec
from tests.bench.routing.world import Router, World

EVERYBODY: Final = Tenant("everybody")


class _Waiter(Ticket):
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


class Held(World):
    """Replicas behind the gateway's queues."""

    def __init__(self, specs: Sequence[ReplicaSpec]) -> None:
        super().__init__(specs)
        hold = HoldSettings()
        shares = [Shares() for _ in CLASSES]
        floors = (0.0, hold.default_floor, hold.batch_floor)
        self._queues = [FairQueue[_Waiter](shares, floors, hold.alike_in_a_row) for _ in specs]
        self._rooms = [
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
        self._loads: dict[int, Load] = {}  # of those sent, by arrival

    def __repr__(self) -> str:
        return f"<Held {self._rooms!r} {self._queues!r}>"

    def _dispatch(self, job: Job, now: float, router: Router) -> None:
        assert isinstance(router, GatewayRouter), "others have nothing that waits"
        index = router.choose(job.arrival, now)
        waiter = _Waiter(job, router.claim(job.arrival))
        queue = self._queues[index]
        if not queue.requests and self._may_go(waiter, index, now):
            self._send(waiter, index, now)
        else:
            queue.push(waiter)
            waiter.claim.waits(waiter.place)
            self._serve(index, now)

    def _may_go(self, waiter: _Waiter, index: int, now: float) -> bool:
        room = self._rooms[index]
        return room.is_open(now) and room.fits(waiter.uncached, waiter.output)

    def _send(self, waiter: _Waiter, index: int, now: float) -> None:
        load = Load(waiter.uncached, waiter.output, is_stream=True)
        self._rooms[index].take(load, now)
        self._loads[waiter.job.arrival.number] = load
        self._submit(waiter.job, index, now)

    def _serve(self, index: int, now: float) -> None:
        queue = self._queues[index]
        while queue.requests:
            waiter = queue.head(now)
            if waiter is None or not self._may_go(waiter, index, now):
                return
            queue.take(waiter)
            waiter.claim.goes()
            self._send(waiter, index, now)

    def _answered(self, job: Job, index: int, now: float) -> None:
        self._rooms[index].begun(self._loads[job.arrival.number], now)

    def _left(self, job: Job, index: int) -> None:
        self._rooms[index].give_back(self._loads.pop(job.arrival.number))

    def _stepped(self, index: int, now: float, router: Router) -> None:
        super()._stepped(index, now, router)
        self._serve(index, now)

    def _changed(self, index: int, now: float, router: Router) -> None:
        super()._changed(index, now, router)
        queue = self._queues[index]
        while self._dead[index] and (waiter := queue.head(now)) is not None:
            queue.remove(waiter)
            router.ended(waiter.job.arrival, index, now, None)
            self._dispatch(waiter.job, now, router)
