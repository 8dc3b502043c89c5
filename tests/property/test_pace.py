"""Clock, rate and tokens in use of one replica, whatever happens in whatever order."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.choose.pace import (
    CUT_S,
    HEARD_S,
    LEAST_RATE_PER_S,
    LEAST_UNSEEN,
    MOST_RATE_PER_S,
    Pace,
    Unseen,
)
from gateway.choose.price import Footprint, Price, work

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "unseen", "unseen", "first", "drop", "end"]),
        st.integers(1, 200_000),
        st.floats(0.0, 30.0),
    ),
    max_size=60,
)


@given(EVENTS, st.booleans(), st.floats(1e-3, 1e9))
@example(
    [
        ("begin", 1, 0.0),
        ("begin", 1, 1.0),  # the first is late, so more is taken to be
        ("unseen", 1, 0.0),
        ("first", 1, 0.0),  # and is not
        ("unseen", 1, 0.0),
        ("begin", 1, 1.0),
    ],
    False,
    1.0,
)
def test_a_pace_is_never_negative_and_rests_when_nothing_is_owed(
    events: list[tuple[str, int, float]], is_pinned: bool, rate_per_s: float
) -> None:
    pace, now = Pace(rate_per_s, is_pinned=is_pinned), 0.0
    began, open_, unary = pace.rate_per_s, list[int](), list[Unseen]()
    for what, tokens, passed_s in events:
        now += passed_s
        if what == "begin":
            pace.begin(tokens, now)
            open_.append(tokens)
        elif what == "unseen":
            unary.append(pace.begin_unseen(tokens, now))
        elif unary and what == "end":
            pace.ended_unseen(unary.pop(tokens % len(unary)))
        elif what == "end":
            continue
        elif open_ and what == "first":
            pace.prefilled(open_.pop(0), now)
        elif open_:
            pace.dropped(open_.pop())
        assert pace.owed == sum(open_)
        pace.busy_s(now)
        assert pace._unseen_tokens(now) == sum(each.tokens for each in unary if each.due > now)
        assert pace.free_at >= now if open_ else pace.wait_s(now) >= 0.0
        assert LEAST_RATE_PER_S <= pace.rate_per_s <= MOST_RATE_PER_S
        assert not is_pinned or pace.rate_per_s == began
    for tokens in open_:
        pace.prefilled(tokens, now)
    assert pace.owed == 0
    # What is left are unary prompts: their clock runs out by itself.
    assert pace.wait_s(now + 60 * 200_000 / LEAST_RATE_PER_S) == 0.0


def test_unary_requests_that_have_ended_are_owed_no_longer_and_not_kept() -> None:
    """However slow the replica is taken to be: nothing of theirs teaches its rate."""
    pace = Pace(100.0)
    open_ = [pace.begin_unseen(30_000, 0.0) for _ in range(8)]
    for number in range(1, 2_000):
        pace.ended_unseen(open_.pop(number % 7))
        open_.append(pace.begin_unseen(30_000, number / 100))
        assert pace._unseen_tokens(number / 100) == 8 * 30_000
        assert len(pace._unseen) <= 2 * 8 + LEAST_UNSEEN + 1
    for each in open_:
        pace.ended_unseen(each)
    assert pace._unseen_tokens(20.0) == 0
    assert pace.wait_s(20.0) == pytest.approx(0.0, abs=1e-6)
    assert not pace._unseen


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9_000)), max_size=40))
def test_unary_work_of_others_ends_when_they_say_so(told: list[tuple[bool, int]]) -> None:
    pace, owed = Pace(1.0 * LEAST_RATE_PER_S, is_pinned=True), 0
    for began, tokens in told:
        if began:
            pace.others_began_unseen(tokens, 0.0)
            owed += tokens
        else:
            pace.others_ended_unseen(tokens)
            owed = max(owed - tokens, 0)
        assert sum(left for left, _ in pace._others_unseen) == owed
        assert pace._unseen_tokens(0.0) >= owed
    pace.others_ended_unseen(owed)
    assert pace._unseen_tokens(0.0) == 0
    assert pace.wait_s(0.0) == pytest.approx(0.0, abs=1e-6)


@given(st.integers(1, 200_000), st.floats(0.0, 60.0), st.floats(1_000.0, 100_000.0))
def test_a_rate_that_is_told_anew_leaves_the_work_that_is_owed_as_it_is(
    tokens: int, passed_s: float, rate_per_s: float
) -> None:
    pace = Pace(8_000.0)
    pace.begin(tokens, 1.0)
    now = 1.0 + passed_s
    pace.busy_s(now)
    owed = pace.wait_s(now) * pace.rate_per_s
    free_at = pace.free_at
    pace.prior(rate_per_s)
    assert pace.wait_s(now) * rate_per_s == pytest.approx(owed)
    assert pace.free_at == free_at or pace.free_at > now


@given(st.integers(1, 200_000), st.floats(0.001, 60.0), st.floats(0.0, 0.9))
def test_who_is_late_is_expected_to_be_late_by_as_much_again(
    tokens: int, late_s: float, looked: float
) -> None:
    pace = Pace(8_000.0)
    pace.begin(tokens, 1.0)
    due = pace.free_at
    pace.busy_s(due + looked * late_s / 2)
    assert pace.wait_s(due + looked * late_s / 2) == pytest.approx(looked * late_s / 2)
    pace.busy_s(due + late_s)
    assert pace.wait_s(due + late_s) == pytest.approx(late_s)
    pace.prefilled(tokens, due + late_s)
    assert pace.wait_s(due + late_s) == 0.0


def test_what_is_owed_no_longer_is_not_late() -> None:
    pace = Pace(8_000.0)
    pace.begin(8_000, 0.0)
    pace.begin_unseen(16_000, 0.0)
    pace.busy_s(10.0)
    assert pace.wait_s(10.0) == pytest.approx(7.0)
    pace.dropped(8_000)
    assert pace.wait_s(10.0) == 0.0


def test_what_was_cut_beside_others_is_learnt_from_though_no_first_byte_follows() -> None:
    pace = Pace(8_000.0)
    pace.others_began(20_000, 0.0)
    pace.begin(20_000, 0.0)
    pace.prefilled(20_000, CUT_S)
    pace.others_read(10_000, CUT_S + HEARD_S / 2)
    pace.busy_s(CUT_S + HEARD_S / 2)
    assert pace.rate_per_s == 8_000.0, "others may still tell of what they had read by then"
    pace.busy_s(CUT_S + 2 * HEARD_S)
    assert pace.rate_per_s == pytest.approx(30_000 / CUT_S, rel=0.1)
    assert pace.wait_s(CUT_S + 2 * HEARD_S) == pytest.approx(10_000 / pace.rate_per_s, rel=0.1)


@given(st.floats(2_000.0, 50_000.0), st.floats(1_000.0, 100_000.0), st.integers(500, 2_500))
def test_whatever_was_believed_a_steady_rate_is_learnt(
    prior: float, rate_per_s: float, least: int
) -> None:
    pace, now = Pace(prior), 0.0
    for tokens in [least, 8 * least, 2 * least, 4 * least] * 60:
        pace.begin(tokens, now)
        now += tokens / rate_per_s
        pace.prefilled(tokens, now)
        now += 0.1
    assert pace.rate_per_s == pytest.approx(rate_per_s, rel=0.1)


@given(st.integers(0, 9_999), st.floats(1_000.0, 20_000.0), st.floats(0.3, 2.0))
def test_prompts_all_alike_that_take_now_less_now_more_teach_the_rate_too(
    seed: int, rate_per_s: float, span_s: float
) -> None:
    """What differs between them is noise, and says nothing of what work costs."""
    pace, now, rng = Pace(8_000.0), 0.0, Random(seed)
    for _ in range(40):
        tokens = round(rate_per_s * span_s * rng.uniform(0.99, 1.01))
        pace.begin(tokens, now)
        now += span_s * rng.uniform(0.7, 1.3)
        pace.prefilled(tokens, now)
        now += 0.1
    assert pace.rate_per_s == pytest.approx(rate_per_s, rel=0.35)


KEYS = st.tuples(st.integers(0, 2), st.sampled_from([0, 512, 2048]), st.integers(1, 900))


@given(st.lists(st.tuples(st.booleans(), KEYS), max_size=60))
def test_what_is_shared_in_use_counts_once(events: list[tuple[bool, tuple[int, int, int]]]) -> None:
    footprint, running = Footprint(), list[tuple[int, int, int]]()
    for begins, key in events:
        if begins or not running:
            footprint.begin(*key)
            running.append(key)
        else:
            footprint.end(*running.pop(len(running) // 2))
        shared = Counter((beginning, hit) for beginning, hit, _ in running)
        assert footprint.tokens == sum(hit for _, hit in shared) + sum(own for *_, own in running)


@given(st.integers(1, 200_000), st.integers(1, 200_000), st.integers(1, 10**6))
def test_more_uncached_is_more_work_and_context_never_makes_less(
    one: int, other: int, attention: int
) -> None:
    prompt = max(one, other)
    less, more = work(prompt, min(one, other), attention), work(prompt, prompt, attention)
    assert 0 < less <= more
    assert less >= min(one, other)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_busier_the_dearer(one: float, other: float) -> None:
    assert (Price().congestion(one) <= Price().congestion(other)) or one > other


def test_what_others_had_read_by_a_cut_counts_before_it_though_it_is_heard_later() -> None:
    """Prompts of a few gateways are read two by two; a quarter of them are ours."""
    rng, pace, now, rate_per_s = Random(1), Pace(), 0.0, 20_000.0

    def a_prompt() -> tuple[bool, int]:
        return rng.random() < 0.25, rng.randrange(1000, 20_000)

    queue = [a_prompt() for _ in range(6)]
    for is_ours, tokens in queue:
        (pace.begin if is_ours else pace.others_began)(tokens, now)
    for _ in range(600):
        read, queue = queue[:2], [*queue[2:], a_prompt(), a_prompt()]
        now += sum(tokens for _, tokens in read) / rate_per_s
        for is_ours, tokens in read:
            if is_ours:
                pace.prefilled(tokens, now)
        for is_ours, tokens in queue[-2:]:
            if is_ours:
                pace.begin(tokens, now)
        heard_at = now + 0.02
        for is_ours, tokens in read:
            if not is_ours:
                pace.others_read(tokens, heard_at)
        for is_ours, tokens in queue[-2:]:
            if not is_ours:
                pace.others_began(tokens, heard_at)
    assert pace.rate_per_s == pytest.approx(rate_per_s, rel=0.04)
    assert pace.owed == sum(tokens for _, tokens in queue)
