"""What one service tells the next of a trace: W3C Trace Context, and who is to be traced.

Asked: whose trace is a request part of, and is it written down? Pure. What cannot be read is as
good as nothing: then a trace of our own begins, as the recommendation has it.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"
SPAN_IDS: Final = 1 << 64

_SAMPLED: Final = 1
_FIELD: Final = re.compile(
    rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[^\r\n]*)?"
)


class Parent(msgspec.Struct, frozen=True):
    """The span that a request was sent from."""

    trace_id: int
    span_id: int
    is_sampled: bool


def read_traceparent(value: bytes) -> Parent | None:
    """None for what is not one. Versions to come may say more, behind what we know."""
    found = _FIELD.fullmatch(value)
    if found is None:
        return None
    version, trace, span, flags, rest = found.groups()
    if version == b"ff" or (version == b"00" and rest is not None):
        return None
    trace_id, span_id = int(trace, 16), int(span, 16)
    if not trace_id or not span_id:
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def traceparent(trace_id: int, span_id: int, *, is_sampled: bool) -> bytes:
    """The header line that says so."""
    return b"traceparent: 00-%032x-%016x-%02x\r\n" % (trace_id, span_id, is_sampled)


def bound_of(ratio: float) -> int:
    """What the last 64 bits of a trace's id must be below, for that part of all traces: whoever
    else samples as OpenTelemetry's TraceIdRatioBased does, by the same ratio, takes the same."""
    return round(ratio * SPAN_IDS)
