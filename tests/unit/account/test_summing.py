"""The metrics of several workers are those of one gateway."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway.account.summing import (
    DEMAND,
    LEAST,
    MOST_LIVES,
    SEEN_ALIKE,
    Sheet,
    folded,
    sheet_of,
    summed,
)

ROOT = Path(__file__).resolve().parents[3]
NOBODY = Sheet([], {})
OF_EACH = {
    "gateway_batch_lines_inflight",
    "gateway_connections_open",
    "gateway_held_requests",
    "gateway_replica_connections_busy",
    "gateway_replica_inflight_prompt_tokens",
    "gateway_replica_inflight_requests",
    "gateway_requests_open",
    "gateway_requests_waiting",
    "gateway_tenant_requests_open",
}
"""Gauges that are right to add up."""


def a_worker(life: str, *, requests: int, inflight: int = 0) -> Sheet:
    """What one shows that has had so many."""
    registry = CollectorRegistry()
    counter = Counter("requests", "All.", ("model",), registry=registry)
    took = Histogram("took_seconds", "Each.", registry=registry, buckets=(1.0, 2.0))
    Gauge("inflight", "Now.", registry=registry).set(inflight)
    Gauge("gateway_replica_state", "Seen alike.", ("state",), registry=registry).labels("up").set(1)
    Gauge("process_open_fds", "Of each, below a limit of each.", registry=registry).set(requests)
    for _ in range(requests):
        counter.labels("m").inc()
        took.observe(1.5)
    return sheet_of(life, registry)


def values(present: list[Sheet], retired: Sheet = NOBODY) -> dict[str, float]:
    """By name and labels."""
    return {
        "".join([sample.name, *sample.labels.values()]): sample.value
        for family in summed(present, retired)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_what_grows_and_what_each_has_adds_up_and_what_all_see_alike_does_not() -> None:
    found = values([a_worker("a", requests=2, inflight=3), a_worker("b", requests=5, inflight=1)])
    assert found == {
        "requests_totalm": 7,
        "took_seconds_bucket1.0": 0,
        "took_seconds_bucket2.0": 7,
        "took_seconds_bucket+Inf": 7,
        "took_seconds_count": 7,
        "took_seconds_sum": 10.5,
        "inflight": 4,
        "gateway_replica_stateup": 1,
        "process_open_fds": 5,
    }


def test_of_a_worker_that_is_gone_what_had_grown_stays() -> None:
    gone = a_worker("a", requests=2, inflight=3)
    found = values([a_worker("b", requests=5, inflight=1)], folded(NOBODY, gone))
    assert (found["requests_totalm"], found["inflight"]) == (7, 1)


def test_nobody_is_counted_twice_while_a_sheet_is_being_folded() -> None:
    gone = a_worker("a", requests=2)
    retired = folded(NOBODY, gone)
    assert values([gone], retired)["requests_totalm"] == 2
    assert folded(retired, gone) is retired


def test_the_retired_are_one_sheet_however_many_they_were() -> None:
    retired = NOBODY
    for number in range(3 * MOST_LIVES):
        retired = folded(retired, a_worker(str(number), requests=1))
    assert values([], retired)["requests_totalm"] == 3 * MOST_LIVES
    assert len(retired.lives) == MOST_LIVES


def test_of_what_is_the_worse_the_less_it_is_the_worker_that_is_worst_off_counts() -> None:
    def expires(life: str, at: float) -> Sheet:
        registry = CollectorRegistry()
        Gauge("gateway_svid_expiry_timestamp_seconds", "When.", registry=registry).set(at)
        return sheet_of(life, registry)

    name = "gateway_svid_expiry_timestamp_seconds"
    assert values([expires("a", 1.8e9), expires("b", 1.7e9)]) == {name: 1.7e9}


def test_of_every_gauge_it_is_known_how_workers_add_up() -> None:
    declared = re.compile(r'GaugeMetricFamily\(\s*"(\w+)"')
    found = {
        name
        for path in (ROOT / "gateway").rglob("*.py")
        for name in declared.findall(path.read_text(encoding="utf-8"))
    }
    known = {name for name in OF_EACH | SEEN_ALIKE | LEAST if name.startswith("gateway_")}
    assert len(found) > 20
    assert {name for name in found if not name.startswith(DEMAND)} == known
