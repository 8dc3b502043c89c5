"""Policies of others, written anew from their published formulas.

Each counts for itself what it has in flight, as the originals do; those that know caches are given
an exact and instant index that also credits what is on its way, which is better than what they
ship with. Letters: L prompt tokens, h_i cached there, u_i = L - h_i, P_i uncached prefill tokens
sent there whose first token has not come, B_i requests sent there that have not ended.

`Reference` is none of the others: the score this project set out with, told the true rates and the
exact index. It is the mark that the gateway's own policy, which must learn both, is held against.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from tests.bench.routing.cache import BLOCK_TOKENS, Arrival
from tests.bench.routing.engine import ReplicaSpec
from tests.bench.routing.world import Caches, RouterFactory

if TYPE_CHECKING:
    from random import Random


class Counting:
    """Counts what is in flight where; a policy is what it adds in `pick`."""

    def __init__(self, specs: Sequence[ReplicaSpec], caches: Caches, rng: Random) -> None:
        self.specs = specs
        self.caches = caches
        self.rng = rng
        self.alive: Sequence[int] = range(len(specs))
        self.requests = [0] * len(specs)  # B
        self.prefill_tokens = [0] * len(specs)  # P
        self._uncached: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} B={self.requests} P={self.prefill_tokens}>"

    def members(self, replicas: Sequence[int]) -> None:
        """Who may be picked from now on."""
        self.alive = replicas

    def choose(self, arrival: Arrival, now: float) -> int:
        """Pick, and count it there."""
        uncached = [arrival.prompt_tokens - hit for hit in self.caches.hit_tokens(arrival)]
        index = self.pick(arrival, uncached, now)
        self.requests[index] += 1
        self.prefill_tokens[index] += uncached[index]
        self._uncached[arrival.number] = uncached[index]
        return index

    def first_token(self, arrival: Arrival, replica: int, now: float) -> None:
        """Its prefill is no longer owed."""
        self.prefill_tokens[replica] -= self._uncached.pop(arrival.number)

    def ended(self, arrival: Arrival, replica: int, now: float, cached_tokens: int | None) -> None:
        """It is no longer in flight."""
        self.requests[replica] -= 1
        self.prefill_tokens[replica] -= self._uncached.pop(arrival.number, 0)

    def pick(self, arrival: Arrival, uncached: Sequence[int], now: float) -> int:
        """The policy: an index into the replicas."""
        raise NotImplementedError

    def least(self, cost: Callable[[int], float | tuple[float, ...]]) -> int:
        """The replica of least cost; among equals, any with the same chance."""
        return self.least_of(self.alive, cost)

    def least_of(
        self, candidates: Sequence[int], cost: Callable[[int], float | tuple[float, ...]]
    ) -> int:
        """As `least`, of some of them."""
        costs = [cost(i) for i in candidates]
        best = min(costs)
        return self.rng.choice(
            [i for i, each in zip(candidates, costs, strict=True) if each == best]
        )


class RoundRobin(Counting):
    """One after the other."""

    _turn = -1

    def pick(self, arrival: Arrival, uncached: Sequence[int], now: float) -> int:
        self._turn += 1
        return self.alive[self._turn % len(self.alive)]


class AnyOne(Counting):
    """Any, with the same chance."""

    def pick(self, arrival: Arrival, uncached: Sequence[int], now: float) -> int:
        return self.rng.choice(self.alive)


class LeastLoaded(Counting):
    """argmin B_i."""

    def pick(self, arrival: Arrival, uncached: Sequence[int], now: float) -> int:
        return self.least(lambda i: self.requests[i])


class PowerOfTwo(Counting):
    """argmin B_i over two drawn at random."""

    def pick(self, arrival: Arrival, uncached: Sequence[int], now: float) -> int:
        drawn = self.rng.sample(self.alive, min(2, len(self.alive)))
        return self.least_of(drawn, lambda i: self.requests[i])


class BoundedHash(Counting):
    """Consistent hashing with bounded loads: first on the ring with B_i + 1 <= c * (mean + 1/N).

    The key is the first 1024 tokens: the originals hash 100 characters or 256 tokens, which on a
    trace with one system prompt for all would be one key for all.
    """

    KEY_BLOCKS: Final = 2
    POINTS: Final = 100
    BOUND: Final = 1.25

    def __init__(self, specs: Sequence[ReplicaSpec], caches: Caches, rng: Random) -> None:
        super().__init__(specs, caches, rng)
        self._ring = sorted(
            (_point(f"{i}/{point}"), i) for i in range(len(specs)) for point in range(self.POINTS)
        )

    def pick(self, arrival: Arrival, uncached: Sequence[int], now: float) -> int:
        most = math.ceil(self.BOUND * (sum(self.requests) + 1) / len(self.alive))
        key = _point(str(arrival.blocks[: self.KEY_BLOCKS]))
        start = bisect_left(self._ring, (key, 0))
        for _, index in self._ring[start:] + self._ring[:start]:
            if index in self.alive and self.requests[index] < most:
                return index
        raise AssertionError("some replica is always below the bound, which is above the mean")


def _point(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


class CacheOrLoad(Counting):
    """SMG's cache_aware: least requests when unbalanced, else the longest match if over half.

    Unbalanced: max B - min B > 32 and max B > 1.1 * min B.
    """

    ABSOLUTE: Final = 32
    RELATIVE: Final = 1.1
    THRESHOLD: Final = 0.5

    def pick(self, arrival: Arrival, uncached: Sequence[int], now: float) -> int:
        counts = [self.requests[i] for i in self.alive]
        low, high = min(counts), max(counts)
        is_unbalanced = high - low > self.ABSOLUTE and high > self.RELATIVE * low
        matched = 1 - min(uncached[i] for i in self.alive) / arrival.prompt_tokens
        if is_unbalanced or matched <= self.THRESHOLD:
            return self.least(lambda i: self.requests[i])
        return self.least(lambda i: (uncached[i], self.requests[i]))


class LeastPrefillWork(Counting):
    """LPWL: argmin P_i + u_i, then fewest requests."""

    def pick(self, arrival: Arrival, uncached: Sequence[int], now: float) -> int:
        return self.least(lambda i: (self.prefill_tokens[i] + uncached[i], self.requests[i]))


class Multiply(Counting):
    """LMetric: argmin (P_i + u_i) * (B_i + 1)."""

    def pick(self, arrival: Arrival, uncached: Sequence[int], now: float) -> int:
        return self.least(lambda i: (self.prefill_tokens[i] + uncached[i]) * (self.requests[i] + 1))


class Sticky(Counting):
    """llm-d: among the warm (h >= 0.8 L) unless they keep 18 s longer waiting; argmin P_i + u_i.

    Waiting is P_i / R with one R for the pool: here the mean of the true rates.
    """

    AFFINITY: Final = 0.80
    MOST_PENALTY_S: Final = 18.0

    def pick(self, arrival: Arrival, uncached: Sequence[int], now: float) -> int:
        everyone = self.alive
        cached = [arrival.prompt_tokens - each for each in uncached]
        warm = [i for i in everyone if cached[i] >= self.AFFINITY * arrival.prompt_tokens]
        cold = [i for i in everyone if i not in warm]
        candidates: Sequence[int] = everyone
        if warm and cold:
            rate = pool_mean_rate(self.specs)
            owed = [tokens / rate for tokens in self.prefill_tokens]
            penalty_s = min(owed[i] for i in warm) - min(owed[i] for i in cold)
            candidates = everyone if penalty_s > self.MOST_PENALTY_S else warm
        return self.least_of(candidates, lambda i: self.prefill_tokens[i] + uncached[i])


class Blocks(Counting):
    """Dynamo: argmin of prefill blocks and active blocks, (P_i + u_i) / 512 + |A_i with this one|.

    A_i are the different blocks of the requests in flight there: a shared prefix counts once. At
    its default weights and temperature 0.
    """

    def __init__(self, specs: Sequence[ReplicaSpec], caches: Caches, rng: Random) -> None:
        super().__init__(specs, caches, rng)
        self._active: list[Counter[int]] = [Counter() for _ in specs]

    def pick(self, arrival: Arrival, uncached: Sequence[int], now: float) -> int:
        index = self.least(
            lambda i: (
                (self.prefill_tokens[i] + uncached[i]) / BLOCK_TOKENS
                + len(self._active[i])
                + sum(block not in self._active[i] for block in arrival.blocks)
            )
        )
        self._active[index].update(arrival.blocks)
        return index

    def ended(self, arrival: Arrival, replica: int, now: float, cached_tokens: int | None) -> None:
        super().ended(arrival, replica, now, cached_tokens)
        active = self._active[replica]
        active.subtract(arrival.blocks)
        for block in arrival.blocks:
            if not active[block]:
                del active[block]


class Reference(Counting):
    """argmin W_i + u_i / R_i + price * u_i / mean R: a clock per replica that drains with time.

    W_i is what is left of the prefill sent there, by the true rate; set right at every first token.
    """

    PRICE: Final = 4.0

    def __init__(self, specs: Sequence[ReplicaSpec], caches: Caches, rng: Random) -> None:
        super().__init__(specs, caches, rng)
        self._free_at_s = [0.0] * len(specs)

    def pick(self, arrival: Arrival, uncached: Sequence[int], now: float) -> int:
        price_s = self.PRICE / pool_mean_rate(self.specs)
        rates = [each.prefill_tokens_per_s for each in self.specs]
        index = self.least(
            lambda i: max(self._free_at_s[i] - now, 0.0) + uncached[i] * (1 / rates[i] + price_s)
        )
        start_s = max(self._free_at_s[index], now)
        self._free_at_s[index] = start_s + uncached[index] / rates[index]
        return index

    def first_token(self, arrival: Arrival, replica: int, now: float) -> None:
        super().first_token(arrival, replica, now)
        rate = self.specs[replica].prefill_tokens_per_s
        self._free_at_s[replica] = now + self.prefill_tokens[replica] / rate


def pool_mean_rate(specs: Sequence[ReplicaSpec]) -> float:
    """Mean prefill tokens a second."""
    return sum(each.prefill_tokens_per_s for each in specs) / len(specs)


COMPARATORS: Final[Mapping[str, RouterFactory]] = MappingProxyType(
    {
        "round-robin": RoundRobin,
        "random": AnyOne,
        "least-loaded": LeastLoaded,
        "power-of-two": PowerOfTwo,
        "bounded-hash": BoundedHash,
        "smg-cache-aware": CacheOrLoad,
        "dynamo": Blocks,
        "lmetric": Multiply,
        "lpwl": LeastPrefillWork,
        "llm-d-sticky": Sticky,
        "reference": Reference,
    }
)
