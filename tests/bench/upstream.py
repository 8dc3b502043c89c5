"""A replica that costs next to nothing: fixed replies, two ports, and an exact account of both.

It speaks as much of vLLM's HTTP as a gateway asks for: health, models, metrics and chat
completions, unary and streamed. Streamed events leave one per write and one per step, and a
stream whose earlier bytes are still unread skips its step, so no two events share a write; a
gateway that is keeping up therefore reads each event by itself. `GET /counts` tells what was
received and sent, which the load generator's own counts must equal.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Final, cast

import httptools
import orjson
import uvloop

MODEL: Final = "bench"
SLICES: Final = 5  # the streams of one step are written in this many bursts, evenly spaced
EXTRA_EVENTS: Final = 2  # after the content: the usage event and [DONE]

_COMMON: Final = {"id": "chatcmpl-bench", "created": 1_700_000_000, "model": MODEL}
_USAGE: Final = {"prompt_tokens": 512, "completion_tokens": 128, "total_tokens": 640}
_WORDS: Final = (
    " the",
    " river",
    " carries",
    " stones",
    " down",
    " to",
    " a",
    " quiet",
    " sea",
    ",",
)


@dataclass(slots=True)
class Counts:
    """What both replicas received and sent since the start; `unknown` lists paths answered 404."""

    requests: int = 0
    streams: int = 0
    events: int = 0
    body_bytes: int = 0
    broken_streams: int = 0
    asides: int = 0  # further calls on the replicas that a gateway makes for the sake of a request
    unknown: dict[str, int] = field(default_factory=dict)


def _reply(status: bytes, body: bytes, content_type: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 %b\r\nserver: uvicorn\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        content_type,
        len(body),
        body,
    )


def _completion(content: str) -> bytes:
    message: dict[str, object] = {"role": "assistant", "content": content, "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    document = {**_COMMON, "object": "chat.completion", "choices": [choice], "usage": _USAGE}
    return _reply(b"200 OK", orjson.dumps(document))


def _frame(document: object) -> bytes:
    event = b"data: %b\n\n" % (document if isinstance(document, bytes) else orjson.dumps(document))
    return b"%x\r\n%b\r\n" % (len(event), event)


def stream_frames(chunks: int) -> tuple[bytes, ...]:
    """The writes of one stream, each one HTTP chunk with one SSE event; the last ends the body."""
    head = {**_COMMON, "object": "chat.completion.chunk"}
    frames = []
    for index in range(chunks):
        delta = {"content": _WORDS[index % len(_WORDS)]}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        frames.append(_frame({**head, "choices": [choice]}))
    frames.append(_frame({**head, "choices": [], "usage": _USAGE}))
    frames.append(_frame(b"[DONE]") + b"0\r\n\r\n")
    return tuple(frames)


UNARY_REPLY: Final = _completion(" ".join(["The river carries stones down to a quiet sea."] * 12))
STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_METRICS: Final = (
    b'vllm:num_requests_running{model_name="bench"} 1.0\n'
    b'vllm:num_requests_waiting{model_name="bench"} 0.0\n'
    b'vllm:kv_cache_usage_perc{model_name="bench"} 0.1\n'
)
# vLLM 0.32 without --enable-scale-out. It matters: vllm-router's cache_aware policy asks every
# replica to render every request, and after a 404 asks /tokenize as well.
_NO_RENDER: Final = _reply(
    b"403 Forbidden",
    b'{"error":{"message":"Scale-out endpoints are disabled.","type":"PermissionDeniedError",'
    b'"param":null,"code":403}}',
)
_FIXED: Final = {
    b"/v1/chat/completions/render": _NO_RENDER,
    b"/health": _reply(b"200 OK", b""),
    b"/version": _reply(b"200 OK", b'{"version":"0.32.0"}'),
    b"/metrics": _reply(b"200 OK", _METRICS, b"text/plain; version=0.0.4; charset=utf-8"),
    b"/v1/models": _reply(
        b"200 OK",
        orjson.dumps(
            {
                "object": "list",
                "data": [
                    {
                        "id": MODEL,
                        "object": "model",
                        "created": 1_700_000_000,
                        "owned_by": "vllm",
                        "root": MODEL,
                        "parent": None,
                        "max_model_len": 131_072,
                    }
                ],
            }
        ),
    ),
}
_PROBES: Final = frozenset((b"/health", b"/version", b"/metrics", b"/v1/models"))
_NOT_FOUND: Final = _reply(b"404 Not Found", b'{"detail":"Not Found"}')


class Pacer:
    """Advances every open stream by one event a step, a slice of them at a time."""

    def __init__(self, counts: Counts, frames: tuple[bytes, ...], step_s: float) -> None:
        self._counts = counts
        self._frames = frames
        self._slice_s = step_s / SLICES
        self._slices: list[dict[asyncio.Transport, int]] = [{} for _ in range(SLICES)]
        self._joined = 0

    def join(self, transport: asyncio.Transport) -> None:
        """Begin a stream on this connection: the head at once, the events by the step."""
        transport.write(STREAM_HEAD)
        self._slices[self._joined % SLICES][transport] = 0
        self._joined += 1

    def leave(self, transport: asyncio.Transport) -> None:
        """Forget a closed connection, counting a stream that it cut short."""
        for members in self._slices:
            if members.pop(transport, None) is not None:
                self._counts.broken_streams += 1

    async def run(self) -> None:
        """Step for ever; cancelled by its owner. A late step is not made up for by a double one."""
        loop = asyncio.get_running_loop()
        turn, due = 0, loop.time()
        while True:
            due = max(due + self._slice_s, loop.time())
            await asyncio.sleep(due - loop.time())
            self._step(self._slices[turn % SLICES])
            turn += 1

    def _step(self, members: dict[asyncio.Transport, int]) -> None:
        frames, last = self._frames, len(self._frames) - 1
        for transport, index in list(members.items()):
            if transport.get_write_buffer_size():
                continue
            if index == last:
                del members[transport]
            else:
                members[transport] = index + 1
            self._counts.events += 1
            transport.write(frames[index])


class ReplicaProtocol(asyncio.Protocol):
    """One connection from a gateway; answers in order, one request at a time."""

    def __init__(self, counts: Counts, pacer: Pacer) -> None:
        self._counts = counts
        self._pacer = pacer
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._path = b""
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # a cast: uvloop's transports have the methods of asyncio.Transport but not its name
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pacer.leave(self._transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._path = url
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._path == b"/v1/chat/completions":
            self._chat(b"".join(self._body))
        elif self._path == b"/counts":
            self._transport.write(_reply(b"200 OK", orjson.dumps(asdict(self._counts))))
        elif self._path in _FIXED:
            self._counts.asides += self._path not in _PROBES
            self._transport.write(_FIXED[self._path])
        else:
            path = self._path.decode("latin-1")
            self._counts.unknown[path] = self._counts.unknown.get(path, 0) + 1
            self._transport.write(_NOT_FOUND)

    def _chat(self, body: bytes) -> None:
        self._counts.requests += 1
        self._counts.body_bytes += len(body)
        if b'"stream":true' in body or b'"stream": true' in body:
            self._counts.streams += 1
            self._pacer.join(self._transport)
        else:
            self._transport.write(UNARY_REPLY)


async def serve(
    ports: Iterable[int], *, chunks: int, step_s: float, stop: asyncio.Event, ready: asyncio.Event
) -> None:
    """Serve on these loopback ports until `stop`; sets `ready` once all of them listen."""
    counts = Counts()
    pacer = Pacer(counts, stream_frames(chunks), step_s)
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda: ReplicaProtocol(counts, pacer), "127.0.0.1", port)
        for port in ports
    ]
    pacing = asyncio.create_task(pacer.run())
    ready.set()
    try:
        await stop.wait()
    finally:
        pacing.cancel()
        await asyncio.gather(pacing, return_exceptions=True)
        for server in servers:
            server.close()


def main() -> None:
    """Serve from the command line until killed."""
    parser = argparse.ArgumentParser(description="A fixed-reply replica for benchmarks.")
    parser.add_argument("--port", type=int, action="append", required=True, help="repeatable")
    parser.add_argument("--chunks", type=int, default=256, help="content events in a stream")
    parser.add_argument("--step-s", type=float, default=0.005, help="seconds between its events")
    args = parser.parse_args()
    stop, ready = asyncio.Event(), asyncio.Event()
    uvloop.run(serve(args.port, chunks=args.chunks, step_s=args.step_s, stop=stop, ready=ready))


if __name__ == "__main__":
    main()
