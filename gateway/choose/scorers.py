"""What would this request cost there? Least wins.

Costs are read from what this gateway itself has in flight, not from scraped gauges: those are stale
by a scrape, and a burst would all go where the last scrape saw room.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.vocabulary import GenerationRequest, ReplicaView, Seconds, Tokens


class ExpectedWork:
    """Prompt tokens still to be prefilled, plus what each running request costs.

    cost = prompt tokens in flight + own prompt tokens + overhead x requests in flight, in tokens.
    """

    __slots__ = ("_overhead_tokens",)

    def __init__(self, overhead_tokens: Tokens) -> None:
        """`overhead_tokens`: what one running request slows others by, in prefilled tokens."""
        self._overhead_tokens = overhead_tokens

    def costs(
        self, request: GenerationRequest, replicas: Sequence[ReplicaView], now: Seconds
    ) -> list[float]:
        """In tokens; never negative."""
        own, overhead = request.prompt_tokens, self._overhead_tokens
        return [
            own + one.inflight_prompt_tokens + overhead * one.inflight_requests for one in replicas
        ]


class Indifferent:
    """Every replica costs the same: the picker alone decides."""

    __slots__ = ()

    def costs(
        self, request: GenerationRequest, replicas: Sequence[ReplicaView], now: Seconds
    ) -> list[float]:
        """All zero."""
        return [0.0] * len(replicas)
