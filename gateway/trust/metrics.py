"""What Prometheus reads of our SVID, of handshakes without trust, and of the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from gateway.trust.mutual_tls import MutualTls
    from gateway.vocabulary import Seconds


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


class Policy(Protocol):
    """Who is asked what is allowed."""

    decisions: Counter[str]
    asked: int
    asked_s: Seconds


class PolicyCollector(Collector):
    """Reads it when Prometheus asks."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        decisions = CounterMetricFamily(
            "gateway_policy_decisions",
            "Requests by what the policy said of them; undecided ones were refused.",
            labels=("decision",),
        )
        for decision, count in self._policy.decisions.items():
            decisions.add_metric((decision,), count)
        yield decisions
        yield CounterMetricFamily(
            "gateway_policy_questions",
            "How often it was asked: answers that are still good are not asked for.",
            value=self._policy.asked,
        )
        yield CounterMetricFamily(
            "gateway_policy_question_seconds",
            "How long requests have waited for it.",
            value=self._policy.asked_s,
        )
