"""Simulated replicas in virtual time, and one run of arrivals through a router.

A replica prefills one request at a time, first come first served, at a constant rate; what its
cache holds when a prefill begins needs none. The first token comes when the prefill ends, and then
the prompt's blocks are in the cache. Decoding takes a constant time a token beside everything else:
it gives requests in flight their length and disturbs no prefill.

Invariants. Work is conserved: a replica is never idle while a request waits there, and its busy
time is the uncached tokens it was given over its rate. Every arrival is served exactly once. Same
arrivals, specs and chances give the same run.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from typing import TYPE_CHECKING, Protocol

from tests.bench.routing.cache import BlockCache, hit_tokens, leading

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of an open loop: it comes at its instant, whatever became of those before it."""

    number: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What a simulated replica can do."""

    prefill_tokens_per_s: float
    cache_blocks: int
    decode_token_s: float = 0.025


@dataclass(frozen=True, slots=True)
class Served:
    """How one arrival fared; instants in virtual seconds."""

    arrival: Arrival
    replica: int
    hit_tokens: int
    first_token_at_s: float

    @property
    def ttft_s(self) -> float:
        """From arrival to first token."""
        return self.first_token_at_s - self.arrival.at_s


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what was served, in order of first tokens, and each replica's time at work."""

    served: Sequence[Served]
    busy_s: Sequence[float]


class Router(Protocol):
    """A policy at work. It learns what a gateway learns: choices, first tokens and ends."""

    def choose(self, arrival: Arrival, now: float) -> int:
        """The index of the replica that is to have it; counts as dispatched."""

    def first_token(self, arrival: Arrival, replica: int, now: float) -> None:
        """The first byte came back."""

    def ended(self, arrival: Arrival, replica: int, now: float, cached_tokens: int) -> None:
        """The answer is over, and told how many prompt tokens were cached."""


class Caches(Protocol):
    """An exact and instant index, for comparators: better than any real one."""

    def hit_tokens(self, arrival: Arrival) -> list[int]:
        """Per replica, what is cached there or will be by what was already sent there."""


RouterFactory = Callable[[Sequence[ReplicaSpec], Caches, "Random"], Router]


class _Kind(IntEnum):
    """What happens; at equal instants in this order, so that news comes before decisions."""

    ENDED = 0
    PREFILLED = 1
    ARRIVED = 2


@dataclass(slots=True)
class _Replica:
    """One replica: a queue whose head is being prefilled, a cache, and what is promised to it."""

    spec: ReplicaSpec
    cache: BlockCache
    queue: deque[Arrival] = field(default_factory=deque)
    promised: Counter[int] = field(default_factory=Counter)
    head_hit_tokens: int = 0
    busy_s: float = 0.0

    def begin(self) -> float:
        """Start on the head of the queue; the seconds it takes."""
        head = self.queue[0]
        self.head_hit_tokens = hit_tokens(self.cache.match(head.blocks), head.prompt_tokens)
        uncached = head.prompt_tokens - self.head_hit_tokens
        duration_s = uncached / self.spec.prefill_tokens_per_s
        self.busy_s += duration_s
        return duration_s

    def finish(self) -> Arrival:
        """End the head's prefill: its blocks are in the cache."""
        head = self.queue.popleft()
        self.cache.keep(head.blocks)
        for block in head.blocks:
            self.promised[block] -= 1
            if not self.promised[block]:
                del self.promised[block]
        return head


class World:
    """A fleet of simulated replicas."""

    def __init__(self, specs: Sequence[ReplicaSpec]) -> None:
        self._replicas = [_Replica(spec, BlockCache(spec.cache_blocks)) for spec in specs]
        self._events: list[tuple[float, _Kind, int, Arrival, int, int]] = []
        self._order = count()

    def __repr__(self) -> str:
        queued = sum(len(each.queue) for each in self._replicas)
        return f"<World {len(self._replicas)} replicas, {queued} requests before their first token>"

    def hit_tokens(self, arrival: Arrival) -> list[int]:
        """See `Caches`."""
        return [
            hit_tokens(
                leading(arrival.blocks, each.cache.held, each.promised), arrival.prompt_tokens
            )
            for each in self._replicas
        ]

    def run(self, arrivals: Sequence[Arrival], router: Router) -> Run:
        """Serve them all to the end. O(events x log events + blocks)."""
        for arrival in arrivals:
            self._happens(arrival.at_s, _Kind.ARRIVED, arrival)
        served = []
        while self._events:
            now, kind, _, arrival, index, cached = heapq.heappop(self._events)
            if kind is _Kind.ARRIVED:
                self._dispatch(arrival, router.choose(arrival, now), now)
            elif kind is _Kind.PREFILLED:
                served.append(self._prefilled(index, now))
                router.first_token(arrival, index, now)
            else:
                router.ended(arrival, index, now, cached)
        return Run(served, [each.busy_s for each in self._replicas])

    def _happens(
        self, at_s: float, kind: _Kind, arrival: Arrival, index: int = -1, cached: int = 0
    ) -> None:
        heapq.heappush(self._events, (at_s, kind, next(self._order), arrival, index, cached))

    def _dispatch(self, arrival: Arrival, index: int, now: float) -> None:
        replica = self._replicas[index]
        replica.queue.append(arrival)
        replica.promised.update(arrival.blocks)
        if len(replica.queue) == 1:
            self._happens(now + replica.begin(), _Kind.PREFILLED, arrival, index)

    def _prefilled(self, index: int, now: float) -> Served:
        replica = self._replicas[index]
        cached = replica.head_hit_tokens
        done = replica.finish()
        rest_s = (done.output_tokens - 1) * replica.spec.decode_token_s
        self._happens(now + rest_s, _Kind.ENDED, done, index, cached)
        if replica.queue:
            self._happens(now + replica.begin(), _Kind.PREFILLED, replica.queue[0], index)
        return Served(done, index, cached, now)
