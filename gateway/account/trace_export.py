"""Traces leave: by OTLP over HTTP, from a thread of their own.

A span costs a request little more than its making: it is handed over in batches, and if whoever
collects them stalls, fails or is gone, spans are dropped and counted, and requests go on. Beyond a
bound none waits. What the thread does is paid for in the loop's time, for they share an
interpreter: it works in small pieces, a fifth of the time at most, and what that is not enough for
is dropped. What else OpenTelemetry's variables say of the exporter (headers, certificates,
compression, attributes of the resource) holds; its tracer, context and samplers are not used.

Loaded only where traces are on: it needs headrace[otel].
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from time import thread_time
from typing import TYPE_CHECKING, Final

import msgspec
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

import gateway
from gateway.account.tracing import Span, Trace, spans_of
from gateway.clock import wall

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.account.entry import Entry
    from gateway.settings import TraceSettings
    from gateway.vocabulary import Seconds

MOST_WAITING: Final = 20_000  # spans: some 20 MB
MOST_AT_ONCE: Final = 64  # spans, about, in one export: 3 ms of this thread's time
REST: Final = 4.0
"""So many times as long as an export has kept the interpreter, requests have it to themselves."""
CLOSE_WITHIN_S: Final = 2.0
SCOPE: Final = InstrumentationScope("headrace", gateway.__version__)

_log = logging.getLogger("headrace")


class Written(msgspec.Struct, frozen=True):
    """The trace of an entry that has ended. `epoch`: the wall's time less the monotonic one."""

    trace: Trace
    spans: list[Span]
    epoch: float


class Traces:
    """Owns the batch, the thread and the exporter. A scribe, as the access log is one."""

    def __init__(self, settings: TraceSettings) -> None:
        self._exporter = OTLPSpanExporter(settings.endpoint, timeout=settings.timeout_s)
        self._resource = Resource.create({"service.name": settings.service})
        self._batch: list[Written] = []
        self._queue: queue.SimpleQueue[list[Written] | None] = queue.SimpleQueue()
        self._handed_over = 0  # spans
        self._done_with = 0  # by the thread
        self._is_closing = threading.Event()
        self._is_over = False
        self.spans = Counter(exported=0, failed=0, dropped=0)
        self._thread = threading.Thread(target=self._drain, name="traces", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Traces {self._handed_over - self._done_with} waiting, {dict(self.spans)}>"

    def write(self, entry: Entry, ended_at: Seconds) -> None:
        """Take down one closed entry, if it is traced. Some microseconds; never blocks."""
        trace = entry.trace
        if trace is not None:
            spans = spans_of(trace, entry, ended_at)
            self._batch.append(Written(trace, spans, wall() - ended_at))

    def flush(self) -> None:
        """Hand over what has gathered. Called by a background loop, a few times a second."""
        batch = self._batch
        if not batch:
            return
        self._batch = []
        count = sum(len(written.spans) for written in batch)
        if self._handed_over - self._done_with > MOST_WAITING:
            self.spans["dropped"] += count
            return
        self._handed_over += count
        self._queue.put(batch)

    def close(self) -> None:
        """Export what is left; waits for that, but not for long."""
        self.flush()
        self._is_closing.set()
        self._queue.put(None)
        self._thread.join(CLOSE_WITHIN_S)
        self._is_over = True
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # ends its trying again, too

    # The thread

    def _drain(self) -> None:
        while (batch := self._queue.get()) is not None:
            group: list[Written] = []
            for written in batch:
                group.append(written)
                if sum(len(each.spans) for each in group) >= MOST_AT_ONCE:
                    self._export(group)
                    group = []
            if group:
                self._export(group)
            if self._is_over:
                return

    def _export(self, group: Sequence[Written]) -> None:
        began_at = thread_time()
        spans = [span for written in group for span in self._readable(written)]
        try:
            result = self._exporter.export(spans)
        except Exception:
            _log.exception("traces could not be exported")
            result = SpanExportResult.FAILURE
        self.spans["exported" if result is SpanExportResult.SUCCESS else "failed"] += len(spans)
        self._done_with += len(spans)
        self._is_closing.wait((thread_time() - began_at) * REST)

    def _readable(self, written: Written) -> Iterator[ReadableSpan]:
        trace, epoch = written.trace, written.epoch
        parent = trace.parent
        above = None if parent is None else _context(trace.trace_id, parent.span_id, remote=True)
        ours = _context(trace.trace_id, trace.span_id)
        for span in written.spans:
            is_root = span.span_id == trace.span_id
            yield ReadableSpan(
                span.name,
                ours if is_root else _context(trace.trace_id, span.span_id),
                above if is_root else ours,
                self._resource,
                span.attributes,
                kind=_kind(span, is_root=is_root),
                status=Status(StatusCode.ERROR if span.is_failure else StatusCode.UNSET),
                start_time=round((epoch + span.began_at) * 1e9),
                end_time=round((epoch + span.ended_at) * 1e9),
                instrumentation_scope=SCOPE,
            )


def _context(trace_id: int, span_id: int, *, remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, span_id, remote, TraceFlags(TraceFlags.SAMPLED))


def _kind(span: Span, *, is_root: bool) -> SpanKind:
    if is_root:
        return SpanKind.SERVER
    return SpanKind.CLIENT if span.is_call else SpanKind.INTERNAL
