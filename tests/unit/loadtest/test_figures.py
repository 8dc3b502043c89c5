"""What samples come to: the window, goodput, figures over time."""

from __future__ import annotations

import pytest

from loadtest.figures import Distribution, by_label, figures_of, over_time, percentile
from loadtest.samples import Objectives, Sample


def a_sample(intended_s: float = 0.0, **changes: object) -> Sample:
    members: dict[str, object] = {
        "label": "chat", "tenant": "", "lag_s": 0.0, "e2e_s": 1.0, "ttft_s": 0.2,
        "last_output_s": 0.9, "gaps_s": [0.3, 0.4], "prompt_tokens": 10, "output_tokens": 8,
    }  # fmt: skip
    return Sample(intended_s=intended_s, **{**members, **changes})  # type: ignore[arg-type]


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([3, 1, 2, 4], 0.5) == 2
    assert percentile([1, 2, 3, 4], 0.51) == 3
    assert percentile([5], 0.99) == 5
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_latencies_go_by_when_requests_were_intended_and_throughput_by_when_they_ended() -> None:
    early, late = a_sample(0.9, e2e_s=0.5), a_sample(2.5, e2e_s=9.0, ttft_s=7.0)
    figures = figures_of([early, a_sample(1.5), late], Objectives(), 1.0, 3.0)
    assert figures.requests == 2
    assert figures.offered_per_s == 1.0
    assert figures.finished_per_s == 1.0  # the early one and the one in the middle
    assert figures.output_tokens_per_s == 8.0
    assert figures.ttft_s is not None
    assert (figures.ttft_s.count, figures.ttft_s.most) == (2, 7.0)


def test_goodput_wants_every_objective_met_and_a_whole_reply() -> None:
    samples = [
        a_sample(),
        a_sample(ttft_s=0.6),
        a_sample(last_output_s=2.0),
        a_sample(gaps_s=[0.1, 0.6]),
        a_sample(e2e_s=4.0),
        a_sample(error="reset"),
        a_sample(ttft_s=None, last_output_s=None, gaps_s=[], output_tokens=None),  # no stream
    ]
    objectives = Objectives(ttft_s=0.5, tpot_s=0.2, longest_gap_s=0.5, e2e_s=3.0)
    assert [objectives.met_by(each) for each in samples] == [True, *[False] * 5, True]
    figures = figures_of(samples, objectives, 0.0, 2.0)
    assert figures.goodput_per_s == 1.0
    assert figures.good_share == pytest.approx(2 / 7)
    assert figures.errors == {"reset": 1}
    assert figures.failed == 1


def test_failed_requests_are_in_no_latency() -> None:
    figures = figures_of([a_sample(error="timeout", e2e_s=600.0)], Objectives(), 0.0, 1.0)
    assert figures.ttft_s is None
    assert figures.e2e_s is None
    assert figures.prompt_tokens == 0


def test_hits_are_none_where_the_endpoint_does_not_say() -> None:
    assert figures_of([a_sample()], Objectives(), 0, 1).hit_ratio is None
    told = figures_of([a_sample(cached_tokens=5), a_sample(cached_tokens=0)], Objectives(), 0, 1)
    assert told.hit_ratio == 0.25


def test_over_time_each_thing_stands_where_it_happened() -> None:
    sample = a_sample(0.5, ttft_s=0.2, gaps_s=[0.1, 1.0], last_output_s=1.3, e2e_s=1.5)
    first, second, third = over_time([sample], Objectives(), 3.0, 1.0)
    assert (first.offered_per_s, first.finished_per_s, first.goodput_per_s) == (1, 0, 1)
    assert first.ttft_p50_s == 0.2
    assert first.itl_p50_s == pytest.approx(0.1)
    assert (second.ttft_p50_s, second.itl_p50_s) == (None, 1.0)
    assert (third.finished_per_s, third.output_tokens_per_s) == (1, 8)


def test_kinds_are_told_apart_by_tenant_and_label() -> None:
    samples = [a_sample(), a_sample(tenant="acme"), a_sample(label="rag"), a_sample()]
    assert {name: len(own) for name, own in by_label(samples).items()} == {
        "acme: chat": 1,
        "chat": 2,
        "rag": 1,
    }


def test_a_distribution_of_nothing_is_none() -> None:
    assert Distribution.of([]) is None
    one = Distribution.of([2.0])
    assert one is not None
    assert (one.count, one.mean, one.p50, one.p99, one.most) == (1, 2.0, 2.0, 2.0, 2.0)
