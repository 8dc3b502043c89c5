"""What Prometheus reads of a policy in the shadow: how it would have fared beside the live one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric


class Side(Protocol):
    """What one of two policies has come to."""

    @property
    def hit_tokens(self) -> int: ...
    @property
    def predicted_s(self) -> float: ...
    @property
    def busiest(self) -> int: ...


class Shadow(Protocol):
    """A policy beside the live one."""

    @property
    def decisions(self) -> int: ...
    @property
    def agreements(self) -> int: ...
    @property
    def live(self) -> Side: ...
    @property
    def shadow(self) -> Side: ...


class ShadowSource(Protocol):
    """Who has a policy in the shadow, or none."""

    @property
    def shadow(self) -> Shadow | None: ...


class ShadowCollector(Collector):
    """Reads what both policies have come to when Prometheus asks."""

    def __init__(self, source: ShadowSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Nothing where no policy is in the shadow."""
        shadow = self._source.shadow
        if shadow is None:
            return
        yield CounterMetricFamily(
            "gateway_shadow_decisions",
            "Requests that both policies had a choice for.",
            value=shadow.decisions,
        )
        yield CounterMetricFamily(
            "gateway_shadow_agreements",
            "Of those, the ones that both would have sent to the same replica.",
            value=shadow.agreements,
        )
        hits = CounterMetricFamily(
            "gateway_shadow_hit_tokens",
            "Prompt tokens that each policy's own placements are believed to have cached.",
            labels=("side",),
        )
        predicted = CounterMetricFamily(
            "gateway_shadow_predicted_seconds",
            "Predicted waiting and prefill of each policy's choices.",
            labels=("side",),
        )
        busiest = GaugeMetricFamily(
            "gateway_shadow_busiest_inflight_requests",
            "The most requests in flight at any replica, had each policy had its way.",
            labels=("side",),
        )
        for name, side in (("live", shadow.live), ("shadow", shadow.shadow)):
            hits.add_metric((name,), side.hit_tokens)
            predicted.add_metric((name,), side.predicted_s)
            busiest.add_metric((name,), side.busiest)
        yield from (hits, predicted, busiest)
