"""What Prometheus reads of our SVID, and of handshakes that failed for want of trust."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from gateway.trust.mutual_tls import MutualTls


class Api(Protocol):
    """Who tells us who we are."""

    is_up: bool
    updates: int


class SpiffeCollector(Collector):
    """Reads both when Prometheus asks."""

    def __init__(self, tls: MutualTls, api: Api) -> None:
        self._tls = tls
        self._api = api

    def collect(self) -> Iterator[Metric]:
        """Every family, those without samples too."""
        yield GaugeMetricFamily(
            "gateway_workload_api_up",
            "1 while the SPIFFE Workload API is there.",
            value=float(self._api.is_up),
        )
        yield CounterMetricFamily(
            "gateway_svid_updates",
            "What the Workload API has told: SVIDs and authorities.",
            value=self._api.updates,
        )
        held = self._tls.credentials
        yield GaugeMetricFamily(
            "gateway_svid_expiry_timestamp_seconds",
            "When the SVID that we show to replicas expires.",
            value=0.0 if held is None else held.expires_at,
        )
        refused = CounterMetricFamily(
            "gateway_svid_refused_handshakes",
            "TLS handshakes with replicas that failed for want of trust, by reason.",
            labels=("reason",),
        )
        for reason, count in self._tls.refused.items():
            refused.add_metric((str(reason),), count)
        yield refused
