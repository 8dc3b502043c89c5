"""What would this request cost there? Least wins.

Costs are read from what this gateway itself has in flight, not from scraped gauges: those are stale
by a scrape, and a burst would all go where the last scrape saw room.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.request import GenerationRequest
from gateway.vocabulary import Prediction, ReplicaView, Seconds, Tokens


class Plain(msgspec.Struct, frozen=True):
    """Costs that are all there is to say. A `Quote`."""

    costs: list[float]
    replicas: Sequence[ReplicaView]

    def prediction(self, index: int) -> Prediction:
        """The cost."""
        return Prediction(self.replicas[index].id, self.costs[index])


class ExpectedWork:
    """Prompt tokens still to be prefilled, plus what each running request costs.

    cost = prompt tokens in flight + own prompt tokens + overhead x requests in flight, in tokens.
    """

    __slots__ = ("_overhead_tokens",)

    def __init__(self, overhead_tokens: Tokens) -> None:
        """`overhead_tokens`: what one running request slows others by, in prefilled tokens."""
        self._overhead_tokens = overhead_tokens

    def quote(
        self, request: GenerationRequest, replicas: Sequence[ReplicaView], now: Seconds
    ) -> Plain:
        """In tokens; never negative."""
        own, overhead = request.prompt_tokens, self._overhead_tokens
        costs: list[float] = [
            own + one.inflight_prompt_tokens + overhead * one.inflight_requests for one in replicas
        ]
        return Plain(costs, replicas)


class RequestsInFlight:
    """cost = requests in flight: no thought of their length."""

    __slots__ = ()

    def quote(
        self, request: GenerationRequest, replicas: Sequence[ReplicaView], now: Seconds
    ) -> Plain:
        """In requests."""
        return Plain([float(one.inflight_requests) for one in replicas], replicas)


class Indifferent:
    """Every replica costs the same: the picker alone decides."""

    __slots__ = ()

    def quote(
        self, request: GenerationRequest, replicas: Sequence[ReplicaView], now: Seconds
    ) -> Plain:
        """All zero."""
        return Plain([0.0] * len(replicas), replicas)
