"""Late binding: an attempt has its turn when its replica is open, and not a moment later.

A request comes here with the replica it was promised to. The policy and the ledger count it there
already, so whoever chooses next sees those that wait too; a batch is counted only when it goes, or
it would keep others away from work it lets pass. While the replica is open and nobody waits for it,
a turn is given in the same tick, without a future or a task switch. Otherwise the request waits in
that replica's queue, until

    the replica opens, and it is first in order      its turn
    the replica dies, drains or is cleared, or       ChooseAgain: choose anew, keeping its age
    another that serves its model has nothing to do
    a batch only: it was sent, but no byte has       the same
    come, and others have come for its replica
    its deadline passes, it has waited for as long   an Evicted error
    as it may, or a higher class needs room
    its client leaves                                its place is free at once

Shares are of all replicas: what is charged at one may make another the first at the next, which is
seen there at its next event, or look.

Who is asked to choose anew has waited: its place among those that wait is kept until it comes again
or has left, and it is not refused.

Invariants. What is taken of a room is given back exactly once, whatever happens between. A turn is
taken when it is given, not when its task resumes: the same room is not given twice. Everybody in
the crowd is in exactly one queue, or chooses anew.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Final

from gateway.errors import (
    DeadlineInfeasible,
    DeadlineMissed,
    Displaced,
    GatewayError,
    QueueFull,
    WaitedTooLong,
)
from gateway.hold.asking import who_is_asked
from gateway.hold.capacity import NO_PART, Bounds, Part, Room
from gateway.hold.crowd import Crowd
from gateway.hold.fair_queue import FairQueue
from gateway.hold.shares import Shares
from gateway.hold.turn import ChooseAgain, Client, Lane, Turn, Waiter
from gateway.order import CLASSES, FIRST
from gateway.vocabulary import Role, ServiceClass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.clock import Clock
    from gateway.kv_cache import EngineFacts
    from gateway.ports import Claim
    from gateway.request import GenerationRequest
    from gateway.settings import HoldSettings
    from gateway.vocabulary import ModelName, ReplicaId, ReplicaView, Seconds, Tokens

WATCH_EVERY_S: Final = 0.25
PRIOR_OUTPUT_TOKENS: Final = 256.0
LEARNING: Final = 0.02  # weight of a new answer's length in the mean

_BATCH: Final = ServiceClass.BATCH  # found faster by names of our own
_PREFILL: Final = Role.PREFILL


class Gate:
    """The lanes of all replicas, and everybody who waits in them."""

    def __init__(
        self,
        settings: HoldSettings,
        clock: Clock,
        serving: Callable[[ModelName], Iterable[ReplicaView]],
    ) -> None:
        """`serving` says which replicas take work and serve a model."""
        self.clock = clock
        self.shares = tuple(Shares() for _ in CLASSES)
        self.crowd = Crowd[Waiter](settings.in_all, settings.per_tenant)
        self._settings = settings
        self._serving = serving
        self._bounds = Bounds(
            settings.commit_tokens, settings.max_sequences, commit_s=settings.commit_s
        )
        self._floors = (0.0, settings.default_floor, settings.batch_floor)
        self._lanes: dict[ReplicaId, Lane] = {}
        self._choosing: dict[Client, Waiter] = {}  # anew
        self._gateways = 1
        self._mean_output = PRIOR_OUTPUT_TOKENS
        self._expected = int(self._mean_output)
        self._checked_at: Seconds = -inf
        self.on_change: Callable[[ReplicaId], None] = _nobody
        """Who waits for a replica, or has waited and been given a turn there, is another."""

    def __repr__(self) -> str:
        return f"<Gate {self.crowd!r} {list(self._lanes.values())!r}>"

    async def turn(
        self,
        request: GenerationRequest,
        replica: ReplicaId,
        uncached: Tokens | None,
        client: Client,
        claim: Claim | None = None,
    ) -> Turn:
        """A turn at `replica`, which does not hold `uncached` tokens of the prompt (None: unknown).

        The `claim` is told if it has to wait; None: it is made later, as a batch's is.
        Raises ChooseAgain, after which this or `left` is to be called; Rejected where it may not
        wait; Evicted where it waited in vain. O(1) while nobody waits, else O(log waiting).
        """
        lane = self._lanes.get(replica) or self._lane(replica)
        output = self._expected
        if request.max_tokens is not None and request.max_tokens < output:
            output = request.max_tokens
        turn = Turn(
            request.prompt_tokens if uncached is None else uncached,
            output, request.stream, self, lane,
        )  # fmt: skip
        turn.claim = claim
        now = self.clock()
        is_batch = request.tenant.service_class is _BATCH
        if (
            not lane.queue.requests
            and (not is_batch or lane.is_spare(now))
            and lane.room.try_take(turn, now)
        ):
            if self._choosing:
                self.left(client)
            if is_batch:
                lane.take_batch(turn, now)
            else:
                lane.others_at = now
                if lane.batches:
                    lane.displace_batches()
            if claim is not None and self._gateways > 1:
                claim.follow(turn.spared)
        else:
            await self._wait(Waiter(request, turn, client), now)
        if is_batch:
            turn.may_be_displaced()
        return turn

    async def _wait(self, waiter: Waiter, now: Seconds) -> None:
        lane = waiter.lane
        before = self._choosing.pop(waiter.client, None)
        if before is None:
            self._make_room(waiter, now)
        elif isinstance(before.error, GatewayError):  # its place was needed
            raise before.error
        self.crowd.join(waiter)
        lane.queue.push(waiter)
        if before is not None:
            self._give_up(before)
        self.on_change(lane.replica)
        self.serve(lane, now)
        if waiter.is_waiting:
            if waiter.turn.claim is not None:
                waiter.turn.claim.waits(waiter.place)
            waiter.future = asyncio.get_running_loop().create_future()
            try:
                await waiter.future
            except asyncio.CancelledError:
                self._abandon(waiter)
                raise
        if waiter.error is not None:
            raise waiter.error

    def _abandon(self, waiter: Waiter) -> None:
        """Its client has left, or our own time is up."""
        if waiter.is_waiting:
            self._leave(waiter)
        elif waiter.error is None:  # it had its turn in the same tick
            waiter.lane.room.give_back(waiter.turn, self.clock())
            waiter.lane.batches.discard(waiter.turn)
            waiter.turn.settle(0)
        else:
            self.left(waiter.client)
        self.serve(waiter.lane, self.clock())

    def left(self, client: Client) -> None:
        """If it was to choose anew, it no longer is: it has a turn, waits elsewhere or has left."""
        before = self._choosing.pop(client, None) if self._choosing else None
        if before is not None:
            self._give_up(before)

    def _give_up(self, before: Waiter) -> None:
        """The place of who was to choose anew."""
        if isinstance(before.error, ChooseAgain):
            self.crowd.leave(before)
            before.lane.queue.let_go(before)

    def _make_room(self, waiter: Waiter, now: Seconds) -> None:
        """Raises Rejected where it cannot wait, or would in vain."""
        lane = waiter.lane
        wait_s = lane.room.wait_s(lane.queue.ahead(waiter.tenant))
        if lane.room.rate_per_s is not None:
            if waiter.is_hopeless(now + wait_s):
                raise DeadlineInfeasible(retry_after_s=wait_s)
            if wait_s > self._settings.max_wait_s and waiter.tenant.service_class is not _BATCH:
                raise QueueFull(retry_after_s=wait_s)
        while (other := self.crowd.must_leave(waiter, wait_s)) is not None:
            self._send_away(other, Displaced(retry_after_s=wait_s))
            asyncio.get_running_loop().call_soon(self.serve, other.lane, now)

    def serve(self, lane: Lane, now: Seconds) -> None:
        """Give turns while the replica is open."""
        room, queue = lane.room, lane.queue
        while queue.requests and room.is_open(now):
            reads_at = now + room.wait_s(0)  # what is sent now is read after what has been sent
            waiter = queue.head(reads_at, with_batch=lane.is_spare(now))
            if waiter is None:
                break
            if waiter.is_hopeless(reads_at):
                self._send_away(waiter, DeadlineMissed())
                continue
            if not room.fits(waiter.look(), waiter.output, now, waiter.stands):
                break
            queue.take(waiter)
            self.crowd.leave(waiter)
            self.on_change(lane.replica)
            waiter.turn.waiter = waiter
            if waiter.turn.claim is not None:
                waiter.turn.claim.goes()
                waiter.turn.claim.follow(waiter.turn.spared)
            room.take(waiter.turn, now)
            if waiter.tenant.service_class is _BATCH:
                lane.take_batch(waiter.turn, now)
            else:
                lane.others_at = now
                lane.displace_batches()
            waiter.wake()
        if queue.requests and lane.timer is None and (due := lane.next_due(now)) is not None:
            loop = asyncio.get_running_loop()
            lane.timer = loop.call_later(max(due - now, 0.001), self._due, lane)

    def _due(self, lane: Lane) -> None:
        lane.timer = None
        self.serve(lane, self.clock())

    def _leave(self, waiter: Waiter) -> None:
        waiter.lane.queue.remove(waiter)
        self.crowd.leave(waiter)
        self.on_change(waiter.lane.replica)

    def _send_away(self, waiter: Waiter, error: GatewayError) -> None:
        if waiter.is_waiting:
            self._leave(waiter)
        else:  # it is to choose anew, and has not yet
            self._give_up(waiter)
        waiter.error = error
        waiter.wake()

    def _ask_again(self, waiter: Waiter) -> None:
        waiter.lane.queue.set_aside(waiter)
        self._choosing[waiter.client] = waiter
        self.on_change(waiter.lane.replica)
        waiter.error = ChooseAgain()
        waiter.wake()

    def _lane(self, replica: ReplicaId) -> Lane:
        lane = Lane(
            replica,
            Room(self._bounds),
            FairQueue[Waiter](self.shares, self._floors, self._settings.alike_in_a_row),
        )
        lane.room.beside(self._gateways)
        self._lanes[replica] = lane
        return lane

    @property
    def max_sequences(self) -> int | None:
        """How many a replica runs at once; None: it has not been said."""
        return self._bounds.sequences

    def rate_per_s(self, replica: ReplicaId) -> float | None:
        """Uncached prompt tokens a second, as first bytes have shown; None: none have."""
        lane = self._lanes.get(replica)
        return None if lane is None else lane.room.rate_per_s

    # What other gateways have

    def part(self, replica: ReplicaId) -> Part:
        """What we have at a replica, for them."""
        lane = self._lanes.get(replica)
        if lane is None:
            return NO_PART
        now = self.clock()
        lane.room.next_due(now)  # what is begun by now is
        first = lane.queue.head(now)
        return lane.room.part(lane.queue.requests, FIRST if first is None else first.stands)

    def others(self, replica: ReplicaId, peer: str, part: Part, now: Seconds) -> None:
        """What another one has there; `NO_PART` once it is gone."""
        lane = self._lanes.get(replica) or self._lane(replica)
        lane.room.others(peer, part, now)
        if lane.queue.requests:
            self.serve(lane, now)

    def beside(self, gateways: int) -> None:
        """So many of them send to these replicas, ourselves included."""
        self._gateways = gateways
        for lane in self._lanes.values():
            lane.room.beside(gateways)

    # What it is told

    def learn(self, output: Tokens) -> None:
        """An answer was so long."""
        self._mean_output += LEARNING * (output - self._mean_output)
        self._expected = int(self._mean_output)

    def described(self, replica: ReplicaId, facts: EngineFacts) -> None:
        """What a replica's engine is."""
        lane = self._lanes.get(replica) or self._lane(replica)
        lane.room.bounds = lane.room.bounds.with_cache(facts.cache_tokens)
        self.serve(lane, self.clock())

    def moved(self, replica: ReplicaId, *, takes_work: bool) -> None:
        """It takes work from now on, or no longer."""
        if not takes_work:
            self.ask_again(replica)
        elif self.crowd.count.requests:
            self._share_out(self.clock())

    def ask_again(self, replica: ReplicaId) -> None:
        """Its cache has been cleared, say: who waits for it chooses anew."""
        for waiter in self._waiting():
            if waiter.lane.replica == replica:
                self._ask_again(waiter)

    def forget(self, replica: ReplicaId) -> None:
        """It has left."""
        self.ask_again(replica)
        lane = self._lanes.pop(replica, None)
        if lane is not None and lane.timer is not None:
            lane.timer.cancel()

    def _waiting(self) -> list[Waiter]:
        """In a queue, in the order of the crowd."""
        return [waiter for waiter in self.crowd if waiter.is_waiting]

    # Its background loop

    async def watch(self) -> None:
        """Look after those who wait."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            if self.crowd.count.requests:
                self.check(self.clock())

    def check(self, now: Seconds) -> None:
        """Send away who has waited too long, speak to who may think that we are gone, and see that
        no replica has nothing to do while others are waited for. O(waiting)."""
        settings = self._settings
        for waiter in self._waiting():
            waited_s = now - waiter.since
            if waiter.is_hopeless(now):
                self._send_away(waiter, DeadlineMissed())
            elif waited_s > settings.max_wait_s and waiter.tenant.service_class is not _BATCH:
                wait_s = waiter.lane.room.wait_s(waiter.lane.queue.ahead(waiter.tenant))
                self._send_away(waiter, WaitedTooLong(retry_after_s=wait_s))
            elif waiter.is_time_to_speak(now, self._checked_at, settings.comment_every_s):
                waiter.client.keep_waiting()
        for lane in self._lanes.values():
            if lane.queue.requests:
                self.serve(lane, now)
        self._checked_at = now
        self._share_out(now)

    def _share_out(self, now: Seconds) -> None:
        """If a replica has nothing to do, some who wait for others that serve the same model choose
        anew. O(waiting + replicas that serve the models waited for)."""

        def is_one_free(model: ModelName, to_batch: bool) -> bool:
            lanes = [
                self._lanes.get(each.id)
                for each in self._serving(model)
                if each.role is not _PREFILL
            ]
            return any(each is None or each.is_free(now, to_batch=to_batch) for each in lanes)

        for lane, waiters in who_is_asked(self._waiting(), is_one_free, now).items():
            for waiter in waiters:
                self._ask_again(waiter)
            self.serve(lane, now)


def _nobody(_: ReplicaId) -> None:
    """Needs to know."""
