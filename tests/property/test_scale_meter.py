"""Laws of the meter: what it says is what a list of requests says; every request counts once."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.demand import Share
from gateway.request import GenerationRequest, Usage
from gateway.scale.means import LEAST_PAST_S
from gateway.scale.meter import Meter
from gateway.scale.staffing import FAST_S, SLOW_S
from gateway.vocabulary import ROUTES, ModelName, ServiceClass, Tenant
from tests.builders import AnEntry, altered

BATCH = Tenant("night", ServiceClass.BATCH)
RATE = 1000.0


def an_entry(now: float, prompt: int, *, is_batch: bool = False, stream: bool = True) -> AnEntry:
    request = GenerationRequest(
        route=ROUTES[0],
        model=ModelName("m"),
        stream=stream,
        prompt_bytes=0,
        prompt_tokens=prompt,
        max_tokens=1,
    )
    if is_batch:
        request = altered(request, tenant=BATCH)
    return AnEntry(request, now)


def a_meter(now: float = 0.0) -> Meter:
    meter = Meter(lambda _prompt, uncached: float(uncached), now)
    meter.look(RATE, now + 1e-3)
    return meter


class Life(RuleBasedStateMachine):
    """Requests come, are sent, answered, cut off, looked at, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.meter = a_meter()
        self.entries: list[AnEntry] = []

    @rule(
        prompt=st.integers(min_value=0, max_value=10_000),
        is_batch=st.booleans(),
        stream=st.booleans(),
    )
    def arrives(self, prompt: int, is_batch: bool, stream: bool) -> None:
        entry = an_entry(self.now, prompt, is_batch=is_batch, stream=stream)
        self.entries.append(entry)
        self.meter.arrived(entry)

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), held=st.integers(min_value=0, max_value=10_000))
    def is_sent(self, data: st.DataObject, held: int) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        if entry.dispatched_at is None and entry.request is not None:
            entry.dispatched_at = self.now
            entry.uncached = max(entry.request.prompt_tokens - held, 0)

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def first_byte_comes(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        if entry.dispatched_at is not None and entry.first_byte_at is None:
            entry.first_byte_at = entry.last_byte_at = self.now

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), output=st.one_of(st.none(), st.integers(min_value=0, max_value=500)))
    def ends(self, data: st.DataObject, output: int | None) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        self.entries.remove(entry)
        entry.usage = Usage(output_tokens=output)
        if entry.first_byte_at is not None:
            entry.last_byte_at = self.now
        self.meter.left(entry)
        self.meter.left(entry)  # once more does no harm

    @rule(passed_s=st.floats(min_value=0.0, max_value=400.0))
    def is_looked_at(self, passed_s: float) -> None:
        self.now += passed_s
        self.meter.look(RATE, self.now)

    @invariant()
    def says_what_the_list_says(self) -> None:
        share = self.meter.share(self.now, 0.0)
        queued = [each for each in self.entries if each.dispatched_at is None]
        sent = [each for each in self.entries if each.dispatched_at is not None]
        assert share.queued_requests == len(queued)
        assert share.inflight_requests == len(sent)
        assert share.queued_tokens == sum(_prompt(each) for each in queued)
        assert share.inflight_tokens == pytest.approx(sum(_prompt(each) + 1 for each in sent))
        oldest = min([each.received_at for each in queued], default=self.now)
        assert share.oldest_wait_s == self.now - oldest
        assert share.is_awake or not self.entries
        assert share.backlog_s >= 0.0
        assert share.saved >= -1e-9
        assert all(rate >= 0.0 for rate in share.arriving)
        if not self.entries:
            assert share.backlog_s == share.held_tokens == 0


def _prompt(entry: AnEntry) -> int:
    return 0 if entry.request is None else entry.request.prompt_tokens


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(
    st.lists(
        st.tuples(
            st.integers(min_value=1, max_value=10_000),
            st.sampled_from(("seen", "unseen")),
            st.integers(min_value=0, max_value=5),
        ),
        max_size=30,
    )
)
def test_work_is_counted_once_whenever_it_is_seen(came: list[tuple[int, str, int]]) -> None:
    """Over a time much shorter than the means', what they hold is the sum of all that came."""
    meter, now, total = a_meter(), 0.0, 0
    meter.look(RATE, now := now + 1e-3)
    for prompt, how, looks in came:
        entry = an_entry(now, prompt)
        meter.arrived(entry)
        entry.dispatched_at, entry.uncached = now, prompt
        total += prompt
        if how == "seen":
            meter.look(RATE, now := now + 1e-3)
        meter.left(entry)
        for _ in range(looks):
            meter.look(RATE, now := now + 1e-3)
    meter.look(RATE, now + 1e-3)
    fast, slow = meter.share(now, 0.0).arriving
    seen_fast, seen_slow = 1 - exp(-LEAST_PAST_S / FAST_S), 1 - exp(-LEAST_PAST_S / SLOW_S)
    assert fast * FAST_S * seen_fast == pytest.approx(total / RATE, rel=0.05, abs=0.05)
    assert slow * SLOW_S * seen_slow == pytest.approx(total / RATE, rel=0.05, abs=0.05)


def test_a_batch_is_on_the_way_but_is_no_work() -> None:
    meter = a_meter()
    for _ in range(10):
        meter.arrived(an_entry(0.0, 5000, is_batch=True))
    meter.look(RATE, 1.0)
    share = meter.share(1.0, 0.0)
    assert share == Share(
        queued_requests=10,
        queued_tokens=50_000,
        oldest_wait_s=1.0,
        held_tokens=50_010,
        is_awake=True,
    )


def test_what_waits_counts_as_much_as_has_been_uncached_of_late() -> None:
    meter = a_meter()
    for _ in range(400):
        entry = an_entry(0.0, 1000)
        meter.arrived(entry)
        entry.dispatched_at, entry.uncached = 0.0, 250
        meter.left(entry)
    meter.arrived(an_entry(0.0, 1000))
    assert meter.share(0.0, 0.0).backlog_s == pytest.approx(0.25, rel=0.02)


def test_a_steady_stream_is_measured_for_what_it_is() -> None:
    meter, now = a_meter(), 0.0
    for _ in range(2000):
        now += 1.0
        entry = an_entry(now, 1500)
        meter.arrived(entry)
        entry.dispatched_at, entry.uncached = now, 1500
        meter.left(entry)
        meter.look(RATE, now)
    share = meter.share(now, 0.0)
    assert share.arriving == pytest.approx((1.5, 1.5), rel=0.01)
    assert share.lumps == pytest.approx(1.5**2, rel=0.01)


def test_who_wakes_begins_anew() -> None:
    """An hour of nothing says nothing of a crowd that comes now, replicas or none."""
    meter, now = a_meter(), 3600.0
    meter.look(RATE, now)
    for _ in range(15):
        now += 1.0
        for _ in range(4):
            meter.arrived(an_entry(now, 1000))
        meter.look(RATE, now)
    share = meter.share(now, 0.0)
    assert share.backlog_s == pytest.approx(60.0, rel=0.05)
    assert share.arriving == pytest.approx((3.0, 2.5), rel=0.2)
