"""What Prometheus reads of demand: every figure of every known model, zeros included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from prometheus_client.metrics_core import Metric

    from gateway.demand import Demand, DemandSource
    from gateway.vocabulary import ModelName

_FIGURES: Final[tuple[tuple[str, str, Callable[[Demand], float]], ...]] = (
    (
        "gateway_demand_replicas",
        "Replicas that a model needs now, whatever there is; scale to it with a target of 1.",
        lambda demand: demand.replicas_needed,
    ),
    (
        "gateway_demand_active",
        "1 while requests wait or run, or a replica loads: not to be scaled to zero.",
        lambda demand: float(demand.is_active),
    ),
    (
        "gateway_demand_queued_requests",
        "Requests that wait for a replica or for their turn at one.",
        lambda demand: demand.queued_requests,
    ),
    (
        "gateway_demand_queued_tokens",
        "Their estimated prompt tokens.",
        lambda demand: demand.queued_tokens,
    ),
    (
        "gateway_demand_inflight_requests",
        "Requests sent to replicas that have not ended.",
        lambda demand: demand.inflight_requests,
    ),
    (
        "gateway_demand_inflight_tokens",
        "Their estimated prompt tokens, and those they are expected to generate.",
        lambda demand: demand.inflight_tokens,
    ),
    (
        "gateway_demand_oldest_wait_seconds",
        "How long the one that has waited longest has waited.",
        lambda demand: demand.oldest_wait_s,
    ),
    (
        "gateway_demand_saturation_ratio",
        "Work that arrives or is owed over what ready replicas do: 0 is idle, 1 all they can.",
        lambda demand: demand.saturation,
    ),
    (
        "gateway_demand_replicas_ready",
        "Replicas that take work for a model.",
        lambda demand: demand.replicas_ready,
    ),
    (
        "gateway_demand_replicas_loading",
        "Replicas that are there and do not serve yet.",
        lambda demand: demand.replicas_loading,
    ),
)


class DemandCollector(Collector):
    """Asks for the demand when Prometheus asks."""

    def __init__(self, source: DemandSource, models: Collection[ModelName] | None = None) -> None:
        """Of `models`; None: of every one that is known then."""
        self._source = source
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Every family, those without samples too."""
        models = self._source.models() if self._models is None else self._models
        demands = [self._source.demand(model) for model in models]
        for name, text, figure_of in _FIGURES:
            family = GaugeMetricFamily(name, text, labels=("model",))
            for demand in demands:
                family.add_metric((demand.model,), figure_of(demand))
            yield family
