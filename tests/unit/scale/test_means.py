"""Rates over the past, and what a token keeps a replica busy."""

import pytest

from gateway.scale.means import PRIOR_STEP_S, SHARE, Came, DecodeCost, Rate, Speed

SPEED = Speed(prefill_per_s=1000.0, decode_s=0.001)


def came(work: float) -> Came:
    made = Came()
    made.work, made.requests = work, 1
    return made


def test_a_rate_is_reached_at_once_by_who_begins_anew() -> None:
    """And not only after a while, as one would who took the past for nothing."""
    rate = Rate(300.0)
    for _ in range(30):
        rate.add(came(2000.0), 1.0)
    assert rate.busy(SPEED) == pytest.approx(2.0 * 30 / 40, rel=0.02)
    for _ in range(600):
        rate.add(came(2000.0), 1.0)
    assert rate.busy(SPEED) == pytest.approx(2.0, rel=0.01)
    assert rate.per_s() == pytest.approx(1.0, rel=0.01)


def test_it_fades_as_time_passes_however_it_is_cut() -> None:
    at_once, by_steps = Rate(30.0), Rate(30.0)
    for rate in (at_once, by_steps):
        rate.add(came(3000.0), 1.0)
    at_once.add(Came(), 60.0)
    for _ in range(60):
        by_steps.add(Came(), 1.0)
    assert at_once.busy(SPEED) == pytest.approx(by_steps.busy(SPEED))


def test_a_token_costs_a_part_of_the_least_time_seen() -> None:
    cost = DecodeCost()
    assert cost.decode_s == PRIOR_STEP_S / SHARE
    for token_s in (0.05, 0.01, 0.04, 0.04):
        cost.learn(token_s)
    assert cost.decode_s == pytest.approx(0.01 / SHARE, rel=0.02)


def test_the_least_is_forgotten_in_the_end() -> None:
    cost = DecodeCost()
    cost.learn(0.001)
    for _ in range(10_000):
        cost.learn(0.1)
    assert cost.decode_s == pytest.approx(0.1 / SHARE, rel=0.01)
