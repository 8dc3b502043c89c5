"""What Prometheus reads of limits: how near we are to them. Alerts compare, so both sides are here.

A ratio is of the fullest bound: 1 is full. What a bound is, the settings say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from gateway.vocabulary import ModelName, Seconds


class LimitSource(Protocol):
    """Who knows how much there may be, and how much there is."""

    @property
    def waiting_fill(self) -> float: ...
    @property
    def held_fill(self) -> Mapping[ModelName, float]: ...
    @property
    def ttft_objective_s(self) -> Seconds: ...
    @property
    def memory_limit_bytes(self) -> int | None:
        """None: there is none, or it is not known."""

    @property
    def workers(self) -> int: ...
    @property
    def peers_heard(self) -> int | None:
        """None: there are no peers to be heard."""


class LimitCollector(Collector):
    """Reads them when Prometheus asks."""

    def __init__(self, source: LimitSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Every family, those without samples too."""
        source = self._source
        yield GaugeMetricFamily(
            "gateway_waiting_fill_ratio",
            "Of what may wait for its turn, the part that does: requests, tokens or bytes.",
            value=source.waiting_fill,
        )
        held = GaugeMetricFamily(
            "gateway_held_fill_ratio",
            "The same of what may wait for a model that has no replica.",
            labels=("model",),
        )
        for model, fill in source.held_fill.items():
            held.add_metric((model,), fill)
        yield held
        yield GaugeMetricFamily(
            "gateway_ttft_objective_seconds",
            "The time to first token that is aimed at.",
            value=source.ttft_objective_s,
        )
        memory = GaugeMetricFamily(
            "gateway_memory_limit_bytes",
            "What the container may use, by its control group; no sample where nothing is set.",
        )
        limit, heard = source.memory_limit_bytes, source.peers_heard
        if limit is not None:
            memory.add_metric((), limit)
        yield memory
        yield GaugeMetricFamily(
            "gateway_workers", "Processes that this gateway is to have.", value=source.workers
        )
        peers = GaugeMetricFamily(
            "gateway_peers_heard",
            "Other gateways and workers that are heard now; no sample where there are to be none.",
        )
        if heard is not None:
            peers.add_metric((), heard)
        yield peers
