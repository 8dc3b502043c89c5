"""What the gate hands out, and who waits for it.

Invariant. A turn that was given is given back exactly once: by leaving its `with`.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from gateway.hold.capacity import PRIOR_RATE_PER_S, Load
from gateway.hold.fair_queue import FairQueue, Ticket
from gateway.hold.shares import charge_of
from gateway.ports import Sent

if TYPE_CHECKING:
    from gateway.errors import GatewayError
    from gateway.hold.capacity import Room
    from gateway.hold.gate import Gate
    from gateway.ports import Claim
    from gateway.request import GenerationRequest, Usage
    from gateway.vocabulary import Body, ReplicaId, Seconds, Tokens

BATCH_SEQUENCES: Final = 0.125
"""The part of a replica's sequences that batches may have."""

BATCH_DUTY: Final = 0.1
"""The part of a replica's time that prompts of batches may take, while others come too."""

QUIET_S: Final = 10.0
"""When nobody else has come for so long, batches need not hold back."""

GROUP_BYTES: Final = 2048
"""Prompts of which so many first bytes are equal begin alike."""


class ChooseAgain(Exception):
    """The replica that was chosen is no longer the one to wait for: the request goes on."""


class Client(Protocol):
    """Who waits."""

    @property
    def received_at(self) -> Seconds: ...

    @property
    def body(self) -> Body: ...

    def keep_waiting(self) -> None:
        """A stream: let it know that it has not been forgotten, if that can be said."""


class Waiter(Ticket):
    """A request that waits, for the lane it waits in."""

    __slots__ = ("client", "error", "future", "lane", "model", "turn")

    def __init__(self, request: GenerationRequest, turn: Turn, client: Client) -> None:
        super().__init__(
            request.tenant,
            client.received_at,
            turn.uncached,
            output=turn.output,
            deadline=request.deadline,
            group=_group(request),
        )
        if turn.claim is not None and turn.claim.alone is not None:
            self.alone = turn.claim.alone
        self.turn = turn
        self.lane = turn.lane
        self.model = request.model
        self.client = client
        self.size_bytes = len(client.body)
        self.future: asyncio.Future[None] | None = None
        self.error: GatewayError | ChooseAgain | None = None
        rate_per_s = turn.lane.room.rate_per_s
        self.work_s = 0.0 if rate_per_s is None else turn.uncached / rate_per_s

    def is_time_to_speak(self, now: Seconds, looked_at: Seconds, every_s: Seconds) -> bool:
        """To a stream, every so often since it came, whatever it has waited for: by the clock, for
        whoever chooses again waits anew."""
        if not self.turn.is_stream:
            return False
        return (now - self.since) // every_s > max(looked_at - self.since, 0.0) // every_s

    def look(self) -> Tokens:
        """What it has to prefill by now: perhaps other gateways have sent its beginning."""
        turn = self.turn
        if turn.claim is not None and turn.claim.uncached is not None:
            turn.uncached = turn.claim.uncached
        return turn.uncached

    @property
    def follows(self) -> bool:
        """When it came, another prompt was on its way there with what it needs; or is now."""
        return self.alone > self.look()

    def wake(self) -> None:
        """Its waiting is over; `error` says how."""
        if self.future is not None and not self.future.done():
            self.future.set_result(None)


class Lane:
    """One replica: what it has, and who waits for it."""

    __slots__ = (
        "batches", "others_at", "queue", "replica", "rests_until", "room", "timer",
    )  # fmt: skip

    def __init__(self, replica: ReplicaId, room: Room, queue: FairQueue[Waiter]) -> None:
        self.replica = replica
        self.room = room
        self.queue = queue
        self.timer: asyncio.TimerHandle | None = None
        self.batches: set[Turn] = set()  # turns of batches
        self.others_at: Seconds = -QUIET_S  # when a turn was last given that was none
        self.rests_until: Seconds = 0.0  # from batches, in case others come

    def __repr__(self) -> str:
        return f"<Lane {self.replica} {self.room!r} {self.queue!r}>"

    def is_spare(self, now: Seconds) -> bool:
        """May it be given a batch? Others are to find room, and sequences free."""
        most = self.room.bounds.sequences
        if most is not None and len(self.batches) >= most * BATCH_SEQUENCES:
            return False
        return now >= self.rests_until and self.room.is_open(now, to_batch=True)

    def is_free(self, now: Seconds, *, to_batch: bool) -> bool:
        """Has it nothing to do, and nobody who waits to be given that? Batches that wait, or have
        just had their part, keep nobody else away."""
        if to_batch:
            return not self.queue.requests and self.is_spare(now)
        if self.queue.requests and self.queue.head(now, with_batch=False) is not None:
            return False
        return self.room.is_open(now, to_batch=True)

    def next_due(self, now: Seconds) -> Seconds | None:
        """When it may be open by the clock alone; None: only when something happens."""
        due = self.room.next_due(now)
        return self.rests_until if due is None and self.rests_until > now else due

    def take_batch(self, turn: Turn, now: Seconds) -> None:
        """A batch has its turn. While there are others, its prompt takes no more than its part of
        the time: whoever comes meanwhile waits for the step that is being computed."""
        self.batches.add(turn)
        if now - self.others_at < QUIET_S:
            prefill_s = turn.uncached / (self.room.rate_per_s or PRIOR_RATE_PER_S)
            self.rests_until = now + prefill_s / BATCH_DUTY

    def displace_batches(self) -> None:
        """Others have come: stop the batches whose prompts are still to be read. What the engine
        has read of them is in its cache, and need not be read again."""
        for turn in self.batches:
            if turn.unbegun:
                turn.displace()


class Turn(Load, Sent):
    """A request that is with its replica, or will be. Used by `with` once it has been given."""

    __slots__ = ("_gate", "_task", "claim", "is_displaced", "lane", "waiter")

    def __init__(
        self, uncached: Tokens, output: Tokens, is_stream: bool, gate: Gate, lane: Lane
    ) -> None:
        self.uncached = uncached
        self.output = output
        self.is_stream = is_stream
        self.unbegun = 0
        self.due = 0.0
        self.lane = lane
        self.claim: Claim | None = None  # of the policy, which is told of the first byte
        self.waiter: Waiter | None = None  # where it had to wait, and is charged for
        self.is_displaced = False
        self._gate = gate
        self._task: asyncio.Task[object] | None = None  # a batch's, to be stopped

    def may_be_displaced(self) -> None:
        """It is a batch's, and was given to the task that runs now."""
        self._task = asyncio.current_task()

    def displace(self) -> None:
        """End it, unless it is ending already: its `with` ends with ChooseAgain."""
        if self._task is not None and not self.is_displaced:
            self.is_displaced = True
            self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def spared(self, tokens: Tokens) -> None:
        """It is with its replica, and so much of it is read with what another gateway has sent."""
        gate, lane = self._gate, self.lane
        now = gate.clock()
        lane.room.spared(self, tokens, now)
        gate.on_change(lane.replica)
        if lane.queue.requests:
            gate.serve(lane, now)

    def first_byte(self, now: Seconds) -> None:
        """The replica has read the prompt. Only the first call counts."""
        if self.claim is not None:
            self.claim.first_byte(now)
        lane = self.lane
        lane.room.begun(self, now)
        if lane.queue.requests:
            self._gate.serve(lane, now)

    def answered(self, usage: Usage, now: Seconds) -> None:
        """The response was relayed whole, and this is what it says."""
        if self.claim is not None:
            self.claim.answered(usage, now)
        output = usage.output_tokens
        if output is not None:
            self._gate.learn(output)
        if self.waiter is not None:
            uncached = self.uncached
            if usage.prompt_tokens is not None and usage.cached_tokens is not None:
                uncached = usage.prompt_tokens - usage.cached_tokens
            self.settle(charge_of(uncached, self.output if output is None else output))

    def settle(self, had: Tokens) -> None:
        """What was charged for it becomes what it had."""
        waiter = self.waiter
        if waiter is not None and waiter.account is not None:
            self._gate.shares[waiter.rank].charge(waiter.account, had - waiter.charge)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lane = self.lane
        now = self._gate.clock()
        lane.room.give_back(self, now)
        task = self._task
        if lane.batches:
            lane.batches.discard(self)
        if lane.queue.requests:
            self._gate.serve(lane, now)
        if self.is_displaced and task is not None:
            self.settle(0)
            # Another cancellation may have come on top of ours, and means what it says.
            if not task.uncancel() and kind is asyncio.CancelledError:
                raise ChooseAgain


def _group(request: GenerationRequest) -> int | None:
    """What it begins with: model, context and so much of the prompt; None for a short one."""
    prompt = memoryview(request.prompt)
    if len(prompt) < GROUP_BYTES:
        return None
    context = tuple([(name, bytes(part)) for name, part in request.context])
    return hash((request.model, context, bytes(prompt[:GROUP_BYTES])))
