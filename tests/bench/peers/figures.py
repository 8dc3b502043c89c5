"""From outcomes to figures, and from figures to the ratios and verdicts that are asked for. Pure.

Ratios are taken seed by seed, between runs of the same requests, and then summed up: their median
counts, their range tells how far to believe it. The best peer of a figure is whichever of the other
gateways' policies had the least in that seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from tests.bench.figures import Spread, percentile
from tests.bench.peers.load import Outcome


@dataclass(frozen=True, slots=True)
class Figures:
    """One run. Times to first token are of the requests that had one; CPU is the gateway's."""

    requests: int
    errors: int
    faults: Sequence[str]
    """Different ones, a few."""
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    hit_ratio: float
    ideal_hit_ratio: float
    cpu_s: float
    cpu_ms_per_request: float
    wall_s: float
    late_p99_s: float
    """How far behind its instants the load generator was."""


def figures(
    outcomes: Sequence[Outcome], *, hit_ratio: float, ideal: float, cpu_s: float, wall_s: float
) -> Figures:
    """Summarise a run. Raises ValueError when there was no first token at all."""
    ttfts_s = [each.ttft_s for each in outcomes if each.ttft_s is not None]
    faults = [each.fault for each in outcomes if each.fault is not None]
    if not ttfts_s:
        raise ValueError(f"no request had a first token: {faults[:1]}")
    return Figures(
        requests=len(outcomes),
        errors=len(faults),
        faults=sorted(set(faults))[:4],
        mean_s=fmean(ttfts_s),
        p50_s=percentile(ttfts_s, 0.50),
        p90_s=percentile(ttfts_s, 0.90),
        p99_s=percentile(ttfts_s, 0.99),
        hit_ratio=hit_ratio,
        ideal_hit_ratio=ideal,
        cpu_s=cpu_s,
        cpu_ms_per_request=cpu_s * 1e3 / len(outcomes),
        wall_s=wall_s,
        late_p99_s=percentile([each.late_s for each in outcomes], 0.99),
    )


def capacity_tokens_s(prompts: Sequence[int], ttfts_s: Sequence[float], replicas: int) -> float:
    """What the replicas prefill a second, from prompts dealt out to them in turn at one instant.

    Each replica is at work until the last first token of its own; their rates are added up.
    """
    total = 0.0
    for replica in range(replicas):
        busy_s = max(ttfts_s[replica::replicas])
        if busy_s <= 0:
            raise ValueError("a replica did nothing")
        total += sum(prompts[replica::replicas]) / busy_s
    return total


Runs = Mapping[str, Sequence[Figures]]
"""By subject, one for each seed; subjects that failed once are not in it."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over theirs in one figure; `limit` is what it is to be at most, None where nothing is.

    `against` names the subject, or "best peer".
    """

    label: str
    against: str
    spread: Spread
    limit: float | None

    @property
    def is_met(self) -> bool:
        """Whether the median is within the limit; without a limit it is."""
        return self.limit is None or self.spread.median <= self.limit


MEAN_LIMIT: Final = 0.70
P90_LIMIT: Final = 0.75
CPU_LIMIT: Final = 1 / 8


def ratios(runs: Runs, *, ours: str, peers: Sequence[str], kv_aware: str) -> list[Ratio]:
    """Every ratio that can be had: without ours there is none."""
    found = []
    rivals = [peer for peer in peers if peer in runs]
    if ours in runs and rivals:
        for label, figure, limit in (
            ("mean TTFT", "mean_s", MEAN_LIMIT),
            ("p90 TTFT", "p90_s", P90_LIMIT),
        ):
            best = [min(getattr(each, figure) for each in row) for row in _rows(runs, rivals)]
            mine = [getattr(each, figure) for each in runs[ours]]
            found.append(Ratio(label, "best peer", _over(mine, best), limit))
    if ours in runs and kv_aware in runs:
        mine = [each.cpu_ms_per_request for each in runs[ours]]
        theirs = [each.cpu_ms_per_request for each in runs[kv_aware]]
        found.append(Ratio("CPU per request", kv_aware, _over(mine, theirs), CPU_LIMIT))
    return found


def routing_cost_ms(routed: Sequence[Figures], floor: Sequence[Figures]) -> Spread:
    """CPU milliseconds a request beyond the same gateway's round robin, seed by seed."""
    pairs = zip(routed, floor, strict=True)
    return Spread.of([each.cpu_ms_per_request - base.cpu_ms_per_request for each, base in pairs])


def _rows(runs: Runs, names: Sequence[str]) -> list[tuple[Figures, ...]]:
    """Seed by seed, the runs of these subjects."""
    return list(zip(*(runs[name] for name in names), strict=True))


def _over(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    return Spread.of([mine / other for mine, other in zip(ours, theirs, strict=True)])
