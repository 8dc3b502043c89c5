"""Our histograms against prometheus-client's own: the same exposition for the same observations."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as Theirs
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.account.meters import LATENCY_BOUNDS_S, STEP_BOUNDS_S, Histogram

VALUES = st.lists(
    st.one_of(st.sampled_from(LATENCY_BOUNDS_S + STEP_BOUNDS_S), st.floats(0, 1000)), max_size=60
)


class Shown(Collector):
    """Our histogram, as the gateway's collector shows it."""

    def __init__(self, ours: Histogram) -> None:
        self._ours = ours

    def collect(self) -> list[Metric]:
        family = HistogramMetricFamily("h_seconds", "text", labels=("model",))
        family.add_metric(("m",), self._ours.cumulative(), self._ours.total)
        return [family]


def lines(registry: CollectorRegistry) -> list[str]:
    text = generate_latest(registry).decode()
    return [
        line for line in text.splitlines() if not line.startswith("#") and "_created" not in line
    ]


@settings(max_examples=100, deadline=None)
@given(VALUES, st.sampled_from((LATENCY_BOUNDS_S, STEP_BOUNDS_S, (1.0,))))
def test_a_scrape_of_our_histogram_is_what_prometheus_client_would_show(
    values: list[float], bounds: tuple[float, ...]
) -> None:
    ours = Histogram(bounds)
    own, reference = CollectorRegistry(), CollectorRegistry()
    own.register(Shown(ours))
    theirs = Theirs("h_seconds", "text", ("model",), registry=reference, buckets=bounds).labels("m")
    for value in values:
        ours.observe(value)
        theirs.observe(value)
    assert lines(own) == lines(reference)


def test_bounds_rise() -> None:
    assert list(LATENCY_BOUNDS_S) == sorted(set(LATENCY_BOUNDS_S))
    assert list(STEP_BOUNDS_S) == sorted(set(STEP_BOUNDS_S))
