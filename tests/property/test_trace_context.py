"""Trace contexts: what we write is what we read, what is not one is nothing, and who is traced."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import example, given
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from opentelemetry.trace.propagation import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.account.trace_context import Parent, bound_of, read_traceparent, traceparent
from gateway.account.tracing import Tracer

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
IDS = st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)


@given(*IDS, st.booleans())
def test_what_is_written_can_be_read(trace_id: int, span_id: int, is_sampled: bool) -> None:
    name, _, value = traceparent(trace_id, span_id, is_sampled=is_sampled).partition(b": ")
    assert name == b"traceparent"
    assert read_traceparent(value.removesuffix(b"\r\n")) == Parent(trace_id, span_id, is_sampled)


HEX = st.text("0123456789abcdefABCDEFgG", min_size=0, max_size=34)
NEARLY = st.tuples(
    st.sampled_from(["00", "01", "cc", "ff", "0", "000"]) | HEX,
    st.sampled_from([TRACE, "0" * 32, TRACE.upper()]) | HEX,
    st.sampled_from([SPAN, "0" * 16]) | HEX,
    st.sampled_from(["00", "01", "03", "ff", "", "1"]) | HEX,
    st.sampled_from(["", "-", "-what-comes", "x"]),
).map(lambda parts: "-".join(parts[:4]) + parts[4])


@given(NEARLY | st.text(max_size=80))
@example(f"00-{TRACE}-{SPAN}-01")
@example(f"00-{TRACE}-{SPAN}-01-more")
@example(f"cc-{TRACE}-{SPAN}-01-more")
@example(f"ff-{TRACE}-{SPAN}-01")
def test_it_is_read_as_opentelemetry_reads_it(value: str) -> None:
    """Theirs takes some things that the recommendation does not: what we take, it takes alike."""
    try:
        ours = read_traceparent(value.encode("latin-1"))
    except UnicodeEncodeError:
        return  # no header holds it
    if ours is None:
        return
    context = TraceContextTextMapPropagator().extract({"traceparent": value})
    theirs = get_current_span(context).get_span_context()
    assert (theirs.trace_id, theirs.span_id) == (ours.trace_id, ours.span_id)
    assert theirs.trace_flags.sampled == ours.is_sampled


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\r\nx: y",
    ],
)
def test_what_is_none(value: str) -> None:
    assert read_traceparent(value.encode()) is None


def test_a_version_to_come_may_say_more() -> None:
    expected = Parent(int(TRACE, 16), int(SPAN, 16), True)
    assert read_traceparent(f"cc-{TRACE}-{SPAN}-01-what-comes".encode()) == expected
    assert read_traceparent(f"cc-{TRACE}-{SPAN}-01".encode()) == expected


class Asked:
    """An exchange, as a tracer sees it."""

    def __init__(self, **fields: str) -> None:
        self.forwarded = b"x-request-id: a\r\n"
        self.fields = {name.encode(): value.encode() for name, value in fields.items()}


@given(st.integers(0, 2**128 - 1), st.sampled_from([0.0, 0.001, 0.25, 0.5, 1.0]))
def test_chance_takes_those_that_opentelemetry_s_sampler_takes(bits: int, ratio: float) -> None:
    asked = Asked()
    trace = Tracer(ratio, lambda count: bits % 2**count).begin(asked)
    low = bits % 2**64 or 1
    sampled = TraceIdRatioBased(ratio).should_sample(None, low, "").decision
    assert (trace is not None) == (sampled is Decision.RECORD_AND_SAMPLE)
    if trace is None:
        assert asked.forwarded.startswith(b"x-request-id: a\r\ntraceparent: 00-")
        assert asked.forwarded.endswith(b"-00\r\n")
    else:
        assert asked.forwarded == b"x-request-id: a\r\n", "what replicas are told is each attempt's"
    assert bound_of(0.0) == 0


@given(*IDS, st.booleans(), st.sampled_from([0.0, 1.0]))
def test_who_comes_with_a_trace_is_traced_as_its_sender_says(
    trace_id: int, span_id: int, is_sampled: bool, ratio: float
) -> None:
    said = traceparent(trace_id, span_id, is_sampled=is_sampled)
    value = said.partition(b": ")[2].strip().decode()
    asked = Asked(traceparent=value, tracestate="a=1,b=2")
    trace = Tracer(ratio, lambda count: 7).begin(asked)
    assert (trace is not None) == is_sampled
    if trace is None:
        assert asked.forwarded == b"x-request-id: a\r\n" + said + b"tracestate: a=1,b=2\r\n"
    else:
        assert trace.trace_id == trace_id
        assert trace.parent == Parent(trace_id, span_id, True)
