"""What Prometheus reads of traces: whether they arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric


class TraceSource(Protocol):
    """Who exports spans."""

    @property
    def spans(self) -> Mapping[str, int]:
        """How many, by what became of them."""


class TraceCollector(Collector):
    """Reads plain numbers when it is asked."""

    def __init__(self, source: TraceSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """The only family."""
        spans = CounterMetricFamily(
            "gateway_trace_spans",
            "Spans of traces: exported, refused or not taken (failed), or too many (dropped).",
            labels=("result",),
        )
        for result, count in self._source.spans.items():
            spans.add_metric((result,), count)
        yield spans
