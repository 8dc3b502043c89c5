"""What Prometheus reads: the sums of the accounts and the state of the fleet, under our names.

A collector reads plain numbers when it is asked; nothing is looked up or locked while requests run.
Names are `gateway_<noun>_<unit>`; labels come from closed sets: routes, models that replicas serve,
replicas, outcomes, reasons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from gateway.account.cache_metrics import CacheCollector, CacheSource
from gateway.account.limit_metrics import LimitCollector, LimitSource
from gateway.account.shadow_metrics import ShadowCollector, ShadowSource
from gateway.account.tenant_metrics import TenantCollector, TenantSource
from gateway.vocabulary import Health, ReplicaView, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from gateway.account.accounts import Accounts
    from gateway.account.meters import Histogram, ModelMeters


class Counted(ReplicaView, Protocol):
    """A replica, with what we ourselves have there."""

    @property
    def own_requests(self) -> int: ...
    @property
    def own_prompt_tokens(self) -> Tokens: ...


class Gateway(TenantSource, CacheSource, ShadowSource, LimitSource, Protocol):
    """What is read beside the accounts."""

    @property
    def replicas(self) -> Sequence[Counted]: ...
    @property
    def malformed(self) -> int: ...
    @property
    def connections(self) -> int: ...
    @property
    def upstream_busy(self) -> int: ...
    @property
    def waiting(self) -> Mapping[str, int]: ...
    @property
    def read_first(self) -> Mapping[str, int]: ...
    @property
    def merged_calls(self) -> int: ...
    @property
    def shared_upstream_calls(self) -> int: ...


_HISTOGRAMS: Final[tuple[tuple[str, str, Callable[[ModelMeters], Histogram]], ...]] = (
    (
        "gateway_queue_time_seconds",
        "From received to first dispatched.",
        lambda meters: meters.queue_s,
    ),
    (
        "gateway_time_to_first_token_seconds",
        "Streams: from received to the first chunk sent on.",
        lambda meters: meters.ttft_s,
    ),
    (
        "gateway_inter_token_latency_seconds",
        "Streams: between successive chunks of a response.",
        lambda meters: meters.inter_token_s,
    ),
    (
        "gateway_time_per_output_token_seconds",
        "Streams: (end-to-end - time to first token) / (output tokens - 1).",
        lambda meters: meters.time_per_output_token_s,
    ),
    (
        "gateway_request_duration_seconds",
        "From received to the last byte sent on.",
        lambda meters: meters.duration_s,
    ),
)

_TOKENS: Final[tuple[tuple[str, str, Callable[[ModelMeters], int]], ...]] = (
    (
        "gateway_prompt_tokens",
        "Prompt tokens, as replicas counted them.",
        lambda meters: meters.prompt_tokens,
    ),
    (
        "gateway_cached_tokens",
        "Prompt tokens that replicas found in their caches.",
        lambda meters: meters.cached_tokens,
    ),
    (
        "gateway_output_tokens",
        "Generated tokens, as replicas counted them.",
        lambda meters: meters.output_tokens,
    ),
)


class GatewayCollector(Collector):
    """Reads the accounts and the fleet when Prometheus asks."""

    def __init__(self, accounts: Accounts, gateway: Gateway) -> None:
        self._accounts = accounts
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        """Every family, those without samples too."""
        yield from self._requests()
        yield from self._models()
        yield from self._replicas()

    def _requests(self) -> Iterator[Metric]:
        accounts = self._accounts
        yield CounterMetricFamily(
            "gateway_requests_received", "Requests received.", value=accounts.received
        )
        yield GaugeMetricFamily(
            "gateway_requests_open", "Requests not yet ended.", value=accounts.open_entries
        )
        ended = CounterMetricFamily(
            "gateway_requests",
            "Requests that ended, by how. Their sum and the open ones are those received.",
            labels=("route", "model", "outcome", "reason"),
        )
        for ending, count in accounts.endings.items():
            ended.add_metric(msgspec.structs.astuple(ending), count)
        yield ended
        yield CounterMetricFamily(
            "gateway_malformed_requests",
            "What clients sent that was refused before it was a request.",
            value=self._gateway.malformed,
        )
        yield GaugeMetricFamily(
            "gateway_connections_open", "Client connections.", value=self._gateway.connections
        )
        waiting = GaugeMetricFamily(
            "gateway_requests_waiting",
            "Requests that wait for their turn, by class.",
            labels=("class",),
        )
        for service_class, count in self._gateway.waiting.items():
            waiting.add_metric((service_class,), count)
        yield waiting
        retries = CounterMetricFamily(
            "gateway_retries", "Retries beyond the first, by what ended the one before.",
            labels=("reason",),
        )  # fmt: skip
        for reason, count in accounts.retries.items():
            retries.add_metric((reason,), count)
        yield retries
        first = CounterMetricFamily(
            "gateway_prompts_read_first",
            "Prompts read as tokens before the choice: in time, too late for it, or in vain.",
            labels=("result",),
        )
        for result, count in self._gateway.read_first.items():
            first.add_metric((result,), count)
        yield first
        yield CounterMetricFamily(
            "gateway_merged_calls",
            "Small calls that were answered out of an upstream call shared with others.",
            value=self._gateway.merged_calls,
        )
        yield CounterMetricFamily(
            "gateway_shared_upstream_calls",
            "Upstream calls that were made for several small ones.",
            value=self._gateway.shared_upstream_calls,
        )

    def _models(self) -> Iterator[Metric]:
        by_model = self._accounts.by_model
        for name, text, histogram_of in _HISTOGRAMS:
            family = HistogramMetricFamily(name, text, labels=("model",))
            for model, meters in by_model.items():
                histogram = histogram_of(meters)
                family.add_metric((model,), histogram.cumulative(), histogram.total)
            yield family
        for name, text, count_of in _TOKENS:
            counter = CounterMetricFamily(name, text, labels=("model",))
            for model, meters in by_model.items():
                counter.add_metric((model,), count_of(meters))
            yield counter

    def _replicas(self) -> Iterator[Metric]:
        requests = GaugeMetricFamily(
            "gateway_replica_inflight_requests",
            "Requests bound for a replica that have not ended: sent, or waiting for their turn.",
            labels=("replica",),
        )
        tokens = GaugeMetricFamily(
            "gateway_replica_inflight_prompt_tokens",
            "Estimated prompt tokens of those whose first byte has not come.",
            labels=("replica",),
        )
        state = GaugeMetricFamily(
            "gateway_replica_state",
            "1 for the state a replica is in, 0 for the others.",
            labels=("replica", "state"),
        )
        for replica in self._gateway.replicas:
            requests.add_metric((replica.id,), replica.own_requests)
            tokens.add_metric((replica.id,), replica.own_prompt_tokens)
            for health in Health:
                state.add_metric((replica.id, health.value), float(replica.health is health))
        attempts = CounterMetricFamily(
            "gateway_attempts",
            "Retries at a replica that ended, by result: ok, or the reason of the failure.",
            labels=("replica", "result"),
        )
        for (replica_id, result), count in self._accounts.attempts.items():
            attempts.add_metric((replica_id, result), count)
        yield from (requests, tokens, state, attempts)
        yield GaugeMetricFamily(
            "gateway_replica_connections_busy",
            "Connections to replicas that carry a request.",
            value=self._gateway.upstream_busy,
        )


def registry(accounts: Accounts, gateway: Gateway) -> CollectorRegistry:
    """A registry of our own: ours, the process's and the interpreter's families."""
    made = CollectorRegistry(auto_describe=False)
    made.register(GatewayCollector(accounts, gateway))
    made.register(CacheCollector(gateway))
    made.register(TenantCollector(gateway))
    made.register(ShadowCollector(gateway))
    made.register(LimitCollector(gateway))
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    return made
