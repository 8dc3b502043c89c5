"""What Prometheus reads of tenants: what was asked for on whose account, and what was refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric


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


class TenantSource(Protocol):
    """Who knows the tenants."""

    @property
    def members(self) -> Mapping[str, Member]:
        """By name; none where there are no keys."""

    @property
    def tenant_reload_failures(self) -> int: ...


class TenantCollector(Collector):
    """Reads tenants' allowances when Prometheus asks."""

    def __init__(self, source: TenantSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Every family, those without samples too."""
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
        for name, member in self._source.members.items():
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
            value=self._source.tenant_reload_failures,
        )
