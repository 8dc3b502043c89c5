"""Percentiles, and the figures of a run that can be read off its samples.

Pure. A run is judged over its *window*, from the end of the warm-up to the last arrival: requests
*intended* in it give latencies, errors and goodput, however late they ended; replies that *ended*
in it give throughput. So an endpoint that falls behind shows it in both.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from loadtest.samples import Objectives, Sample


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value with at least `share` (0..1] of all values at or below it."""
    return percentile_sorted(sorted(values), share)


def percentile_sorted(values: Sequence[float], share: float) -> float:
    """As `percentile`, of ascending values. Raises ValueError when there are none."""
    if not values:
        raise ValueError("no values")
    return values[max(0, math.ceil(share * len(values)) - 1)]


class Distribution(msgspec.Struct, frozen=True):
    """How values are spread; in their own unit."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Distribution | None:
        """None where there are no values."""
        ordered = sorted(values)
        if not ordered:
            return None
        return cls(
            count=len(ordered),
            mean=math.fsum(ordered) / len(ordered),
            p50=percentile_sorted(ordered, 0.5),
            p90=percentile_sorted(ordered, 0.9),
            p95=percentile_sorted(ordered, 0.95),
            p99=percentile_sorted(ordered, 0.99),
            most=ordered[-1],
        )


class Figures(msgspec.Struct, frozen=True):
    """What a window of a run comes to: seconds, tokens, and rates per second."""

    window_s: float
    requests: int
    good: int
    errors: dict[str, int]
    offered_per_s: float
    finished_per_s: float
    goodput_per_s: float
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    are_tokens_counted: bool
    ttft_s: Distribution | None
    itl_s: Distribution | None
    tpot_s: Distribution | None
    e2e_s: Distribution | None

    @property
    def failed(self) -> int:
        """Requests that brought no whole reply."""
        return sum(self.errors.values())

    @property
    def good_share(self) -> float:
        """Of requests, those that met the objectives; 0..1."""
        return self.good / self.requests if self.requests else 0.0

    @property
    def hit_ratio(self) -> float | None:
        """Of prompt tokens, those the endpoint says it had in its caches; 0..1."""
        if self.cached_tokens is None or not self.prompt_tokens:
            return None
        return self.cached_tokens / self.prompt_tokens


def figures_of(
    samples: Iterable[Sample], objectives: Objectives, begin_s: float, end_s: float
) -> Figures:
    """The figures of the window [begin_s, end_s)."""
    window_s = end_s - begin_s
    everything = list(samples)
    intended = [each for each in everything if begin_s <= each.intended_s < end_s]
    whole = [each for each in intended if each.error is None]
    ended = [each for each in everything if begin_s <= each.ended_s < end_s and each.error is None]
    good = sum(objectives.met_by(each) for each in intended)
    cached = [each.cached_tokens for each in whole if each.cached_tokens is not None]
    return Figures(
        window_s=window_s,
        requests=len(intended),
        good=good,
        errors=dict(Counter(each.error for each in intended if each.error is not None)),
        offered_per_s=len(intended) / window_s,
        finished_per_s=len(ended) / window_s,
        goodput_per_s=good / window_s,
        output_tokens_per_s=sum(each.output_tokens or 0 for each in ended) / window_s,
        prompt_tokens_per_s=sum(each.prompt_tokens or 0 for each in ended) / window_s,
        prompt_tokens=sum(each.prompt_tokens or 0 for each in whole),
        cached_tokens=sum(cached) if cached else None,
        output_tokens=sum(each.output_tokens or 0 for each in whole),
        are_tokens_counted=any(each.are_tokens_counted for each in whole),
        ttft_s=Distribution.of(each.ttft_s for each in whole if each.ttft_s is not None),
        itl_s=Distribution.of(gap for each in whole for gap in each.gaps_s),
        tpot_s=Distribution.of(each.tpot_s for each in whole if each.tpot_s is not None),
        e2e_s=Distribution.of(each.e2e_s for each in whole),
    )


def by_label(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Samples by tenant and label, as the report's rows name them."""
    found: defaultdict[str, list[Sample]] = defaultdict(list)
    for each in samples:
        found[f"{each.tenant}: {each.label}" if each.tenant else each.label].append(each)
    return dict(sorted(found.items()))


class Instant(msgspec.Struct, frozen=True):
    """One stretch of a run, for the charts over time; None where nothing happened."""

    at_s: float
    offered_per_s: float
    finished_per_s: float
    goodput_per_s: float
    errors_per_s: float
    output_tokens_per_s: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    itl_p50_s: float | None
    itl_p99_s: float | None


def over_time(
    samples: Iterable[Sample], objectives: Objectives, duration_s: float, width_s: float
) -> list[Instant]:
    """A run cut into stretches of `width_s`.

    TTFT stands where its request was intended, a gap where it was over, a finish at its end.
    """
    count = max(1, math.ceil(duration_s / width_s - 1e-9))
    offered: list[list[Sample]] = [[] for _ in range(count)]
    ended: list[list[Sample]] = [[] for _ in range(count)]
    gaps_s: list[list[float]] = [[] for _ in range(count)]
    for each in samples:
        _put(offered, each.intended_s / width_s, each)
        _put(ended, each.ended_s / width_s, each)
        for at_s, gap_s in zip(each.gap_ends_s(), each.gaps_s, strict=True):
            _put(gaps_s, at_s / width_s, gap_s)
    return [
        _instant(index * width_s, width_s, objectives, offered[index], ended[index], gaps_s[index])
        for index in range(count)
    ]


def _put(slots: list[list[Any]], at: float, value: object) -> None:
    if 0 <= at < len(slots):
        slots[int(at)].append(value)


def _instant(
    at_s: float,
    width_s: float,
    objectives: Objectives,
    offered: list[Sample],
    ended: list[Sample],
    gaps_s: list[float],
) -> Instant:
    ttfts_s = sorted(
        each.ttft_s for each in offered if each.ttft_s is not None and each.error is None
    )
    gaps_s.sort()
    whole = [each for each in ended if each.error is None]
    return Instant(
        at_s=at_s,
        offered_per_s=len(offered) / width_s,
        finished_per_s=len(whole) / width_s,
        goodput_per_s=sum(map(objectives.met_by, offered)) / width_s,
        errors_per_s=(len(ended) - len(whole)) / width_s,
        output_tokens_per_s=sum(each.output_tokens or 0 for each in whole) / width_s,
        ttft_p50_s=percentile_sorted(ttfts_s, 0.5) if ttfts_s else None,
        ttft_p95_s=percentile_sorted(ttfts_s, 0.95) if ttfts_s else None,
        itl_p50_s=percentile_sorted(gaps_s, 0.5) if gaps_s else None,
        itl_p99_s=percentile_sorted(gaps_s, 0.99) if gaps_s else None,
    )
