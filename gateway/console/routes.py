"""The page's files, and the stream it lives by: what they are, and what a browser lets them do.

The files are read once, hold nothing of anybody's, and are open to all who reach us; the stream
asks for a key where keys are asked for.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.console.broadcast import Broadcast, Viewer, Watcher
from gateway.errors import UnknownPath

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

STALL_S: Final = 30.0
"""A page that takes nothing for so long is let go."""

TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Nothing from elsewhere, nothing inline, no text that becomes markup, no frame around it."""

_STREAM_HEADERS: Final = {
    **HEADERS, "cache-control": "no-store", "x-accel-buffering": "no",
}  # fmt: skip


class Page:
    """One file, with a tag by which a browser knows whether it has changed."""

    __slots__ = ("_content", "_headers", "_tag")

    def __init__(self, name: str, content: bytes) -> None:
        self._content = content
        self._tag = f'"{sha256(content).hexdigest()[:32]}"'
        self._headers = {
            **HEADERS,
            "content-type": TYPES[name.rpartition(".")[2]],
            "cache-control": "no-cache",
            "etag": self._tag,
        }

    def answer(self, request: Request) -> Response:
        """The file, or that the browser has it."""
        if request.headers.get("if-none-match") == self._tag:
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, headers=self._headers)


def pages() -> dict[str, Page]:
    """All files, by name."""
    folder = files("gateway.console") / "static"
    return {each.name: Page(each.name, each.read_bytes()) for each in folder.iterdir()}


class Live(StreamingResponse):
    """What a watcher is shown, while it is there."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(watcher.frames(), media_type="text/event-stream", headers=_STREAM_HEADERS)
        self._watcher = watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Raises TooManyWatchers before anything is sent."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(STALL_S):
                await send(message)

        with self._watcher, suppress(TimeoutError):
            await super().__call__(scope, receive, send_in_time)


def console_routes(broadcast: Broadcast, viewer: Viewer) -> tuple[Route, ...]:
    """The room's own, for the control app."""
    shown = pages()

    async def page(request: Request) -> Response:
        found = shown.get(request.path_params.get("name", "index.html"))
        if found is None:
            raise UnknownPath
        return found.answer(request)

    async def events(request: Request) -> Response:
        sees_names = viewer(dict(request.headers.raw))
        if request.method == "HEAD":
            return Response(media_type="text/event-stream", headers=_STREAM_HEADERS)
        return Live(Watcher(broadcast, sees_names=sees_names))

    return (
        Route("/console", page),
        Route("/console/events", events),
        Route("/console/{name}", page),
    )
