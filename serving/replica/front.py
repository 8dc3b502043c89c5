"""The health port of a replica: what a kubelet asks, answered beside the engine.

    GET /live    200 while we watch over an engine
    GET /ready   200 once a warm-up request was answered, 503 before that and while draining
    GET /status  what we know, as JSON
    GET /drain   (or POST) not ready from now on; answers when nothing runs, or the time is up

One request per connection. The engine's own port is the clients'; this one is for whoever runs the
pod, and whoever reaches it can drain the replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Final, Protocol

HEAD_S: Final = 5.0
MOST_HEAD: Final = 8192


class Watched(Protocol):
    """What is asked of whoever watches over the engine."""

    @property
    def is_ready(self) -> bool: ...

    def status(self) -> dict[str, object]: ...

    async def drain(self) -> bool:
        """True once idle; False when the time was up first."""
        ...


@contextlib.asynccontextmanager
async def serving_health(watched: Watched, host: str, port: int | None) -> AsyncIterator[None]:
    """Answer on `port` meanwhile; None: nowhere. Raises OSError if the port is not to be had."""
    if port is None:
        yield
        return

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
            status, body = await _answer(watched, head)
            writer.write(_response(status, body))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # no request, or nobody to answer any more
        finally:
            writer.close()

    server = await asyncio.start_server(meet, host, port, limit=MOST_HEAD)
    try:
        yield
    finally:
        server.close()


async def _answer(watched: Watched, head: bytes) -> tuple[HTTPStatus, dict[str, object]]:
    words = head.partition(b"\r\n")[0].split(b" ")
    path = words[1].partition(b"?")[0] if len(words) == 3 else b""
    if words[0] == b"POST" and path != b"/drain":
        return HTTPStatus.METHOD_NOT_ALLOWED, {"error": "only /drain takes POST"}
    match path:
        case b"/live":
            return HTTPStatus.OK, {"live": True}
        case b"/ready":
            ready = watched.is_ready
            return HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, {"ready": ready}
        case b"/status":
            return HTTPStatus.OK, watched.status()
        case b"/drain":
            return HTTPStatus.OK, {"idle": await watched.drain()}
    return HTTPStatus.NOT_FOUND, {"error": "there are /live, /ready, /status and /drain"}


def _response(status: HTTPStatus, body: dict[str, object]) -> bytes:
    text = json.dumps(body).encode() + b"\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + text
