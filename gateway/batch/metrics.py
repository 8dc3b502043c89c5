"""What Prometheus reads of the room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.batch.nouns import Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from gateway.batch.service import Batches


class BatchCollector(Collector):
    """Reads plain numbers when it is asked; the store is not."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def collect(self) -> Iterator[Metric]:
        """Every family, those without samples too."""
        standing = GaugeMetricFamily(
            "gateway_batches",
            "Batches in the store (all gateways share it), by where they stand.",
            labels=("status",),
        )
        census = self._batches.census
        for status in Status:
            standing.add_metric((status.value,), census.get(status, 0))
        yield standing
        yield CounterMetricFamily(
            "gateway_batch_store_failures",
            "Times that the store of batches could not be read or written.",
            value=self._batches.store_failures,
        )
        lines = CounterMetricFamily(
            "gateway_batch_lines",
            "What became of lines at this gateway: completed and failed are their ends; displaced, "
            "no_room and tried_again were sent once more.",
            labels=("outcome",),
        )
        for outcome, count in self._batches.dispatcher.outcomes.items():
            lines.add_metric((outcome,), count)
        yield lines
        yield GaugeMetricFamily(
            "gateway_batch_lines_inflight",
            "Lines that this gateway has sent and that have not ended.",
            value=self._batches.dispatcher.inflight,
        )
