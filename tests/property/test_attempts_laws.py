"""The retry budget: over any span, retries <= burst + ratio x requests + trickle x seconds."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ConnectFailed
from gateway.relay.retries import Retries

STEPS = st.lists(
    st.tuples(st.sampled_from(("request", "retry", "retry", "look")), st.floats(0.0, 2.0)),
    max_size=200,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.floats(0.0, 1.0), st.floats(0.0, 20.0), st.data())
def test_over_any_span_retries_stay_within_the_budget(
    steps: list[tuple[str, float]], ratio: float, per_s: float, data: st.DataObject
) -> None:
    attempts = Retries(most=3, ratio=ratio, per_s=per_s)
    now = 50.0
    history = [(now, 0, 0)]  # (instant, requests, retries) so far
    requests = retries = 0
    for kind, after_s in steps:
        now += after_s
        match kind:
            case "request":
                attempts.earn()
                requests += 1
            case "look":
                attempts.may_follow(1, now)
            case _:
                could = attempts.may_follow(1, now)
                allowed = attempts.allows(ConnectFailed(), 1, now)
                assert allowed == could, "asking changes nothing, and tells the truth"
                retries += allowed
        history.append((now, requests, retries))
    burst = max(1.0, 10.0 * per_s)
    spans = [(history[0], history[-1]), *pairwise(history)]
    some = data.draw(st.lists(st.sampled_from(history), min_size=2, max_size=2))
    spans.append((min(some), max(some)))
    for (began, requests_0, retries_0), (ended, requests_1, retries_1) in spans:
        earned = ratio * (requests_1 - requests_0) + per_s * (ended - began)
        assert retries_1 - retries_0 <= burst + earned + 1e-6


@given(st.integers(1, 200), st.floats(0.0, 1.0))
def test_a_storm_in_which_everything_fails_adds_at_most_its_share(
    requests: int, ratio: float
) -> None:
    attempts = Retries(most=3, ratio=ratio, per_s=0.0)
    retries = 0
    for _ in range(requests):
        attempts.earn()
        attempt = 1
        while attempts.allows(ConnectFailed(), attempt, 0.0):
            attempt += 1
            retries += 1
    assert retries <= 1 + ratio * requests + 1e-6
