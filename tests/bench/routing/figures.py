"""From one run to figures, and from the figures of several seeds to a median and a range. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from statistics import fmean, pstdev

from tests.bench.figures import percentile
from tests.bench.routing.cache import Arrival, ideal_hit_tokens
from tests.bench.routing.world import Run


class Figure(StrEnum):
    """What is read off a run. Seconds, and ratios from 0 to 1; `LOAD_CV` has no upper bound."""

    MEAN = "ttft_mean_s"
    P50 = "ttft_p50_s"
    P90 = "ttft_p90_s"
    P99 = "ttft_p99_s"
    DURATION = "duration_mean_s"
    HIT = "hit_ratio"
    IDEAL = "ideal_hit_ratio"
    LOAD_CV = "load_cv"


def figures(run: Run) -> dict[Figure, float]:
    """Over every request of the run, warm-up included. The load is time spent on prompts."""
    ttfts_s = [each.ttft_s for each in run.served]
    prompts = sum(each.arrival.prompt_tokens for each in run.served)
    return {
        Figure.MEAN: fmean(ttfts_s),
        Figure.P50: percentile(ttfts_s, 0.50),
        Figure.P90: percentile(ttfts_s, 0.90),
        Figure.P99: percentile(ttfts_s, 0.99),
        Figure.DURATION: fmean(each.duration_s for each in run.served),
        Figure.HIT: sum(each.hit_tokens for each in run.served) / prompts,
        Figure.LOAD_CV: pstdev(run.prefill_s) / fmean(run.prefill_s),
    }


def ideal_hit_ratio(arrivals: Sequence[Arrival]) -> float:
    """The hit ratio of one boundless cache, by tokens."""
    return sum(ideal_hit_tokens(arrivals)) / sum(each.prompt_tokens for each in arrivals)
