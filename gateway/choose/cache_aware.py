"""Cache-aware choosing: every replica priced in predicted seconds, the least wins.

    cost = wait + (u + overhead x running) / rate + PRICE x u / mean rate

`wait` is how long the replica is busy with prefill it already owes, `u` the prompt tokens it does
not hold, `rate` what it prefills per second, learnt. The last term is what a cold prefill costs
everybody behind it, in seconds of the mean replica; without it a pool near its limit gives affinity
away and must prefill more for it. What a replica holds is what we sent it (`PrefixCache`), counted
from dispatch on, so that siblings follow their leader.

Trade-offs. Costs grow with the replicas that hold a part of the prompt, not with the pool: hashing
stops when nobody holds the next block. Other gateways' dispatches and the engine's own evictions
are not seen: after an eviction a prompt may be sent where it is no longer cached, which costs what
a miss costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import msgspec

from gateway.choose.chooser import NO_CLAIM, Choice, Claim
from gateway.choose.pace import Pace
from gateway.choose.prefix import BLOCK_BYTES, block_hashes
from gateway.choose.prefix_cache import PrefixCache
from gateway.vocabulary import (
    GenerationRequest,
    Prediction,
    ReplicaId,
    ReplicaView,
    Seconds,
    Tokens,
)

PRICE: Final = 4.0
"""How dear uncached work is to the others, in multiples of its own time. Larger prices keep more
affinity and herd on a hot prefix; docs/benchmarks has the comparison."""

BYTES_PER_TOKEN: Final = 4  # only to turn a cache's size in tokens into blocks of bytes


class Target:
    """What is known of one replica."""

    __slots__ = ("cache", "pace")

    def __init__(self, capacity_blocks: int) -> None:
        self.cache = PrefixCache(capacity_blocks)
        self.pace = Pace()

    def __repr__(self) -> str:
        return f"<Target {self.pace!r} {self.cache!r}>"


class CacheAware:
    """A scorer with a memory: it is told of every dispatch, first byte and end."""

    __slots__ = ("_capacity_blocks", "_overhead_tokens", "_targets")

    def __init__(self, overhead_tokens: Tokens, cache_tokens: Tokens) -> None:
        """`cache_tokens`: how much of its prompts a replica is believed to keep."""
        self._overhead_tokens = overhead_tokens
        self._capacity_blocks = max(1, cache_tokens * BYTES_PER_TOKEN // BLOCK_BYTES)
        self._targets: dict[ReplicaId, Target] = {}

    def __repr__(self) -> str:
        return f"<CacheAware {self._targets!r}>"

    def target(self, replica: ReplicaId) -> Target:
        """What is known of a replica; a new one is believed to be cold and of ordinary pace."""
        found = self._targets.get(replica)
        if found is None:
            found = self._targets[replica] = Target(self._capacity_blocks)
        return found

    def forget(self, replica: ReplicaId) -> None:
        """It has left, or started anew."""
        self._targets.pop(replica, None)

    def quote(
        self, request: GenerationRequest, replicas: Sequence[ReplicaView], now: Seconds
    ) -> Priced:
        """In seconds; never negative. O(replicas + blocks that any of them holds)."""
        targets = [self.target(one.id) for one in replicas]
        hits = _hits(request, [target.cache for target in targets])
        # One over the mean rate, not the mean of one over rates: one slow replica must not make
        # uncached work look dear to a pool that would hardly feel it.
        mean_s = len(targets) / sum([target.pace.rate_per_s for target in targets])
        overhead = self._overhead_tokens
        costs: list[float] = []
        for replica, target, hit in zip(replicas, targets, hits, strict=True):
            uncached = _uncached(request, hit)
            pace = target.pace
            own_s = (uncached + overhead * replica.inflight_requests) / pace.rate_per_s
            costs.append(pace.wait_s(now) + own_s + PRICE * uncached * mean_s)
        return Priced(costs, request, replicas, targets, hits, now)

    def dispatched(
        self, request: GenerationRequest, choice: Choice[ReplicaView], now: Seconds
    ) -> Claim:
        """It goes there: from now on the replica owes its prefill, and holds its prompt."""
        target = self.target(choice.replica.id)
        chain = list(block_hashes(request))
        hit = 0
        for block in chain:
            if block not in target.cache:
                break
            hit += 1
        target.cache.store(chain)
        uncached = _uncached(request, hit)
        if not request.stream:
            target.pace.begin_unseen(uncached, now)
            return NO_CLAIM
        target.pace.begin(uncached, now)
        return Owed(target.pace, uncached)


class Priced(msgspec.Struct, frozen=True):
    """Costs in seconds, and what they were made of. A `Quote`."""

    costs: Sequence[float]
    request: GenerationRequest
    replicas: Sequence[ReplicaView]
    targets: Sequence[Target]
    hits: Sequence[int]
    now: Seconds

    def prediction(self, index: int) -> Prediction:
        """As things were when it was priced."""
        target = self.targets[index]
        uncached = _uncached(self.request, self.hits[index])
        return Prediction(
            self.replicas[index].id,
            self.costs[index],
            hit_tokens=max(self.request.prompt_tokens - uncached, 0),
            wait_s=target.pace.wait_s(self.now),
            prefill_s=uncached / target.pace.rate_per_s,
            grade="approximate",
        )


def _hits(request: GenerationRequest, caches: Sequence[PrefixCache]) -> list[int]:
    """Leading blocks of the prompt that each cache holds. Hashes no further than anybody holds."""
    hits = [0] * len(caches)
    alive = list(range(len(caches)))
    for block in block_hashes(request):
        alive = [i for i in alive if block in caches[i]]
        if not alive:
            break
        for i in alive:
            hits[i] += 1
    return hits


def _uncached(request: GenerationRequest, hit_blocks: int) -> Tokens:
    """Prompt tokens to be prefilled; at least one, as an engine always computes the last."""
    if not hit_blocks or not request.prompt_bytes:
        return max(request.prompt_tokens, 1)
    rest = max(request.prompt_bytes - hit_blocks * BLOCK_BYTES, 0) / request.prompt_bytes
    return max(int(request.prompt_tokens * rest), 1)


class Owed:
    """Prefill that a replica owes for one stream. A `Claim`."""

    __slots__ = ("_pace", "_tokens")

    def __init__(self, pace: Pace, tokens: Tokens) -> None:
        self._pace = pace
        self._tokens = tokens

    def __repr__(self) -> str:
        return f"<Owed {self._tokens} tokens>"

    def __enter__(self) -> Self:
        return self

    def first_byte(self, now: Seconds) -> None:
        """Its prompt has been read. Only the first call counts."""
        tokens, self._tokens = self._tokens, 0
        if tokens:
            self._pace.prefilled(tokens, now)

    def answered(
        self, prompt_tokens: Tokens | None, cached_tokens: Tokens | None, now: Seconds
    ) -> None:
        """Nothing is learnt from it yet."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tokens, self._tokens = self._tokens, 0
        if tokens:
            self._pace.dropped(tokens)
