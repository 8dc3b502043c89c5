"""What a tenant may have: exact sums, buckets that let no more through, and honest waits."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from gateway.errors import QuotaExhausted, RateLimited, TooManyAtOnce
from gateway.tenants.buckets import DAY_S, Bucket
from gateway.tenants.limits import Allowance, Limits, Reservation

# Times are whole 1/16 s and capacities multiples of 60, so that floats hold every level exactly.
TICK = 1 / 16
capacities = st.sampled_from([60, 120, 600, 6000])
limits = st.builds(
    Limits,
    st.none() | capacities,
    st.none() | capacities,
    st.none() | st.integers(1, 20_000),
    st.none() | st.integers(1, 4),
)
tokens = st.integers(0, 8000)


class Model:
    """The same by the book: sums over everything that ever happened, in exact numbers."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.level = Fraction(capacity)
        self.at = Fraction(0)

    def flow(self, now: float) -> None:
        rate = Fraction(self.capacity, 60)
        self.level = min(self.level + (Fraction(now) - self.at) * rate, Fraction(self.capacity))
        self.at = Fraction(now)


def told(allowance: Allowance) -> dict[str, str]:
    """What a response's head says, without the prefix of the names."""
    lines = b"\r\n".join(allowance.lines()).decode().split("\r\n")
    fields = [line.removeprefix("x-ratelimit-").split(": ") for line in lines if line]
    return {each[0]: each[1] for each in fields}


def tried(allowance: Allowance, amount: int, now: float) -> Reservation | float:
    """A reservation, or how long until it may be had."""
    try:
        return allowance.reserve(amount, now, now)
    except (RateLimited, QuotaExhausted, TooManyAtOnce) as refusal:
        return refusal.retry_after_s or 0.0


class Tenant(RuleBasedStateMachine):
    """One tenant's requests come, end and are cancelled in any order; its limits change."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.limits = Limits(600, 6000, 20_000, 4)
        self.allowance = Allowance(self.limits, 0.0)
        self.outstanding: list[Reservation] = []
        self.admitted = 0
        self.settled = 0

    @rule(ticks=st.integers(0, 2000))
    def wait(self, ticks: int) -> None:
        self.now += ticks * TICK

    @rule(amount=tokens)
    def come(self, amount: int) -> None:
        taken = tried(self.allowance, amount, self.now)
        if isinstance(taken, Reservation):
            assert taken.tokens <= amount
            self.outstanding.append(taken)
            self.admitted += 1
        else:
            assert taken > 0

    @precondition(lambda self: self.outstanding)
    @rule(data=st.data(), used=tokens)
    def end(self, data: st.DataObject, used: int) -> None:
        """`used` of nothing is a cancellation before any work."""
        taken = self.outstanding.pop(data.draw(st.integers(0, len(self.outstanding) - 1)))
        self.allowance.settle(taken, used, self.now)
        self.settled += used

    @rule(new=limits)
    def change(self, new: Limits) -> None:
        self.allowance.resize(new, self.now)
        self.limits = new

    @invariant()
    def the_sums_balance(self) -> None:
        it = self.allowance
        promised = sum(each.tokens for each in self.outstanding)
        assert it.reserved + it.overdrawn == it.settled + it.returned + promised
        assert it.settled == self.settled
        assert it.open == len(self.outstanding)
        assert it.admitted == self.admitted

    @invariant()
    def no_bucket_is_more_than_full(self) -> None:
        said = told(self.allowance)
        for name, value in said.items():
            if name.startswith("remaining"):
                assert 0 <= int(value) <= int(said[name.replace("remaining", "limit")])


TestTenant = Tenant.TestCase
TestTenant.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

steps = st.lists(
    st.tuples(st.integers(0, 640), st.integers(1, 700), st.integers(0, 900), st.integers(0, 640)),
    max_size=25,
)


@given(capacities, steps)
def test_a_bucket_is_as_full_as_the_sum_of_all_that_happened(
    capacity: int, steps: list[tuple[int, int, int, int]]
) -> None:
    bucket, model = Bucket("tokens", capacity, 0.0), Model(capacity)
    now = 0.0
    for ticks, asked, used, later in steps:
        now += ticks * TICK
        model.flow(now)
        amount = min(asked, capacity)
        wait_s = bucket.wait_s(amount, now)
        assert (wait_s == 0.0) == (model.level >= amount)
        assert Fraction(bucket.level) == model.level
        if wait_s:
            assert wait_s == pytest.approx(float((amount - model.level) * 60 / capacity))
            continue
        bucket.level -= amount
        model.level -= amount
        now += later * TICK
        model.flow(now)
        bucket.give(amount - used, now)  # if it was more than fits, the next look will see
        model.level = min(model.level + amount - used, Fraction(capacity))
        bucket.wait_s(0, now)
        assert Fraction(bucket.level) == model.level


@given(capacities, st.lists(st.tuples(st.integers(0, 160), st.integers(1, 700)), max_size=40))
def test_no_more_than_a_burst_and_the_rate_gets_through(
    capacity: int, asked: list[tuple[int, int]]
) -> None:
    allowance = Allowance(Limits(tokens_per_minute=capacity), 0.0)
    now, taken = 0.0, [(0.0, 0)]
    for ticks, amount in asked:
        now += ticks * TICK
        try:
            got = allowance.reserve(amount, now, 0.0)
        except RateLimited:
            continue
        allowance.settle(got, got.tokens, now)
        taken.append((now, got.tokens))
    for first in range(len(taken)):
        since = taken[first][0]
        assert (
            sum(amount for _, amount in taken[first:])
            <= capacity + capacity * (now - since) / 60 + 1e-3
        )


@given(limits, st.lists(st.tuples(st.integers(0, 160), tokens, tokens), min_size=1, max_size=30))
def test_who_comes_back_when_told_is_let_in(
    limit: Limits, asked: list[tuple[int, int, int]]
) -> None:
    allowance = Allowance(replace(limit, max_concurrent=None), 0.0)
    now = 0.0
    for ticks, amount, used in asked:
        now += ticks * TICK
        for _ in range(4):  # midnight may come first, and then the minute's limit
            got = tried(allowance, amount, now)
            if isinstance(got, Reservation):
                break
            now += got
        assert isinstance(got, Reservation)
        allowance.settle(got, used, now)


def test_a_refusal_takes_nothing_of_anything() -> None:
    allowance = Allowance(Limits(60, 600, 1000, 1), 0.0)
    first = allowance.reserve(600, 0.0, 0.0)
    before = allowance.lines()
    for error in (QuotaExhausted, RateLimited, TooManyAtOnce):
        amount = {QuotaExhausted: 500, RateLimited: 400, TooManyAtOnce: 0}[error]
        with pytest.raises(error):
            allowance.reserve(amount, 0.0, 0.0)
    assert allowance.lines() == before
    assert dict(allowance.refusals) == {
        "insufficient_quota": 1, "rate_limit_exceeded": 1, "too_many_at_once": 1
    }  # fmt: skip
    allowance.settle(first, 100, 0.0)
    allowance.reserve(500, 0.0, 0.0)


def test_a_day_ends_at_midnight_and_owes_nothing_to_the_day_before() -> None:
    allowance = Allowance(Limits(tokens_per_day=100), 0.0)
    late = allowance.reserve(100, 0.0, DAY_S - 10.0)
    with pytest.raises(QuotaExhausted) as refused:
        allowance.reserve(1, 0.0, DAY_S - 10.0)
    assert refused.value.retry_after_s == 10.0
    next_day = allowance.reserve(60, 0.0, DAY_S + 1.0)
    allowance.settle(late, 0, 0.0)  # of yesterday: gives today nothing
    with pytest.raises(QuotaExhausted):
        allowance.reserve(41, 0.0, DAY_S + 1.0)
    allowance.settle(next_day, 10, 0.0)
    allowance.reserve(90, 0.0, DAY_S + 1.0)


def test_new_limits_do_not_forgive_what_was_used() -> None:
    allowance = Allowance(Limits(tokens_per_minute=600), 0.0)
    allowance.reserve(500, 0.0, 0.0)
    allowance.resize(Limits(tokens_per_minute=1200), 0.0)
    assert told(allowance)["remaining-tokens"] == "700"
    allowance.resize(Limits(tokens_per_minute=60), 0.0)
    assert told(allowance)["remaining-tokens"] == "0"
    with pytest.raises(RateLimited) as refused:
        allowance.reserve(1, 0.0, 0.0)
    assert refused.value.retry_after_s == pytest.approx(441.0)


def test_the_fields_say_limit_rest_and_when_all_is_back() -> None:
    allowance = Allowance(Limits(60, 600), 0.0)
    allowance.reserve(150, 0.0, 0.0)
    assert told(allowance) == {
        "limit-requests": "60",
        "remaining-requests": "59",
        "reset-requests": "1000ms",
        "limit-tokens": "600",
        "remaining-tokens": "450",
        "reset-tokens": "15000ms",
    }
    assert b"\r\n".join(allowance.lines()).count(b"x-ratelimit-") == 6
    assert Allowance(Limits(), 0.0).lines() == ()
