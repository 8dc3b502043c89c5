"""How fast a job's client goes, against a model that remembers everything."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

from hypothesis import given
from hypothesis import strategies as st

from serving.jobs.pace import LONGEST_WAIT_S, Window, backoff_s, retry_after_s

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC).timestamp()

STEPS = st.lists(
    st.tuples(st.sampled_from(["start", "answered", "failed", "pushed"]), st.floats(0.0, 3.0)),
    max_size=200,
)


@given(most=st.integers(1, 16), steps=STEPS)
def test_the_window_bounds_what_is_in_flight(most: int, steps: list[tuple[str, float]]) -> None:
    """The model: calls in flight by when they began, until when all wait, when a wave began."""
    window, now = Window(most), 0.0
    flying: list[float] = []
    until = closed_at = float("-inf")
    has_answers = False
    for step, amount in steps:
        now += amount
        before = window.limit
        if step == "start":
            wait = window.wait_s(now)
            assert (wait is None) == (len(flying) >= window.limit)
            assert wait is None or wait == max(until - now, 0.0)
            if wait == 0.0:
                window.start()
                flying.append(now)
        elif flying:
            began = flying.pop(0)
            if step == "answered":
                window.answered()
                has_answers = True
                assert window.limit in (before, min(before + 1, most))
            elif step == "failed":
                window.failed()
                assert window.limit == before
            else:
                until = until if has_answers else max(until, now + amount)
                window.pushed_back(began, now, amount)
                is_first = began >= closed_at
                has_answers = has_answers and not is_first
                assert window.limit == (max(before // 2, 1) if is_first else before)
                closed_at = now if is_first else closed_at
        assert window.in_flight == len(flying)
        assert 1 <= window.limit <= most


@given(most=st.integers(1, 64))
def test_one_wave_of_refusals_closes_the_window_once_and_answers_open_it(most: int) -> None:
    window = Window(most)
    for _ in range(most):
        window.start()
    for _ in range(most):
        window.pushed_back(0.0, 1.0, 2.0)
    assert (window.limit, window.refusals) == (max(most // 2, 1), most)
    assert window.wait_s(2.0) == 1.0
    for _ in range(most * most + 1):
        window.start()
        window.answered()
    assert window.limit == most


@given(field=st.text() | st.integers().map(str) | st.none())
def test_any_retry_after_is_read_or_is_none(field: str | None) -> None:
    found = retry_after_s(field, NOW)
    assert found is None or 0.0 <= found <= LONGEST_WAIT_S


@given(ahead=st.integers(-1000, 1000))
def test_a_retry_after_is_seconds_or_a_date(ahead: int) -> None:
    moment = datetime.fromtimestamp(NOW + ahead, UTC)
    expected = min(max(ahead, 0), LONGEST_WAIT_S)
    assert retry_after_s(format_datetime(moment, usegmt=True), NOW) == expected
    assert retry_after_s(f" {max(ahead, 0)} ", NOW) == expected


@given(failures=st.integers(1, 10_000), chance=st.floats(0.0, 1.0, exclude_max=True))
def test_waits_double_up_to_a_bound_and_are_never_nothing(failures: int, chance: float) -> None:
    wait = backoff_s(failures, chance)
    assert 0.25 <= wait <= 30.0
    assert wait <= backoff_s(failures + 1, chance)
