"""The metrics of several workers as those of one gateway.

    counter, histogram   the sum, the workers that are gone included: it never goes backwards
    gauge                the sum over those that are there, of what each has (requests open, bytes);
                         the largest, of what each sees of the same thing (a replica's state);
                         the least, where that is the one to worry about (an expiry)

A worker shows itself as a `Sheet`. When it is gone its last sheet is folded into the sheet of the
retired, which remembers whose it holds, so that nobody is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import add
from typing import TYPE_CHECKING, Final

import msgspec
from prometheus_client.metrics_core import Metric

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

GROWING: Final = frozenset({"counter", "histogram"})

SEEN_ALIKE: Final = frozenset(
    {
        "gateway_replica_state",
        "gateway_kv_certainty",
        "gateway_batches",
        "gateway_cache_blocks",
        "gateway_cache_grade",
        "gateway_shadow_busiest_inflight_requests",
        "gateway_waiting_fill_ratio",
        "gateway_held_fill_ratio",
        "gateway_ttft_objective_seconds",
        "gateway_memory_limit_bytes",
        "gateway_workers",
        "gateway_peers_heard",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
        "python_info",
    }
)
"""Gauges that are not added up: every worker sees the same, or each has a bound of its own and the
fullest says. So are those of the demand, which each works out for all."""

DEMAND: Final = "gateway_demand_"

LEAST: Final = frozenset({"gateway_svid_expiry_timestamp_seconds", "gateway_workload_api_up"})
"""Gauges of which the worker counts that is worst off."""

MOST_LIVES: Final = 64
"""So many of the last that were folded are remembered: a sheet is read before it is removed."""

Labels = tuple[tuple[str, str], ...]


class Family(msgspec.Struct):
    """A metric, with its samples by name and labels."""

    kind: str
    text: str
    samples: dict[str, list[tuple[Labels, float]]]


class Sheet(msgspec.Struct):
    """All metrics of one life of a worker, or of several."""

    lives: list[str]
    families: dict[str, Family]


def sheet_of(life: str, registry: Collector) -> Sheet:
    """As they are now."""
    families: dict[str, Family] = {}
    for metric in registry.collect():
        family = Family(metric.type, metric.documentation, {})
        for sample in metric.samples:
            labels = tuple(sorted(sample.labels.items()))
            family.samples.setdefault(sample.name, []).append((labels, float(sample.value)))
        families[metric.name] = family
    return Sheet([life], families)


def folded(retired: Sheet, gone: Sheet) -> Sheet:
    """The retired, with one more: what grows of it."""
    if set(gone.lives) <= set(retired.lives):
        return retired
    growing = {name: each for name, each in gone.families.items() if each.kind in GROWING}
    lives = [*retired.lives, *gone.lives][-MOST_LIVES:]
    return Sheet(lives, _added([retired, Sheet(gone.lives, growing)]))


def summed(present: Iterable[Sheet], retired: Sheet) -> Iterator[Metric]:
    """What one gateway says: those that are there, and what those that are gone have left."""
    left = set(retired.lives)
    sheets = [each for each in present if not left.issuperset(each.lives)]
    for name, family in _added([*sheets, retired]).items():
        metric = Metric(name, family.text, family.kind)
        for sample, values in family.samples.items():
            for labels, value in values:
                metric.add_sample(sample, dict(labels), value)
        yield metric


def _how(name: str) -> Callable[[float, float], float]:
    """Two workers' values of a metric make one of the gateway's."""
    if name in SEEN_ALIKE or name.startswith(DEMAND):
        return max
    return min if name in LEAST else add


def _added(sheets: Iterable[Sheet]) -> dict[str, Family]:
    families: dict[str, Family] = {}
    totals: dict[tuple[str, str], dict[Labels, float]] = {}
    for sheet in sheets:
        for name, family in sheet.families.items():
            together = _how(name)
            families.setdefault(name, Family(family.kind, family.text, {}))
            for sample, values in family.samples.items():
                total = totals.setdefault((name, sample), {})
                for labels, value in values:
                    total[labels] = together(total[labels], value) if labels in total else value
    for (name, sample), total in totals.items():
        families[name].samples[sample] = list(total.items())
    return families
