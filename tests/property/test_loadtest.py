"""Laws of the load tests' pure parts, against plain models of them."""

from __future__ import annotations

import contextlib
import json
import math
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.arrivals import Bursts, OpenLoop, OwnTimes, Poisson, Ramp
from loadtest.deltas import Events, read_completion, read_response
from loadtest.figures import Distribution, percentile
from loadtest.samples import Marks, sample_of
from loadtest.search import Search
from loadtest.traces import TraceError, read_trace
from loadtest.workloads import (
    Agents,
    Embeddings,
    LongContext,
    MultiTurn,
    Rag,
    Session,
    SharedPrefix,
    Step,
    Tenants,
    TenantShare,
    Workload,
)

rates = st.floats(0.1, 200)
loops = st.one_of(
    st.builds(Poisson, rates),
    st.builds(Bursts, rates, st.floats(0, 5)),
    st.builds(Ramp, rates, rates),
    st.builds(Ramp, st.just(0.0), rates),
)


@given(loops, st.integers(), st.floats(0.5, 20))
def test_arrivals_ascend_within_the_run_and_are_the_seeds(
    loop: OpenLoop, seed: int, duration_s: float
) -> None:
    instants = list(loop.instants(seed, duration_s))
    assert instants == list(loop.instants(seed, duration_s))
    assert all(0 <= at_s <= duration_s for at_s in instants)
    assert all(before <= after for before, after in pairwise(instants))


@pytest.mark.parametrize("loop", [Poisson(50), Bursts(50, 2.0), Bursts(50, 0.0), Ramp(0, 100)])
def test_arrivals_keep_their_mean_rate_and_their_burstiness(loop: OpenLoop) -> None:
    instants = list(loop.instants(3, 400.0))
    assert len(instants) == pytest.approx(50 * 400, rel=0.03)
    if isinstance(loop, Ramp):
        assert sum(at_s < 200 for at_s in instants) == pytest.approx(50 * 400 / 4, rel=0.05)
        return
    gaps_s = [after - before for before, after in pairwise(instants)]
    mean_s = math.fsum(gaps_s) / len(gaps_s)
    spread = math.sqrt(math.fsum((gap - mean_s) ** 2 for gap in gaps_s) / len(gaps_s))
    expected = loop.burstiness if isinstance(loop, Bursts) else 1.0
    assert spread / mean_s == pytest.approx(expected, abs=0.1)


@given(loops, rates)
def test_another_rate_is_another_mean_and_nothing_else(loop: OpenLoop, rate: float) -> None:
    moved = loop.at_rate(rate)
    assert moved.rate_per_s == pytest.approx(rate)
    assert moved.at_rate(loop.rate_per_s) == loop or isinstance(loop, Ramp)


@given(st.lists(st.floats(0, 100), min_size=1).map(sorted), st.floats(0.1, 10), st.floats(1, 50))
def test_own_times_keep_their_distances(
    times_s: list[float], speed: float, duration_s: float
) -> None:
    expected = [(at_s - times_s[0]) / speed for at_s in times_s]
    found = list(OwnTimes(speed).replay(times_s, duration_s))
    assert found == [at_s for at_s in expected if at_s < duration_s]


singles = st.sampled_from(
    [SharedPrefix(), SharedPrefix(route="responses"), SharedPrefix(route="completions"),
     MultiTurn(), LongContext(), Agents(), Rag(), Embeddings()]
)  # fmt: skip
shares = st.builds(TenantShare, st.text(max_size=4), st.floats(0.1, 1), singles)
workloads = singles | st.lists(shares, min_size=1, max_size=3).map(Tenants)


def played(session: Session) -> list[Step]:
    """All steps of a session whose every call is answered `ok N`."""
    steps = [next(session)]
    try:
        while len(steps) < 50:
            steps.append(session.send([f"ok {each}" for each in range(len(steps[-1].calls))]))
    except StopIteration:
        pass
    return steps


@given(workloads, st.integers(), st.integers(0, 10**6))
def test_sessions_are_their_numbers_and_end(workload: Workload, seed: int, number: int) -> None:
    steps = played(workload.session(seed, number))  # type: ignore[union-attr]
    assert steps == played(workload.session(seed, number))  # type: ignore[union-attr]
    assert 0 < len(steps) < 50
    assert steps[0].think_s == 0
    for step in steps:
        assert step.calls
        assert step.think_s >= 0
        json.dumps([call.body for call in step.calls])


@given(st.integers(), st.integers(0, 1000))
def test_each_turn_repeats_all_before_it(seed: int, number: int) -> None:
    steps = played(MultiTurn().session(seed, number))
    turns = [step.calls[0].body["messages"] for step in steps]
    for before, after in pairwise(turns):
        assert after[: len(before)] == before
        assert after[len(before)] == {"role": "assistant", "content": "ok 0"}
    siblings = played(Agents().session(seed, number))[0].calls
    contexts = [call.body["messages"][:-1] for call in siblings]
    assert all(each == contexts[0] for each in contexts)


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20)),
    st.data(),
)
def test_events_are_found_wherever_the_bytes_were_cut(
    texts: list[str], data: st.DataObject
) -> None:
    wanted = [text.strip().encode() for text in texts]
    end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    stream = b"".join(b"data: " + each + end + end for each in wanted)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    events = Events()
    found = []
    for begin, stop in pairwise([0, *cuts, len(stream)]):
        found += events.feed(stream[begin:stop])
    assert found == [each.strip() for each in wanted]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "usage", "error", "type", "tool_calls"]
            ),
            inner,
            max_size=4,
        )
    ),
)


@given(anything.map(lambda each: json.dumps(each).encode()) | st.binary(max_size=40))
def test_readers_take_anything(data: bytes) -> None:
    for read in (read_completion, read_response):
        read(data)


@given(st.lists(st.text(max_size=60), max_size=4) | st.lists(anything.map(json.dumps), max_size=4))
def test_what_is_no_trace_is_refused_and_nothing_else_happens(lines: list[str]) -> None:
    with contextlib.suppress(TraceError):
        assert read_trace(lines)


@given(st.lists(st.floats(0, 10), max_size=30).map(sorted), st.integers(1, 50))
def test_a_samples_figures_add_up(outputs_s: list[float], tokens: int) -> None:
    marks = Marks(0.0)
    marks.outputs_s = outputs_s
    marks.ended_s = 11.0
    sample = sample_of(marks, "x")
    if not outputs_s:
        assert sample.ttft_s is sample.tpot_s is sample.output_tokens is None
        return
    assert sample.ttft_s == outputs_s[0]
    assert sample.last_output_s == outputs_s[-1]
    assert sample.ttft_s + math.fsum(sample.gaps_s) == pytest.approx(outputs_s[-1])
    assert sample.gap_ends_s() == pytest.approx(outputs_s[1:])
    if len(outputs_s) > 1:
        assert sample.tpot_s == pytest.approx(math.fsum(sample.gaps_s) / (len(outputs_s) - 1))


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentiles_leave_as_many_below_as_they_say(values: list[float]) -> None:
    found = Distribution.of(values)
    assert found is not None
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        assert value == percentile(values, share)
        assert sum(each <= value for each in values) >= share * len(values) - 1e-9
        assert sum(each < value for each in values) < share * len(values)


@given(st.floats(0.01, 1e4), st.floats(0.01, 1e4), st.floats(0.01, 0.5))
def test_a_search_ends_in_a_narrow_bracket_around_the_edge(
    first: float, edge: float, precision: float
) -> None:
    search = Search(first, precision=precision, most_tries=60)
    while (rate := search.next_rate()) is not None:
        search.tell(rate, rate <= edge)
    assert search.highest_met is not None
    assert search.lowest_missed is not None
    assert search.highest_met <= edge < search.lowest_missed
    assert search.lowest_missed <= search.highest_met * (1 + precision)


def test_a_search_gives_up_where_nothing_is_met() -> None:
    for search in (Search(8.0, most_tries=5), Search(8.0, least_per_s=0.5)):
        tried = []
        for rate in islice(iter(search.next_rate, None), 20):
            tried.append(rate)
            search.tell(rate, False)
        assert tried == [8, 4, 2, 1, 0.5]
        assert search.highest_met is None
