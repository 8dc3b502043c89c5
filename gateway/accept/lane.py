"""The express lane: uvicorn's own HTTP protocol, with a second door for the inference routes.

A POST to an inference route is gathered here and becomes an Exchange; everything else falls through
to the ASGI app as uvicorn would have it, so TLS, shutdown and access control stay uvicorn's. What a
client may do wrong on the wire is answered here, and costs nobody but that client.

A lane reads; whose turn it is then, is its `Line`'s to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import httptools
from mypy_extensions import mypyc_attr
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.accept.exchange import Exchange
from gateway.accept.head import origin_form, read_head, size_of, without_upgrade
from gateway.accept.line import BODY, HEAD, IDLE, SERVED, Line
from gateway.accept.recall import recall
from gateway.errors import BodyTooLarge, HeadersTooLarge, MalformedHttp

if TYPE_CHECKING:
    import asyncio

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from gateway.accept.door import Door
    from gateway.vocabulary import Route, Seconds

_FIELD_OVERHEAD: Final = 32  # what a header field costs beside its bytes, as HTTP/2 counts it


@mypyc_attr(native_class=False)
class Lane(HttpToolsProtocol):
    """One client connection."""

    # Slots spare a request 1 us: uvicorn's own attributes are many, and more make all slower.
    __slots__ = ("_door", "_line", "_read_bytes", "_unread_bytes")

    def __init__(
        self,
        door: Door,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # uvicorn's parser lets bytes follow a request that said `Connection: close`; ours does not.
        self.parser = httptools.HttpRequestParser(self)
        self._door = door
        self._read_bytes = 0  # of the reads in which the head came
        self._unread_bytes = 0  # of a head, or of a body's framing, that does not end

    def __repr__(self) -> str:
        return f"<Lane {self._line!r}>"

    # What asyncio calls, and uvicorn's server

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)  # uvicorn narrows the argument, and so do we
        self._line = Line(self._door, self.loop, transport, self.flow, self.tasks)
        self.pipeline = self._line.pipeline
        self._door.lanes.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.lanes.discard(self)
        self._see_last()
        self._line.lost()
        super().connection_lost(exc)
        self.cycle = None  # type: ignore[assignment]  # it knows us: both would stay

    def shutdown(self) -> None:
        """Close when idle; else after the response to the last request that has begun."""
        self._see_last()
        super().shutdown()

    def _see_last(self) -> None:
        """uvicorn looks at the last request as its `cycle`: an exchange can play that part."""
        self.cycle = self._line.last  # type: ignore[assignment]

    def pause_writing(self) -> None:
        super().pause_writing()
        self._line.pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._line.resume_writing()

    def data_received(self, data: bytes) -> None:
        line = self._line
        if line.is_deaf or line.recalls(data):
            return
        phase, last, body_bytes = line.phase, line.last, line.body_bytes
        line.recall = None
        self._read_bytes = len(data) + (self._read_bytes if phase is HEAD else 0)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            line.malformed(MalformedHttp())
        if line.phase is SERVED and phase is IDLE and line.live is not None:
            line.recall = recall(data, line.live)
        elif line.phase is HEAD or line.phase is BODY:
            if line.phase is not phase:
                # Of a read in which a request begins, all is its head, unless one before it ended.
                is_head = phase is not BODY and line.last is last
                self._unread_bytes = len(data) if is_head else 0
            elif line.last is last and line.body_bytes == body_bytes:
                self._unread_bytes += len(data)
            else:
                self._unread_bytes = 0
            if self._unread_bytes > self._door.settings.max_header_bytes:
                line.malformed(HeadersTooLarge())  # a field, or a trailer, that does not end

    def _decline(self, rest: bytes) -> None:
        """Read a request again without its offer to speak something else, which we may ignore (RFC
        9110, section 7.8): some clients make the offer with every request they send. `rest` came
        after its head, which is where the parser has stopped."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        head = without_upgrade(method, self.url, version, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        try:
            if method != b"CONNECT":
                self.parser.feed_data(head + rest)
                return
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            pass  # one offer a read is enough
        self._line.malformed(MalformedHttp())

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._line.is_deaf:
            return
        self.url = b""
        self.headers = []
        self._line.body_bytes = 0
        self._line.enter(HEAD)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._line.phase is HEAD:  # else a trailer, which nobody reads
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._line.is_deaf or self.parser.should_upgrade():
            return
        version = self.parser.get_http_version()
        head = read_head(self.headers, version, self._door.new_id(), self._door.reading)
        if self._head_is_too_large():
            self._line.malformed(HeadersTooLarge())
        elif head.fault is not None:
            self._line.malformed(head.fault)
        elif self.parser.get_method() == b"POST" and (route := self._route()):
            self._line.enter(BODY)
            exchange = Exchange(self._line, route, self.url, head, version)
            self._line.open(exchange, head, keeps_alive=self.parser.should_keep_alive())
        else:
            self._to_the_app()
            self._line.enter(BODY)

    def _head_is_too_large(self) -> bool:
        """Counted only where the reads it came in leave a doubt: counting costs 1 us."""
        most = self._door.settings.max_header_bytes - _FIELD_OVERHEAD * len(self.headers)
        if self._read_bytes <= most:
            return False
        return size_of(self.url, self.headers) > most

    def _route(self) -> Route | None:
        """The inference route that is asked for, if it is one."""
        route = self._door.route(self.url)
        if route is None and not self.url.startswith(b"/"):
            self.url = origin_form(self.url)
            route = self._door.route(self.url)
        return route

    def _to_the_app(self) -> None:
        """Let uvicorn open a cycle of its own, from what we have read of the head."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        self._see_last()
        super().on_headers_complete()
        self._line.opened(self.cycle)

    def on_body(self, body: bytes) -> None:
        line = self._line
        line.body_bytes += len(body)
        if line.gathering is not None:
            line.gather(line.gathering, body)
        elif not line.is_deaf:
            if line.body_bytes > self._door.most_bytes(self.url):
                line.malformed(BodyTooLarge())
            else:
                super().on_body(body)

    def on_message_complete(self) -> None:
        line = self._line
        if line.is_deaf or line.phase is HEAD:  # refused, or to be read again
            return
        if line.gathering is not None:
            line.whole(line.gathering)
        else:
            line.enter(SERVED)
            super().on_message_complete()
            line.rest_if_served()  # the app may have answered before the body had come

    # What uvicorn's cycles call

    def on_response_complete(self) -> None:
        """The app's response has gone out. uvicorn would count it, for a limit that we do not set,
        and start a timer."""
        self._line.response_ended()

    # What the door calls

    def cut_short(self) -> None:
        """End what is being served."""
        self._line.cut_short()

    def check(self, now: Seconds) -> None:
        """Close the connection if its client has dawdled."""
        self._line.check(now)
