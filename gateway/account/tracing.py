"""The trace of a request: what it went through, step by step, as spans of OpenTelemetry.

    POST /v1/chat/completions        from received to the last byte
      wait for a replica             where its model had none
      choose                         which one, and what was expected of it
      hold                           until it was its turn there
      chat MODEL                     an attempt; what its replica says of it hangs below

One begins only for a request that is sampled: as its sender says where it comes with a trace, else
by chance. Pure: it is told the time, and chance. Nothing of a prompt, an answer or a key is in it.

Attributes are named as OpenTelemetry's conventions for HTTP and generative AI have it; what they
have no name for is `headrace.*`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from gateway.account.trace_context import (
    TRACEPARENT,
    TRACESTATE,
    bound_of,
    read_traceparent,
    traceparent,
)
from gateway.vocabulary import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.account.entry import Entry
    from gateway.account.trace_context import Parent
    from gateway.request import GenerationRequest
    from gateway.vocabulary import Prediction, ReplicaAddress, ReplicaId, Route, Seconds

    Chance = Callable[[int], int]
    """So many random bits."""

Attributes = dict[str, str | int | float | bool]

CHOOSE: Final = "choose"
HOLD: Final = "hold"
WAIT: Final = "wait for a replica"

OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""`gen_ai.operation.name`, where the conventions have one; other routes go by their last part."""

_BROKEN: Final = frozenset({Outcome.FAILED, Outcome.EVICTED})


class Exchange(Protocol):
    """What is asked of one."""

    forwarded: bytes

    @property
    def fields(self) -> Mapping[bytes, bytes]: ...


class Span(msgspec.Struct):
    """A step, and how it ended. Instants are monotonic."""

    name: str
    span_id: int
    began_at: Seconds
    attributes: Attributes
    is_call: bool = False
    """It is a call to a replica."""
    ended_at: Seconds = 0.0
    is_failure: bool = False


class Trace:
    """Of one request. Steps follow one another: as one begins, the last has ended."""

    __slots__ = (
        "_chance", "_fields", "_open", "_state", "parent", "span_id", "steps", "trace_id",
    )  # fmt: skip

    def __init__(
        self, fields: bytes, parent: Parent | None, state: bytes, trace_id: int, chance: Chance
    ) -> None:
        """`fields` are the header lines that replicas are sent beside the context, and `state` is
        the line of the context that is passed on as it came."""
        self._fields = fields
        self._state = state
        self._chance = chance
        self.parent = parent
        self.trace_id = trace_id
        self.span_id = _span_id(chance)
        self.steps: list[Span] = []
        self._open: Span | None = None

    def __repr__(self) -> str:
        return f"<Trace {self.trace_id:032x} of {len(self.steps)} steps>"

    def begin(self, name: str, now: Seconds) -> Span:
        """A step begins."""
        self.end(now)
        span = self._open = Span(name, _span_id(self._chance), now, {})
        self.steps.append(span)
        return span

    def end(self, now: Seconds, error: str = "", *, is_failure: bool = True) -> None:
        """The step that is open, if one is, has ended; `error` says why, where it ended early, and
        that is a failure unless the client would have it so."""
        span = self._open
        if span is not None:
            span.ended_at = now
            if error:
                span.attributes["error.type"] = error
                span.is_failure = is_failure
            self._open = None

    def chose(
        self, replica: ReplicaId, among: int, prediction: Prediction | None, now: Seconds
    ) -> None:
        """One out of so many; None where nothing was foretold. Its turn is waited for."""
        said = self.begin(HOLD, now).attributes
        said["headrace.replica"] = replica
        said = self.steps[-2].attributes
        said["headrace.replica"] = replica
        said["headrace.candidates"] = among
        if prediction is not None:
            for name, value in (
                ("headrace.predicted.hit_tokens", prediction.hit_tokens),
                ("headrace.predicted.wait_seconds", prediction.wait_s),
                ("headrace.predicted.prefill_seconds", prediction.prefill_s),
                ("headrace.cache.grade", prediction.grade),
            ):
                if value is not None:
                    said[name] = value

    def sent(self, request: GenerationRequest, address: ReplicaAddress, now: Seconds) -> bytes:
        """An attempt begins. Returns the header lines for its replica: by them, what that says of
        itself joins this trace."""
        span = self.begin(f"{_operation(request.route)} {request.model}", now)
        span.is_call = True
        host, _, port = address.url.partition("://")[2].rpartition(":")
        span.attributes = {
            **_what_is_asked(request),
            "server.address": host.strip("[]"),
            "server.port": int(port),
            "headrace.replica": address.id,
        }
        line = traceparent(self.trace_id, span.span_id, is_sampled=True)
        return self._fields + line + self._state


class Tracer:
    """Decides who is traced, and lets replicas know."""

    __slots__ = ("_bound", "_chance", "_not_traced")

    def __init__(self, ratio: float, chance: Chance) -> None:
        """`ratio` is the part of those that come without a trace."""
        self._bound = bound_of(ratio)
        self._chance = chance
        self._not_traced = b"traceparent: 00-%016x%%016x-%%016x-00\r\n" % chance(64)

    def begin(self, exchange: Exchange) -> Trace | None:
        """None for one that is not traced: then its replica is told that, and so does not begin a
        trace by itself."""
        fields = exchange.fields
        said = fields.get(TRACEPARENT)
        parent = None if said is None else read_traceparent(said)
        if parent is None or said is None:
            low = _span_id(self._chance)
            if low < self._bound:
                high = self._chance(64)
                return Trace(exchange.forwarded, None, b"", high << 64 | low, self._chance)
            # Most requests come by here: half an id that is drawn once is enough for what nobody
            # writes down.
            exchange.forwarded += self._not_traced % (low, low)
            return None
        state = fields.get(TRACESTATE)
        state = b"" if state is None else b"tracestate: %b\r\n" % state
        if not parent.is_sampled:
            exchange.forwarded += b"traceparent: %b\r\n%b" % (said, state)
            return None
        return Trace(exchange.forwarded, parent, state, parent.trace_id, self._chance)


def spans_of(trace: Trace, entry: Entry, ended_at: Seconds) -> list[Span]:
    """Of an entry that has ended: the request's own, and its steps in their order."""
    is_failure = entry.outcome in _BROKEN or (entry.status or 0) >= 500
    trace.end(ended_at, entry.reason, is_failure=is_failure)
    for span in trace.steps[-1:]:
        if span.is_call:
            span.attributes.update(_what_came(entry, span.began_at))
    name, attributes = f"POST {entry.route}", _what_ended(entry)
    if trace.steps and entry.request is not None:  # else it may be for a model that nobody knows
        attributes |= _what_is_asked(entry.request)
    request = Span(name, trace.span_id, entry.received_at, attributes)
    request.ended_at = ended_at
    request.is_failure = is_failure
    return [request, *trace.steps]


def _what_ended(entry: Entry) -> Attributes:
    said: Attributes = {
        "http.request.method": "POST",
        "http.route": entry.route,
        "headrace.request_id": entry.request_id.decode("ascii", "replace"),
        "headrace.outcome": str(entry.outcome),
        "headrace.attempts": entry.attempts,
    }
    if entry.reason:
        said["error.type"] = entry.reason
    if entry.tenant is not None:
        said["headrace.tenant"] = entry.tenant
    if entry.request is not None:
        said["headrace.class"] = entry.request.tenant.service_class.value
    if entry.replica is not None:
        said["headrace.replica"] = entry.replica
    return said | _what_came(entry, entry.received_at)


def _what_is_asked(request: GenerationRequest) -> Attributes:
    said: Attributes = {
        "gen_ai.operation.name": _operation(request.route),
        "gen_ai.provider.name": "anthropic" if request.route.path == "/v1/messages" else "openai",
        "gen_ai.request.model": request.model,
    }
    if request.stream:
        said["gen_ai.request.stream"] = True
    if request.max_tokens is not None:
        said["gen_ai.request.max_tokens"] = request.max_tokens
    return said


def _what_came(entry: Entry, since: Seconds) -> Attributes:
    usage, first_byte_s = entry.usage, None
    if entry.ttft_s is not None and entry.first_byte_at is not None:  # of a stream
        first_byte_s = entry.first_byte_at - since
    return {
        name: value
        for name, value in (
            ("http.response.status_code", entry.status),
            ("gen_ai.usage.input_tokens", usage.prompt_tokens),
            ("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens),
            ("gen_ai.usage.output_tokens", usage.output_tokens),
            ("gen_ai.response.time_to_first_chunk", first_byte_s),
        )
        if value is not None
    }


def _operation(route: Route) -> str:
    return OPERATIONS.get(route.path) or route.path.rpartition("/")[2]


def _span_id(chance: Chance) -> int:
    return chance(64) or 1
