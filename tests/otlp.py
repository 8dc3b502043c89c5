"""A receiver of traces for tests: OTLP over HTTP, as a collector has it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan

KINDS = {1: "internal", 2: "server", 3: "client"}


class Received:
    """A span as it arrived."""

    def __init__(self, span: ProtoSpan, resource: dict[str, Any]) -> None:
        self.name: str = span.name
        self.trace_id = span.trace_id.hex()
        self.span_id = span.span_id.hex()
        self.parent_id = span.parent_span_id.hex()
        self.kind = KINDS[span.kind]
        self.is_error: bool = span.status.code == 2
        self.began_s = span.start_time_unix_nano / 1e9
        self.ended_s = span.end_time_unix_nano / 1e9
        self.said = _attributes(span.attributes)
        self.resource = resource

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name} {self.said}>"


class Collector:
    """One that listens. `answers` is the status it replies with; None: it never does."""

    def __init__(self, answers: int | None = 200) -> None:
        self.answers = answers
        self.spans: list[Received] = []
        self.raw = b""  # all bodies, one after the other
        self.headers: list[str] = []
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Collector]:
        """Listen inside the `with`."""
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
            task.set_name("scripted collector")
            tasks.add(task)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/traces"
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    await self._one(reader, writer)
        finally:
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
        body = await reader.readexactly(int(fields["content-length"]))
        if fields.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        answer = self.answers
        if answer is None:
            await asyncio.Event().wait()
            return
        self.headers.append(head)
        self.raw += body
        for batch in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _attributes(batch.resource.attributes)
            self.spans += [Received(s, resource) for sc in batch.scope_spans for s in sc.spans]
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % answer)
        await writer.drain()

    def named(self, name: str) -> list[Received]:
        """Those of this name, in the order of their coming."""
        return [span for span in self.spans if span.name == name]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
