"""Replicas that come and go as an autoscaler decides, in virtual time, behind a gateway.

Replicas are those of `tests.bench.routing.engine`. One that is ordered serves after its cold start
and costs from its order to its end; one that is told to go ends what it has. Those that are not
ready go first, then those with the least in flight. The gateway binds late: a request goes to the
replica that will have read its prompt soonest, of those that are open (`gateway.hold.capacity`); it
waits, first come first served, while none is. What caches hold it knows exactly; how fast replicas
are it learns (`gateway.choose.pace`). What replicas are needed it says by the gateway's own code.

Invariants. Every arrival is served once. The same arrivals and seed give the same run.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from random import Random
from typing import Final

from gateway.choose.pace import Pace
from gateway.choose.price import work
from gateway.demand import Demand
from gateway.hold.capacity import Bounds, Load, Room
from gateway.request import GenerationRequest, Usage
from gateway.scale.demands import Demands, Standing
from gateway.settings import ScaleSettings
from gateway.vocabulary import ROUTES, ModelName
from tests.bench.routing.cache import BLOCK_TOKENS, Arrival, hit_tokens, leading
from tests.bench.routing.engine import Engine, Job, ReplicaSpec
from tests.bench.scaling.autoscaler import Autoscaler, Behaviour, Rule, Signals

MODEL: Final = ModelName("m")
COLD_START_S: Final = 90.0
SPREAD: Final = 0.1  # of cold starts, either way
LOOK_S: Final = 1.0
AFFINITY: Final = 4.0  # what uncached work costs others, in multiples of its own time
ATTENTION: Final = 50_000.0
COMMIT_TOKENS: Final = 4096


@dataclass(eq=False, slots=True)
class Entry:
    """A request on its way through the gateway. A `gateway.scale.meter.Open`."""

    arrival: Arrival
    request: GenerationRequest
    received_at: float
    dispatched_at: float | None = None
    first_byte_at: float | None = None
    last_byte_at: float | None = None
    uncached: int | None = None
    usage: Usage = field(default_factory=Usage)
    load: Load | None = None
    work: int = 0


class Replica:
    """One that was ordered."""

    def __init__(self, number: int, spec: ReplicaSpec, ordered_at_s: float) -> None:
        self.number = number
        self.engine = Engine(spec)
        self.pace = Pace()
        self.room = Room(Bounds(COMMIT_TOKENS, spec.most_running, spec.cache_blocks * BLOCK_TOKENS))
        self.ordered_at_s = ordered_at_s
        self.is_ready = False
        self.is_leaving = False
        self.inflight = 0
        self.busy_s = 0.0  # computed since the autoscaler looked
        self.began_at_s: float | None = None

    def __repr__(self) -> str:
        return f"<Replica {self.number} {self.engine!r}>"

    def due_s(self) -> float | None:
        """When its engine is to be looked at; None while it has nothing to do."""
        return self.engine.stint.ends_at_s if self.engine.stint else None


@dataclass(frozen=True, slots=True)
class Served:
    """How a request fared."""

    arrival: Arrival
    ttft_s: float
    wait_s: float  # TTFT beyond its prompt's own time on an idle replica with an empty cache
    token_s: float  # between tokens


@dataclass(slots=True)
class Run:
    """What came of it."""

    served: list[Served] = field(default_factory=list)
    replica_s: float = 0.0
    counts: list[tuple[float, int]] = field(
        default_factory=list
    )  # replicas wanted, when it changed
    needed: list[tuple[float, float]] = field(default_factory=list)


class _Kind(IntEnum):
    """What happens; at equal instants in this order."""

    STEPPED = 0
    READY = 1
    ARRIVED = 2
    LOOK = 3
    POLL = 4
    SYNC = 5


class World:
    """A gateway, an autoscaler, and the replicas between them. A `gateway.scale.demands.Supply`."""

    def __init__(
        self,
        spec: ReplicaSpec,
        rule: Rule,
        seed: str,
        behaviour: Behaviour,
        settings: ScaleSettings,
    ) -> None:
        self._spec = spec
        self._rule = rule
        self._rng = Random(seed)
        self._behaviour = behaviour
        self._scaler = Autoscaler(behaviour)
        self._replicas: list[Replica] = []
        self._queue: deque[Entry] = deque()
        self._entries: dict[int, Entry] = {}
        self._events: list[tuple[float, int, int, Replica | Arrival | None]] = []
        self._order = count()
        self._numbers = count()
        self._now = 0.0
        self._run = Run()
        self._demands = Demands(settings, self, lambda: self._now)
        self._to_come = 0

    def __repr__(self) -> str:
        return f"<World {self._replicas!r}>"

    # What the signal asks. A `Supply`

    def models(self) -> Collection[ModelName]:
        """The one there is."""
        return (MODEL,)

    def base(self, model: ModelName) -> ModelName | None:
        """It has no adapters."""
        return model

    def work(self, prompt_tokens: int, uncached: int) -> float:
        """As the policy counts it."""
        return work(prompt_tokens, uncached, ATTENTION)

    def standing(self, _model: ModelName, _now: float) -> Standing:
        """What there is."""
        staying = [each for each in self._replicas if not each.is_leaving]
        ready = [each for each in staying if each.is_ready]
        learnt = [each.pace.rate_per_s for each in ready if each.pace.has_learnt]
        return Standing(
            ready=len(ready),
            loading=len(staying) - len(ready),
            prefill_per_s=sum(learnt) / len(learnt) if learnt else None,
            cache_tokens=self._spec.cache_blocks * BLOCK_TOKENS,
            sequences=self._spec.most_running,
            cold_start_s=COLD_START_S,
        )

    def on_activation(self, listener: Callable[[ModelName], None]) -> None:
        """Nobody listens: an activation is told in `_arrived`."""

    # The run

    def run(self, arrivals: Sequence[Arrival], until_s: float, first: int) -> Run:
        """Serve them all by so many replicas at first, which are counted up to `until_s`."""
        self._scaler.replicas, self._scaler.active_at_s = first, 0.0
        self._scale()
        for replica in self._replicas:
            replica.is_ready = True
        for arrival in arrivals:
            self._happens(arrival.at_s, _Kind.ARRIVED, arrival)
        self._to_come = len(arrivals)
        self._happens(LOOK_S, _Kind.LOOK, None)
        self._happens(self._behaviour.polling_s, _Kind.POLL, None)
        self._happens(self._behaviour.sync_s, _Kind.SYNC, None)
        while self._events:
            self._now, kind, _, what = heapq.heappop(self._events)
            if isinstance(what, Arrival):
                self._arrived(what)
            elif isinstance(what, Replica):
                self._of_replica(kind, what)
            else:
                self._periodic(kind, until_s)
        for each in self._replicas:
            self._run.replica_s += max(until_s - each.ordered_at_s, 0.0)
        return self._run

    def _happens(self, at_s: float, kind: _Kind, what: Replica | Arrival | None) -> None:
        heapq.heappush(self._events, (at_s, kind, next(self._order), what))

    def _periodic(self, kind: int, until_s: float) -> None:
        now = self._now
        every_s = LOOK_S
        if kind == _Kind.LOOK:
            self._demands.look()
        elif kind == _Kind.POLL:
            every_s = self._behaviour.polling_s
            self._scaler.poll(self._demand().is_active, now)
            self._scale()
        else:
            every_s = self._behaviour.sync_s
            signals = self._signals()
            ready = sum(each.is_ready and not each.is_leaving for each in self._replicas)
            self._scaler.sync(self._rule(signals), ready, now)
            self._run.needed.append((now, signals.replicas_needed))
            self._scale()
        if now < until_s or self._to_come or self._entries:
            self._happens(now + every_s, _Kind(kind), None)

    def _demand(self) -> Demand:
        return self._demands.demand(MODEL)

    def _signals(self) -> Signals:
        ready = [each for each in self._replicas if each.is_ready and not each.is_leaving]
        queued = sum(1 for each in self._entries.values() if each.first_byte_at is None)
        room = self._spec.cache_blocks * BLOCK_TOKENS
        busy = 0.0
        for each in self._replicas:
            if each.began_at_s is not None:
                each.busy_s += self._now - each.began_at_s
                each.began_at_s = self._now
        if ready:
            busy = sum(each.busy_s for each in ready) / len(ready) / self._behaviour.sync_s
        for each in self._replicas:
            each.busy_s = 0.0
        return Signals(
            queued=queued,
            inflight=len(self._entries),
            cache_usage=sum(each.engine.room / room for each in ready),
            busy=busy,
            replicas_needed=self._demand().replicas_needed,
        )

    def _scale(self) -> None:
        """Make the replicas as many as are wanted."""
        staying = [each for each in self._replicas if not each.is_leaving]
        wanted = self._scaler.replicas
        if wanted != len(staying):
            self._run.counts.append((self._now, wanted))
        for _ in range(wanted - len(staying)):
            replica = Replica(next(self._numbers), self._spec, self._now)
            self._replicas.append(replica)
            took_s = COLD_START_S * self._rng.uniform(1.0 - SPREAD, 1.0 + SPREAD)
            self._happens(self._now + took_s, _Kind.READY, replica)
        victims = sorted(staying, key=lambda one: (one.is_ready, one.inflight, -one.number))
        for replica in victims[: max(len(staying) - wanted, 0)]:
            replica.is_leaving = True
            self._let_go(replica)

    def _let_go(self, replica: Replica) -> None:
        if replica.is_leaving and not replica.inflight and replica in self._replicas:
            self._replicas.remove(replica)
            self._run.replica_s += self._now - replica.ordered_at_s

    def _of_replica(self, kind: int, replica: Replica) -> None:
        if kind == _Kind.READY:
            replica.is_ready = True
            self._serve()
        else:
            self._stepped(replica)

    def _arrived(self, arrival: Arrival) -> None:
        self._to_come -= 1
        request = GenerationRequest(
            route=ROUTES[0], model=MODEL, stream=True, prompt_bytes=0,
            prompt_tokens=arrival.prompt_tokens, max_tokens=None,
        )  # fmt: skip
        entry = Entry(arrival, request, self._now)
        self._entries[arrival.number] = entry
        self._demands.arrived(entry)
        self._queue.append(entry)
        if not self._scaler.replicas:  # the push of an external scaler
            self._scaler.poll(True, self._now)
            self._scale()
        self._serve()

    def _serve(self) -> None:
        """Give turns while a replica is open."""
        while self._queue:
            entry = self._queue[0]
            best: tuple[float, Replica, int] | None = None
            for each in self._replicas:
                if not each.is_ready or each.is_leaving or not each.room.is_open(self._now):
                    continue
                engine = each.engine
                held = leading(entry.arrival.blocks, engine.cache.held, engine.promised)
                hit = hit_tokens(held, entry.arrival.prompt_tokens)
                uncached = entry.arrival.prompt_tokens - hit
                if not each.room.fits(uncached, entry.arrival.output_tokens, self._now):
                    continue
                own_s = self.work(entry.arrival.prompt_tokens, uncached) / each.pace.rate_per_s
                cost = each.pace.wait_s(self._now) + (1.0 + AFFINITY) * own_s
                if best is None or cost < best[0]:
                    best = cost, each, uncached
            if best is None:
                return
            self._queue.popleft()
            self._dispatch(entry, best[1], best[2])

    def _dispatch(self, entry: Entry, replica: Replica, uncached: int) -> None:
        now = self._now
        entry.dispatched_at, entry.uncached = now, uncached
        entry.load = Load(uncached, entry.arrival.output_tokens, True)
        entry.work = work(entry.arrival.prompt_tokens, uncached, ATTENTION)
        replica.room.take(entry.load, now)
        replica.pace.begin(entry.work, now)
        replica.inflight += 1
        before = replica.due_s()
        replica.engine.submit(Job(entry.arrival, now), now)
        if replica.began_at_s is None:
            replica.began_at_s = now
        if (due_s := replica.due_s()) is not None and due_s != before:
            self._happens(due_s, _Kind.STEPPED, replica)

    def _stepped(self, replica: Replica) -> None:
        now = self._now
        if replica.due_s() != now:
            return  # that stint was cut short
        answered, ended = replica.engine.finish()
        for job in answered:
            entry = self._entries[job.arrival.number]
            entry.first_byte_at = now
            if entry.load is not None:
                replica.room.begun(entry.load, now)
            replica.pace.prefilled(entry.work, now)
        for job in ended:
            self._ended(self._entries.pop(job.arrival.number), replica)
        if (due_s := replica.due_s()) is not None:
            self._happens(due_s, _Kind.STEPPED, replica)
        elif replica.began_at_s is not None:
            replica.busy_s += now - replica.began_at_s
            replica.began_at_s = None
        self._let_go(replica)
        self._serve()

    def _ended(self, entry: Entry, replica: Replica) -> None:
        now, arrival = self._now, entry.arrival
        entry.last_byte_at = now
        entry.usage = Usage(output_tokens=arrival.output_tokens)
        self._demands.left(entry)
        if entry.load is not None:
            replica.room.give_back(entry.load, now)
        replica.inflight -= 1
        first = entry.first_byte_at or now
        ttft_s = first - entry.received_at
        own_s = self._spec.prefill_s(arrival.prompt_tokens, 0)
        token_s = (now - first) / max(arrival.output_tokens - 1, 1)
        self._run.served.append(Served(arrival, ttft_s, ttft_s - own_s, token_s))
