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

from gateway.account.cache_metrics import CacheCollector
from gateway.kv_cache import Certainty
from gateway.vocabulary import Health, ReplicaId, ReplicaView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from gateway.account.accounts import Accounts
    from gateway.account.cache_metrics import CacheState
    from gateway.account.meters import Histogram, ModelMeters


class Heard(Protocol):
    """What one replica has told of its KV cache."""

    batches: int
    blocks: int
    gaps: int
    replays: int
    certainty: Certainty


class Allowance(Protocol):
    """What a tenant has had."""

    @property
    def open(self) -> int: ...
    @property
    def admitted(self) -> int: ...
    @property
    def settled(self) -> int: ...
    @property
    def refusals(self) -> Mapping[str, int]: ...


class Member(Protocol):
    """A tenant."""

    @property
    def allowance(self) -> Allowance: ...


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


class Gateway(Protocol):
    """What is read beside the accounts."""

    @property
    def replicas(self) -> Sequence[ReplicaView]: ...
    @property
    def malformed(self) -> int: ...
    @property
    def connections(self) -> int: ...
    @property
    def upstream_busy(self) -> int: ...
    @property
    def shadow(self) -> Shadow | None: ...
    @property
    def heard(self) -> Mapping[ReplicaId, Heard]: ...
    @property
    def members(self) -> Mapping[str, Member]:
        """Tenants, by name."""

    @property
    def tenant_reload_failures(self) -> int: ...
    @property
    def waiting(self) -> Mapping[str, int]: ...

    @property
    def read_first(self) -> Mapping[str, int]: ...

    def caches(self) -> Mapping[ReplicaId, CacheState]: ...


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


_HEARD: Final[tuple[tuple[str, str, Callable[[Heard], int]], ...]] = (
    (
        "gateway_kv_event_batches",
        "Batches of KV-cache events a replica has told.",
        lambda heard: heard.batches,
    ),
    (
        "gateway_kv_event_blocks",
        "Blocks they said were stored.",
        lambda heard: heard.blocks,
    ),
    (
        "gateway_kv_event_gaps",
        "Times that batches were missing.",
        lambda heard: heard.gaps,
    ),
    (
        "gateway_kv_event_replays",
        "Times that it was asked to tell again.",
        lambda heard: heard.replays,
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
        yield from self._kv_events()
        yield from self._tenants()
        yield from self._shadow()

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
            requests.add_metric((replica.id,), replica.inflight_requests)
            tokens.add_metric((replica.id,), replica.inflight_prompt_tokens)
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

    def _kv_events(self) -> Iterator[Metric]:
        heard = self._gateway.heard
        for name, text, count_of in _HEARD:
            counter = CounterMetricFamily(name, text, labels=("replica",))
            for replica, told in heard.items():
                counter.add_metric((replica,), count_of(told))
            yield counter
        state = GaugeMetricFamily(
            "gateway_kv_certainty",
            "1 for how far what a replica tells of its cache can be trusted, 0 for the others.",
            labels=("replica", "certainty"),
        )
        for replica, told in heard.items():
            for each in Certainty:
                state.add_metric((replica, each.value), float(told.certainty is each))
        yield state

    def _tenants(self) -> Iterator[Metric]:
        admitted = CounterMetricFamily(
            "gateway_tenant_requests", "Requests that were within a tenant's limits.",
            labels=("tenant",),
        )  # fmt: skip
        refused = CounterMetricFamily(
            "gateway_tenant_refusals", "Requests that were beyond them, by which.",
            labels=("tenant", "reason"),
        )  # fmt: skip
        used = CounterMetricFamily(
            "gateway_tenant_tokens", "Tokens charged to a tenant, prompt and generated.",
            labels=("tenant",),
        )  # fmt: skip
        served = GaugeMetricFamily(
            "gateway_tenant_requests_open", "Requests not yet ended.", labels=("tenant",)
        )
        for name, member in self._gateway.members.items():
            allowance = member.allowance
            admitted.add_metric((name,), allowance.admitted)
            used.add_metric((name,), allowance.settled)
            served.add_metric((name,), allowance.open)
            for reason, count in allowance.refusals.items():
                refused.add_metric((name, reason), count)
        yield from (admitted, refused, used, served)
        yield CounterMetricFamily(
            "gateway_tenant_reload_failures",
            "New files of tenants that could not be used; the old ones stayed.",
            value=self._gateway.tenant_reload_failures,
        )

    def _shadow(self) -> Iterator[Metric]:
        """Nothing where no policy is in the shadow."""
        shadow = self._gateway.shadow
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


def registry(accounts: Accounts, gateway: Gateway) -> CollectorRegistry:
    """A registry of our own: ours, the process's and the interpreter's families."""
    made = CollectorRegistry(auto_describe=False)
    made.register(GatewayCollector(accounts, gateway))
    made.register(CacheCollector(gateway.caches))
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    return made
