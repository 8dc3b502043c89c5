"""Consistent hashing: the same key goes to the same replica, however the fleet changes round it.

Highest random weight: every replica has a weight by the key and its own name, and the heaviest has
the key. When a replica leaves, only its keys move; when one joins, it takes its share from each.
Loads are bounded as in "Consistent Hashing with Bounded Loads": a replica that has `bound` times
its share of the requests in flight already is passed over for the next heaviest. The bound is never
below the mean, so there is always one within it.

Costs are ranks, not work: from 0 to 1 for those within the bound, from 1 to 2 beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Final

import xxhash

from gateway.choose.scorers import Plain
from gateway.request import GenerationRequest
from gateway.vocabulary import ReplicaView, Seconds

_WHOLE: Final = float(2**64)


class ConsistentHash:
    """By session where the client names one, else by the beginning of the prompt."""

    __slots__ = ("_bound", "_prefix_bytes")

    def __init__(self, bound: float, prefix_bytes: int) -> None:
        """`bound`: the most requests in flight a replica may have, in multiples of the mean."""
        self._bound = bound
        self._prefix_bytes = prefix_bytes

    def quote(
        self, request: GenerationRequest, replicas: Sequence[ReplicaView], now: Seconds
    ) -> Plain:
        """In ranks. O(replicas)."""
        key = self._key(request)
        inflight = [one.inflight_requests for one in replicas]
        most = ceil(self._bound * (sum(inflight) + 1) / len(replicas))
        weigh = xxhash.xxh3_64_intdigest
        costs = [
            (0.0 if has < most else 1.0) + 1.0 - weigh(one.id.encode(), key) / _WHOLE
            for one, has in zip(replicas, inflight, strict=True)
        ]
        return Plain(costs, replicas)

    def _key(self, request: GenerationRequest) -> int:
        digest = xxhash.xxh3_64(request.model.encode())
        if request.session is not None:
            digest.update(b"\x00")
            digest.update(request.session)
        else:
            digest.update(b"\x01")
            digest.update(memoryview(request.prompt)[: self._prefix_bytes])
        return digest.intdigest()
