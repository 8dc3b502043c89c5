"""What Prometheus reads of models at zero: who waits for them, and how long their starts take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from prometheus_client.metrics_core import Metric

    from gateway.vocabulary import ModelName, Seconds


class Held(Protocol):
    """What waits for a model."""

    requests: int


class Starts(Protocol):
    """The cold starts of a model that have been seen to their end."""

    count: int
    sum_s: Seconds


class ColdSource(Protocol):
    """Who holds requests for models at zero."""

    def count(self, model: ModelName) -> Held: ...
    def starts(self, model: ModelName) -> Starts: ...


class ColdCollector(Collector):
    """Reads both when Prometheus asks."""

    def __init__(self, source: ColdSource, models: Callable[[], Collection[ModelName]]) -> None:
        """Of `models`, zeros included."""
        self._source = source
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Every family, those without samples too."""
        held = GaugeMetricFamily(
            "gateway_held_requests",
            "Requests that wait for a model that has no replica.",
            labels=("model",),
        )
        starts = CounterMetricFamily(
            "gateway_cold_starts",
            "Models that came up while somebody waited for them.",
            labels=("model",),
        )
        seconds = CounterMetricFamily(
            "gateway_cold_start_seconds",
            "How long that took, from the first request on.",
            labels=("model",),
        )
        for model in self._models():
            known = self._source.starts(model)
            held.add_metric((model,), self._source.count(model).requests)
            starts.add_metric((model,), known.count)
            seconds.add_metric((model,), known.sum_s)
        yield from (held, starts, seconds)
