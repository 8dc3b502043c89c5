"""Simulated replicas in virtual time, and one run of arrivals through a router.

The replicas are those of `engine`: steps that mix prefill and decoding. A request comes at its
instant, or, in a closed loop, some time after another has ended. When a replica dies, what it had
not answered is sent elsewhere, as a gateway retries before the first byte; what it was answering
ends there.

Invariants. Every arrival is served exactly once. The same arrivals, specs and chances give the same
run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Protocol

from tests.bench.routing.cache import Arrival, hit_tokens, leading
from tests.bench.routing.engine import Engine, Job, ReplicaSpec

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True)
class Served:
    """How one arrival fared; instants in virtual seconds."""

    arrival: Arrival
    replica: int
    hit_tokens: int
    arrived_at_s: float
    first_token_at_s: float
    ended_at_s: float

    @property
    def ttft_s(self) -> float:
        """From arrival to first token."""
        return self.first_token_at_s - self.arrived_at_s

    @property
    def duration_s(self) -> float:
        """From arrival to last token."""
        return self.ended_at_s - self.arrived_at_s


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what was served, in order of ends, and each replica's seconds of prefill."""

    served: Sequence[Served]
    prefill_s: Sequence[float]


class Router(Protocol):
    """A policy at work. It learns what a gateway learns: choices, first tokens and ends."""

    def members(self, replicas: Sequence[int]) -> None:
        """These are there from now on; told before the first choice."""

    def choose(self, arrival: Arrival, now: float) -> int:
        """The index of the replica that is to have it; counts as dispatched."""

    def first_token(self, arrival: Arrival, replica: int, now: float) -> None:
        """The first byte came back."""

    def ended(self, arrival: Arrival, replica: int, now: float, cached_tokens: int | None) -> None:
        """The answer is over, and told how many prompt tokens were cached; None: it was cut."""


Listener = Callable[[int, Sequence[int], Sequence[int], Sequence[int]], None]
"""A replica, and what `cache.Heard` says of its cache."""


class Caches(Protocol):
    """What the caches hold, told better than any gateway is."""

    def hit_tokens(self, arrival: Arrival) -> list[int]:
        """Per replica, what is cached there or will be by what was already sent there: an exact
        and instant index, for comparators."""

    def listen(self, listener: Listener) -> None:
        """Hear of every change as it is planned."""

    def at(self, due_s: float, then: Callable[[float], None]) -> None:
        """Be called at an instant that is to come."""


RouterFactory = Callable[[Sequence[ReplicaSpec], Caches, "Random"], Router]


class _Kind(IntEnum):
    """What happens; at equal instants in this order, so that news comes before decisions."""

    STEPPED = 0
    TOLD = 1
    CHANGED = 2
    ARRIVED = 3


class World:
    """A fleet of simulated replicas, and one run through it."""

    def __init__(self, specs: Sequence[ReplicaSpec]) -> None:
        self._engines = [Engine(spec) for spec in specs]
        self._dead = [False] * len(specs)
        self._events: list[tuple[float, int, int, int, Arrival | None]] = []
        self._calls: dict[int, Callable[[float], None]] = {}
        self._order = count()
        self._followers: dict[int, list[Arrival]] = {}
        self._served: list[Served] = []
        self.now = 0.0

    def __repr__(self) -> str:
        return f"<World {self._engines!r}>"

    def listen(self, listener: Listener) -> None:
        """See `Caches`."""
        for index, each in enumerate(self._engines):
            each.cache.listener = partial(listener, index)

    def at(self, due_s: float, then: Callable[[float], None]) -> None:
        """See `Caches`."""
        number = next(self._order)
        self._calls[number] = then
        self._happens(due_s, _Kind.TOLD, number, None)

    def hit_tokens(self, arrival: Arrival) -> list[int]:
        """See `Caches`."""
        return [
            hit_tokens(
                leading(arrival.blocks, each.cache.held, each.promised), arrival.prompt_tokens
            )
            for each in self._engines
        ]

    def run(self, arrivals: Sequence[Arrival], router: Router) -> Run:
        """Serve them all to the end. O(events x log events + blocks)."""
        for each in arrivals:
            if each.after is None:
                self._happens(each.at_s, _Kind.ARRIVED, -1, each)
            else:
                self._followers.setdefault(each.after, []).append(each)
        self._plan_changes(arrivals[-1].at_s)
        router.members(self._alive(0.0))
        while self._events:
            now, kind, _, index, arrival = heapq.heappop(self._events)
            self.now = now
            if kind == _Kind.STEPPED:
                self._stepped(index, now, router)
            elif kind == _Kind.TOLD:
                self._calls.pop(index)(now)
            elif kind == _Kind.CHANGED:
                self._changed(index, now, router)
            elif arrival is not None:
                self._dispatch(Job(arrival, now), now, router)
        return Run(self._served, [each.prefill_s for each in self._engines])

    def _happens(self, at_s: float, kind: _Kind, index: int, arrival: Arrival | None) -> None:
        heapq.heappush(self._events, (at_s, kind, next(self._order), index, arrival))

    def _plan_changes(self, span_s: float) -> None:
        self._joins_at_s = [each.spec.joins_at * span_s for each in self._engines]
        for index, each in enumerate(self._engines):
            if each.spec.joins_at > 0.0:
                self._happens(self._joins_at_s[index], _Kind.CHANGED, index, None)
            if each.spec.leaves_at <= 1.0:
                self._happens(each.spec.leaves_at * span_s, _Kind.CHANGED, index, None)

    def _alive(self, now: float) -> list[int]:
        return [
            index
            for index, dead in enumerate(self._dead)
            if not dead and self._joins_at_s[index] <= now
        ]

    def _changed(self, index: int, now: float, router: Router) -> None:
        """A replica joins, or dies with what it has."""
        if now <= self._joins_at_s[index] and self._joins_at_s[index] > 0.0:
            router.members(self._alive(now))
            return
        self._dead[index] = True
        router.members(self._alive(now))
        engine = self._engines[index]
        jobs, engine.stint = engine.jobs, None
        for job in jobs:
            self._left(job, index, now)
            router.ended(job.arrival, index, now, None)
            if job.first_token_at_s is None:
                self._dispatch(Job(job.arrival, job.arrived_at_s), now, router)
            else:
                self._end(job, index, now)

    def _dispatch(self, job: Job, now: float, router: Router) -> None:
        self._submit(job, router.choose(job.arrival, now), now)

    def _submit(self, job: Job, index: int, now: float) -> None:
        engine = self._engines[index]
        before = engine.stint.ends_at_s if engine.stint else None
        engine.submit(job, now)
        if engine.stint is not None and engine.stint.ends_at_s != before:
            self._happens(engine.stint.ends_at_s, _Kind.STEPPED, index, None)

    def _stepped(self, index: int, now: float, router: Router) -> None:
        engine = self._engines[index]
        if engine.stint is None or engine.stint.ends_at_s != now:
            return  # that stint was cut short, or its replica has died
        answered, ended = engine.finish()
        for job in answered:
            self._answered(job, index, now)
            router.first_token(job.arrival, index, now)
        for job in ended:
            self._left(job, index, now)
            router.ended(job.arrival, index, now, job.hit_tokens)
            self._end(job, index, now)
        stint = engine.stint
        if stint is not None:
            self._happens(stint.ends_at_s, _Kind.STEPPED, index, None)

    def _answered(self, job: Job, index: int, now: float) -> None:
        """It had its first token."""

    def _left(self, job: Job, index: int, now: float) -> None:
        """Its replica has it no longer."""

    def _end(self, job: Job, index: int, now: float) -> None:
        if job.first_token_at_s is None:
            raise AssertionError("it ended before its first token")
        self._served.append(
            Served(job.arrival, index, job.hit_tokens, job.arrived_at_s, job.first_token_at_s, now)
        )
        for follower in self._followers.pop(job.arrival.number, ()):
            self._happens(now + follower.think_s, _Kind.ARRIVED, -1, follower)
