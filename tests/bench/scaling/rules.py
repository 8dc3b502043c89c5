"""What a deployment can be scaled by, and how each rule's threshold is found.

Every rule has the same autoscaler, wakes and goes to sleep by the same activation (a request is on
the way), and reads its figure fresh, without the delay of a scrape. All but `n_target` have a
threshold that an operator must find, so they are given the search: every threshold is run on one
seed that is not used again. A rule is then compared with the one that was best for each workload by
itself, which nobody could know beforehand: that of fewest replica-hours that attains as much as
`n_target` with its defaults did there, or, where none does, that which attains most. `n_target` is
not searched for.
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

Tried = Mapping[float, tuple[float, float]]
"""By threshold, on one workload: attainment and replica-hours."""


def best(tried: Tried, goal: float) -> float:
    """The threshold that is compared, where `goal` is to be attained."""

    def shortfall_and_hours(target: float) -> tuple[float, float]:
        attained, hours = tried[target]
        return max(goal - MARGIN - attained, 0.0), hours

    return min(tried, key=shortfall_and_hours)
