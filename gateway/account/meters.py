"""Counts and histograms that cost next to nothing to feed.

prometheus-client's own children take a lock per observation; ours are plain numbers, fed from one
thread and read by a collector when Prometheus asks (`gateway.account.metrics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

LATENCY_BOUNDS_S: Final[tuple[float, ...]] = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
)  # fmt: skip
"""From a cache hit on a fast GPU to a long generation; about a factor of two apart."""

STEP_BOUNDS_S: Final[tuple[float, ...]] = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.4,
    0.8, 2.0,
)  # fmt: skip
"""Between two tokens: finer where engines live."""


class Histogram:
    """Observations counted by upper bound (inclusive), and their sum."""

    __slots__ = ("_above", "_alike", "_counts", "_last", "_up_to", "bounds", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.total = 0.0
        self._counts = [0] * (len(self.bounds) + 1)  # the last: above every bound
        # Most are near the one before: those alike are counted without a look at the bounds.
        self._last = 0
        self._above, self._up_to = -inf, self.bounds[0]
        self._alike = 0  # counted at the last one, and not yet among the others

    def __repr__(self) -> str:
        return f"<Histogram of {sum(self.counts)}, sum {self.total:.6g}>"

    @property
    def counts(self) -> list[int]:
        """Observations by their bounds, the last of them above every bound."""
        self._counts[self._last] += self._alike
        self._alike = 0
        return self._counts

    def observe(self, value: float) -> None:
        """O(bounds between this value and the one before)."""
        if not self._above < value <= self._up_to:
            self._turn_to(value)
        self._alike += 1
        self.total += value

    def _turn_to(self, value: float) -> None:
        self._counts[self._last] += self._alike
        self._alike = 0
        bounds, at = self.bounds, self._last
        while at and value <= bounds[at - 1]:
            at -= 1
        while at < len(bounds) and value > bounds[at]:
            at += 1
        self._last = at
        self._above = bounds[at - 1] if at else -inf
        self._up_to = bounds[at] if at < len(bounds) else inf

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as Prometheus wants them, "+Inf" last."""
        running = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*self.bounds, inf), self.counts, strict=True):
            running += count
            buckets.append(("+Inf" if bound == inf else repr(bound), running))
        return buckets


class ModelMeters:
    """What is measured per model. One of these is looked up per request, none per chunk."""

    __slots__ = (
        "cached_tokens",
        "duration_s",
        "inter_token_s",
        "output_tokens",
        "prompt_tokens",
        "queue_s",
        "time_per_output_token_s",
        "ttft_s",
    )

    def __init__(self) -> None:
        self.queue_s = Histogram(LATENCY_BOUNDS_S)
        self.ttft_s = Histogram(LATENCY_BOUNDS_S)
        self.duration_s = Histogram(LATENCY_BOUNDS_S)
        self.inter_token_s = Histogram(STEP_BOUNDS_S)
        self.time_per_output_token_s = Histogram(STEP_BOUNDS_S)
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
