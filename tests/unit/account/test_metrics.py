"""What Prometheus reads: every family under a good name, and a scrape that parses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from gateway.account.access_log import NoLog
from gateway.account.accounts import Accounts
from gateway.account.metrics import registry
from gateway.choose.audit import Audit
from gateway.choose.dispatch import CacheState, Grade
from gateway.errors import StreamBroken
from gateway.fleet.kv_events import Heard
from gateway.fleet.ledger import Replica
from gateway.kv_cache import Certainty
from gateway.request import Usage
from gateway.tenants.limits import Allowance, Limits
from gateway.tenants.tenancy import Member
from gateway.vocabulary import Health, ModelName, ReplicaId, Tenant
from tests.builders import a_replica, a_request
from tests.conftest import ManualClock

LABELS = {
    "certainty", "class", "grade", "model", "outcome", "prediction", "reason", "replica", "result",
    "route", "side", "state", "tenant", "verdict",
}  # fmt: skip
NAME = re.compile(r"gateway(_[a-z]+)+")


class Sums:
    """What a policy has come to."""

    hit_tokens = 700
    predicted_s = 1.5
    busiest = 3


class Beside:
    """A policy in the shadow of another."""

    decisions = 10
    agreements = 7
    live = Sums()
    shadow = Sums()


class Shown:
    """The rest of a gateway, as the collector reads it."""

    malformed = 4
    connections = 3
    upstream_busy = 2
    merged_calls = 32
    shared_upstream_calls = 4
    tenant_reload_failures = 1
    read_first: ClassVar[dict[str, int]] = {"in_time": 2, "late": 1, "unread": 0}
    waiting: ClassVar[dict[str, int]] = {"interactive": 1, "default": 0, "batch": 7}
    shadow: Beside | None = Beside()
    waiting_fill = 0.25
    held_fill: ClassVar[dict[ModelName, float]] = {ModelName("cold"): 0.5}
    ttft_objective_s = 2.0
    workers = 2

    memory_limit_bytes: int | None = 4 << 30
    peers_heard: int | None = 1

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = replicas
        told = Heard(batches=9, blocks=40, gaps=2, replays=3, certainty=Certainty.PARTIAL)
        self.heard: Mapping[ReplicaId, Heard] = {replica.id: told for replica in replicas}
        self.members = {"acme": Member(Tenant("acme"), Allowance(Limits(), 0.0), None)}
        self.members["acme"].allowance.refusals["rate_limit_exceeded"] += 1

    def caches(self) -> Mapping[ReplicaId, CacheState]:
        audit = Audit()
        audit.predicted.add(64, 32)
        audit.settled.add(32, 32)
        state = CacheState(blocks=7, believed_tokens=100, grade=Grade.EXACT, audit=audit)
        return {replica.id: state for replica in self.replicas}


@pytest.fixture
def accounts(clock: ManualClock) -> Accounts:
    made = Accounts(clock, lambda _: True, NoLog())
    replica = a_replica()
    for stream in (True, False):
        with made.open(b"id", "/v1/chat/completions", clock()) as entry, replica.lease(5) as lease:
            entry.parsed(a_request(stream=stream))
            entry.dispatched(replica.id, lease, clock.advance(0.01))
            entry.first_byte(clock.advance(0.1))
            entry.chunk(clock.advance(0.02))
            entry.answered(200, Usage(10, 5, 4), None)
        made.attempted(replica.id, "ok")
    with made.open(b"id", "/v1/completions", clock()) as entry:
        entry.failed(StreamBroken())
    made.attempted(replica.id, "stream_broken")
    made.retries["connect_failed"] += 1
    made.open(b"id", "/v1/completions", clock())
    return made


@pytest.fixture
def collector(accounts: Accounts) -> CollectorRegistry:
    return registry(accounts, Shown([a_replica(requests=2, prompt_tokens=7)]))


def families(collector: CollectorRegistry) -> list[Metric]:
    """Ours: not the process's and the interpreter's."""
    return [family for family in collector.collect() if family.name.startswith("gateway")]


def test_every_family_is_named_by_the_rules_of_the_house(collector: CollectorRegistry) -> None:
    found = families(collector)
    assert len({family.name for family in found}) == len(found)
    for family in found:
        assert NAME.fullmatch(family.name), family.name
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|count|sum|bucket|info|created|total)$", family.name)
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_tokens", "_bytes"))
        if "time" in family.name or "latency" in family.name or "duration" in family.name:
            assert family.name.endswith("_seconds")
        for sample in family.samples:
            assert set(sample.labels) - {"le"} <= LABELS, sample
            if family.type == "counter":
                assert sample.name == f"{family.name}_total"


def test_every_family_is_there_before_anything_has_happened(clock: ManualClock) -> None:
    empty = registry(Accounts(clock, lambda _: True, NoLog()), Shown([]))
    text = generate_latest(empty).decode()
    for family in families(empty):
        assert f"# TYPE {family.name}" in text


def openmetrics(shown: CollectorRegistry) -> list[Metric]:
    text = generate_openmetrics(shown)  # type: ignore[no-untyped-call]
    return list(parse_openmetrics(text.decode()))  # type: ignore[no-untyped-call]


def test_a_scrape_parses_in_both_formats_and_says_the_same(accounts: Accounts) -> None:
    shown = registry(accounts, Shown([a_replica()]))
    plain = list(text_string_to_metric_families(generate_latest(shown).decode()))
    strict = openmetrics(shown)

    def samples(parsed: list[Metric]) -> set[tuple[str, tuple[tuple[str, str], ...], float]]:
        return {
            (sample.name, tuple(sorted(sample.labels.items())), sample.value)
            for family in parsed
            for sample in family.samples
            if sample.name.startswith("gateway_")
        }

    assert samples(plain) == samples(strict)
    assert len(samples(plain)) > 100


def test_what_was_predicted_is_told_beside_what_was_found(accounts: Accounts) -> None:
    text = generate_latest(registry(accounts, Shown([a_replica()]))).decode()
    name = a_replica().id
    audits = 'gateway_cache_audits_total{prediction="%s",replica="%s",verdict="%s"} %s'
    assert audits % ("chosen", name, "over", "1.0") in text
    assert audits % ("events", name, "exact", "1.0") in text
    errors = 'gateway_cache_audit_error_tokens_total{prediction="chosen",replica="%s"} 32.0'
    assert errors % name in text
    assert f'gateway_cache_grade{{grade="exact",replica="{name}"}} 1.0' in text


def value(collector: CollectorRegistry, name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in collector.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def test_a_policy_in_the_shadow_is_shown_beside_the_live_one(accounts: Accounts) -> None:
    shown = Shown([])
    collector = registry(accounts, shown)
    assert value(collector, "gateway_shadow_decisions_total") == 10
    assert value(collector, "gateway_shadow_agreements_total") == 7
    for side in ("live", "shadow"):
        assert value(collector, "gateway_shadow_hit_tokens_total", side=side) == 700
        assert value(collector, "gateway_shadow_predicted_seconds_total", side=side) == 1.5
        assert value(collector, "gateway_shadow_busiest_inflight_requests", side=side) == 3
    shown.shadow = None
    assert not any("shadow" in family.name for family in collector.collect())


def test_limits_are_shown_beside_what_is_near_them(accounts: Accounts) -> None:
    shown = Shown([])
    collector = registry(accounts, shown)
    assert value(collector, "gateway_waiting_fill_ratio") == 0.25
    assert value(collector, "gateway_held_fill_ratio", model="cold") == 0.5
    assert value(collector, "gateway_ttft_objective_seconds") == 2.0
    assert value(collector, "gateway_memory_limit_bytes") == 4 << 30
    assert value(collector, "gateway_workers") == 2
    assert value(collector, "gateway_peers_heard") == 1
    shown.memory_limit_bytes = shown.peers_heard = None
    for name in ("gateway_memory_limit_bytes", "gateway_peers_heard"):
        (family,) = [each for each in collector.collect() if each.name == name]
        assert not family.samples, "what there is not is no zero"


def test_what_merging_saves_is_shown(collector: CollectorRegistry) -> None:
    assert value(collector, "gateway_merged_calls_total") == 32
    assert value(collector, "gateway_shared_upstream_calls_total") == 4


def test_the_sums_are_the_accounts(collector: CollectorRegistry) -> None:
    assert value(collector, "gateway_requests_received_total") == 4
    assert value(collector, "gateway_requests_open") == 1
    ended = value(collector, "gateway_requests_total", outcome="finished")
    assert ended == 2
    assert value(collector, "gateway_requests_total", reason="stream_broken", model="") == 1
    assert value(collector, "gateway_retries_total", reason="connect_failed") == 1
    assert value(collector, "gateway_attempts_total", result="ok") == 2
    assert value(collector, "gateway_attempts_total", result="stream_broken") == 1
    assert value(collector, "gateway_malformed_requests_total") == 4
    assert value(collector, "gateway_prompt_tokens_total", model="m") == 20
    assert value(collector, "gateway_cached_tokens_total", model="m") == 8
    assert value(collector, "gateway_output_tokens_total", model="m") == 10
    assert value(collector, "gateway_time_to_first_token_seconds_count", model="m") == 1
    assert value(collector, "gateway_inter_token_latency_seconds_count", model="m") == 1
    assert value(collector, "gateway_request_duration_seconds_count", model="m") == 2


def test_what_was_heard_of_caches_is_shown_by_replica(collector: CollectorRegistry) -> None:
    for name, count in (("batches", 9), ("blocks", 40), ("gaps", 2), ("replays", 3)):
        assert value(collector, f"gateway_kv_event_{name}_total", replica="r1:8000") == count
    assert value(collector, "gateway_kv_certainty", certainty="partial") == 1
    assert value(collector, "gateway_kv_certainty", certainty="exact") == 0


def test_the_fleet_is_shown_by_replica_and_state(collector: CollectorRegistry) -> None:
    assert value(collector, "gateway_replica_inflight_requests", replica="r1:8000") == 2
    assert value(collector, "gateway_replica_inflight_prompt_tokens", replica="r1:8000") == 7
    for health in Health:
        is_in_it = value(collector, "gateway_replica_state", state=health.value)
        assert is_in_it == (health is Health.HEALTHY)
