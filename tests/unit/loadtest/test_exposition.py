"""The few lines that are read of a `/metrics` page."""

from __future__ import annotations

import pytest

from loadtest.exposition import Sums, sums

PAGE = b"""\
# HELP vllm:request_success_total Requests that ended.
# TYPE vllm:request_success_total counter
vllm:request_success_total{finished_reason="stop",model_name="a {b} c"} 3.0
vllm:request_success_total{finished_reason="length",model_name="m"} 4.0 1700000000
vllm:e2e_request_latency_seconds_bucket{le="0.3",model_name="m"} 2.0
vllm:e2e_request_latency_seconds_sum{model_name="m"} 1.5e1
vllm:e2e_request_latency_seconds_count{model_name="m"} 5.0
vllm:request_success_created{model_name="m"} 1.7e9
gateway_requests_received_total 12.0
process_cpu_seconds_total 99.0
"""


def test_samples_are_added_up_over_their_labels_and_nothing_else_is_read() -> None:
    assert sums(PAGE) == {
        "vllm:request_success_total": 7.0,
        "vllm:e2e_request_latency_seconds_sum": 15.0,
        "vllm:e2e_request_latency_seconds_count": 5.0,
        "gateway_requests_received_total": 12.0,
    }


def test_what_is_no_page_holds_nothing() -> None:
    assert sums(b"") == sums(b"<html>") == sums(b"\xff\x00vllm:") == {}


def test_counts_and_means_are_those_between_two_readings() -> None:
    told = Sums(
        {"a_total": 2.0, "h_sum": 1.0, "h_count": 1.0},
        {"a_total": 5.0, "h_sum": 4.0, "h_count": 3.0},
    )
    assert told.count("a_total") == 3.0
    assert told.count("missing") == 0.0
    assert told.mean("h") == pytest.approx(1.5)
    assert told.mean("missing") is None
