"""The arithmetic of the benchmark: rounds into medians, medians into ratios and verdicts.

Pure. Costs are CPU microseconds, latencies microseconds, memory bytes. A cost per streamed chunk
is what remains of a stream's CPU time when a unary request's has been taken off, shared among the
events after the first, which the unary figure already pays for.

A cost *when calm* is the tenth percentile over slices of a tenth of a second. A core that is half
of a physical one runs at two thirds of its pace while the other half works for somebody else,
which comes and goes within such a slice; what is cheapest is what ran alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final


class Figure(StrEnum):
    """What is measured of each subject in each round."""

    UNARY = "cpu_us_per_request_2kb"
    LARGE = "cpu_us_per_request_128kb"
    CHUNK = "cpu_us_per_chunk"
    ADDED_P50 = "added_p50_us"
    ADDED_P99 = "added_p99_us"


_CALM_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range of one figure over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(median(values), min(values), max(values), len(values))


def per_request_us(cpu_s: float, requests: int) -> float:
    """CPU microseconds a request. Raises ValueError when nothing finished."""
    if requests <= 0:
        raise ValueError("no request finished in the window")
    return cpu_s * 1e6 / requests


def per_chunk_us(cpu_s: float, *, streams: int, events: int, unary_us: float) -> float:
    """CPU microseconds a chunk, the per-request part of the finished streams taken off."""
    chunks = events - streams
    if chunks <= 0:
        raise ValueError("no chunk passed in the window")
    return (cpu_s * 1e6 - streams * unary_us) / chunks


def when_calm(slices_us: Sequence[float]) -> float:
    """What it costs in the calmest tenth of the slices. Raises ValueError when there are none."""
    return percentile(slices_us, _CALM_SHARE)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value with at least `share` (0..1] of all values at or below it."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True, slots=True)
class Target:
    """What Headrace must reach: a share of the better Rust peer's figure, or a plain number."""

    figure: Figure
    label: str
    peer_ratio: float | None = None
    limit_us: float | None = None


TARGETS: Final = (
    Target(Figure.UNARY, "unary 2 KB", peer_ratio=0.5),
    Target(Figure.CHUNK, "streamed chunk", peer_ratio=0.85),
    Target(Figure.LARGE, "unary 128 KB", limit_us=250.0),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target against what was measured; `peer` is None for a target in plain numbers."""

    target: Target
    ours_us: float
    allowed_us: float
    peer: str | None

    @property
    def is_met(self) -> bool:
        """Whether ours is within what is allowed."""
        return self.ours_us <= self.allowed_us


def verdicts(
    costs: Mapping[str, Mapping[Figure, float]], *, ours: str, peers: Sequence[str]
) -> list[Verdict]:
    """Judge every target that can be judged: without ours or without any peer there is none."""
    found = []
    for target in TARGETS:
        mine_us = costs.get(ours, {}).get(target.figure)
        if mine_us is None:
            continue
        if target.limit_us is not None:
            found.append(Verdict(target, mine_us, target.limit_us, None))
            continue
        theirs = {
            peer: costs[peer][target.figure]
            for peer in peers
            if target.figure in costs.get(peer, {})
        }
        if theirs and target.peer_ratio is not None:
            best = min(theirs, key=lambda peer: theirs[peer])
            allowed_us = target.peer_ratio * theirs[best]
            found.append(Verdict(target, mine_us, allowed_us, best))
    return found
