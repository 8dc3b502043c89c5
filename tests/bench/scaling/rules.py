"""What a deployment can be scaled by, and how each rule's threshold is found.

Every rule has the same autoscaler, wakes and goes to sleep by the same activation (a request is on
the way), and reads its figure fresh, without the delay of a scrape. All but `n_target` have a
threshold that an operator must find, so they are given the search: every threshold is run on one
seed that is not used again. `overall` is one threshold for all workloads, as a deployment has that
does not know what will come; `best` is another one for each workload, which only hindsight gives.
Either is the one of fewest replica-hours that attains as much as `n_target` with its defaults did
there, or, where none does, the one that attains most. `n_target` is not searched for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from tests.bench.scaling.autoscaler import External, Metric, Resource, Signals

OURS: Final = "n_target"
MARGIN: Final = 0.002  # attainments so close are equal

Rule = Callable[[Signals, float], Metric]

RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        OURS: lambda signals, target: External(signals.replicas_needed, target),
        "queue": lambda signals, target: External(signals.queued, target),
        "concurrency": lambda signals, target: External(signals.inflight, target),
        "kv-usage": lambda signals, target: External(signals.cache_usage, target),
        "cpu": lambda signals, target: Resource(signals.busy, target),
    }
)
"""By name. `queue` are requests before their first token, wherever they wait; `concurrency` those
on the way; `kv-usage` the mean part of KV caches in use; `cpu` the mean part of the time in which
an engine has anything to compute."""

TARGETS: Final[Mapping[str, Sequence[float]]] = MappingProxyType(
    {
        OURS: (1.0,),
        "queue": (0.5, 1.0, 2.0),
        "concurrency": (3.0, 5.0, 7.0),
        "kv-usage": (0.03, 0.05, 0.1),
        "cpu": (0.6, 0.8, 0.9, 0.95),
    }
)

Tried = Mapping[float, Mapping[str, tuple[float, float]]]
"""By threshold and workload: attainment and replica-hours."""


def overall(tried: Tried, goal: Mapping[str, float]) -> float:
    """The threshold for all workloads together."""

    def hours(target: float) -> float:
        return sum(hours for _, hours in tried[target].values())

    def shortfall(target: float) -> float:
        found = tried[target]
        return sum(max(goal[name] - MARGIN - found[name][0], 0.0) for name in goal)

    return min(tried, key=lambda target: (shortfall(target), hours(target)))


def best(tried: Tried, goal: Mapping[str, float], workload: str) -> float:
    """The threshold for one of them."""
    return overall(
        {target: {workload: found[workload]} for target, found in tried.items()},
        {workload: goal[workload]},
    )
