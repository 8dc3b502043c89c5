"""The trace of a request: whatever it goes through, its steps follow one another and all end."""

from __future__ import annotations

import itertools
from random import Random

import hypothesis.strategies as st
from hypothesis import given

from gateway.account.access_log import NoLog
from gateway.account.accounts import Accounts
from gateway.account.entry import Entry
from gateway.account.tracing import CHOOSE, HOLD, WAIT, Span, Trace, Tracer, spans_of
from gateway.errors import ClientGone, ConnectFailed, GatewayError, WaitedTooLong
from gateway.request import Usage
from gateway.vocabulary import Prediction, ReplicaAddress
from tests.builders import a_request
from tests.conftest import ManualClock

ADDRESSES = [ReplicaAddress("http://a:8000"), ReplicaAddress("https://[::1]:8443")]
ENDS: list[GatewayError | None] = [None, ClientGone(), ConnectFailed(), WaitedTooLong()]
STEPS = st.lists(st.sampled_from(["wait", "choose", "choose alone", "sent", "failed"]), max_size=12)


class Asked:
    """An exchange, as a tracer sees it."""

    def __init__(self) -> None:
        self.forwarded = b"x-request-id: a\r\n"
        self.fields: dict[bytes, bytes] = {}


class Life:
    """A traced request, step by step, and beside it a list of what must come out."""

    def __init__(self, seed: int) -> None:
        rng = Random(seed)
        self.rng = rng
        self.clock = ManualClock()
        accounts = Accounts(self.clock, lambda _: True, NoLog())
        self.entry: Entry = accounts.open(b"id", "/v1/chat/completions", self.clock())
        self.request = a_request(stream=True)
        self.entry.parsed(self.request)
        trace = Tracer(1.0, rng.getrandbits).begin(Asked())
        assert trace is not None
        self.trace: Trace = trace
        self.contexts: list[bytes] = []
        self.expected: list[tuple[str, float, str]] = []  # name, beginning, error

    def step(self, name: str) -> None:
        now = self.clock.advance(self.rng.choice([0.0, 0.001, 1.0]))
        address = self.rng.choice(ADDRESSES)
        match name:
            case "wait":
                self.trace.begin(WAIT, now)
                self.expected.append((WAIT, now, ""))
            case "choose" | "choose alone":
                self.trace.begin(CHOOSE, now)
                later = self.clock.advance(0.001)
                foretold = Prediction(address.id, 1.0, hit_tokens=3, grade="exact")
                prediction = foretold if name == "choose" else None
                self.trace.chose(address.id, 2, prediction, later)
                self.expected += [(CHOOSE, now, ""), (HOLD, later, "")]
            case "sent":
                self.contexts.append(self.trace.sent(self.request, address, now))
                self.expected.append(("chat m", now, ""))
            case _:
                is_open = bool(self.trace.steps) and not self.trace.steps[-1].ended_at
                self.trace.end(now, "connect_failed")
                if is_open:
                    self.expected[-1] = (*self.expected[-1][:2], "connect_failed")


def steps_of(spans: list[Span]) -> list[tuple[str, float, str]]:
    return [
        (each.name, each.began_at, str(each.attributes.get("error.type", ""))) for each in spans
    ]


@given(STEPS, st.integers(0, 2**32), st.sampled_from(ENDS))
def test_steps_follow_one_another_within_the_request(
    steps: list[str], seed: int, end: GatewayError | None
) -> None:
    life = Life(seed)
    life.clock.advance(1.0)
    for step in steps:
        life.step(step)
    is_open = bool(life.trace.steps) and not life.trace.steps[-1].ended_at
    if end is None:
        life.entry.answered(200, Usage(9, 4, 3), None)
    else:
        life.entry.failed(end)
    ended_at = life.clock.advance(1.0)
    request, *below = spans_of(life.trace, life.entry, ended_at)

    assert (request.began_at, request.ended_at) == (life.entry.received_at, ended_at)
    is_failure = end is not None and not isinstance(end, ClientGone)
    assert request.is_failure == is_failure
    assert ("gen_ai.request.model" in request.attributes) == bool(steps_of(below))
    assert request.attributes.get("error.type") == (None if end is None else end.reason)
    if is_open and end is not None:
        life.expected[-1] = (*life.expected[-1][:2], end.reason)
    assert steps_of(below) == life.expected
    if is_open and below:
        assert below[-1].is_failure == is_failure
    for span, following in itertools.pairwise(below):
        assert request.began_at <= span.began_at <= span.ended_at <= following.began_at
    assert all(span.began_at <= span.ended_at <= ended_at for span in below)
    ids = [life.trace.trace_id, *(span.span_id for span in (request, *below))]
    assert len(set(ids)) == len(ids)
    assert all(ids)
    calls: list[Span] = [span for span in below if span.is_call]
    assert life.contexts == [
        b"x-request-id: a\r\ntraceparent: 00-%032x-%016x-01\r\n"
        % (life.trace.trace_id, span.span_id)
        for span in calls
    ]
    for span in calls:
        where = (span.attributes["server.address"], span.attributes["server.port"])
        assert where in (("a", 8000), ("::1", 8443))
