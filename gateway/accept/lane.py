"""The express lane: uvicorn's own HTTP protocol, with a second door for the inference routes.

A POST to an inference route is gathered here and becomes an Exchange; everything else falls through
to the ASGI app as uvicorn would have it, so TLS, shutdown and access control stay uvicorn's. What a
client may do wrong on the wire is answered here, and costs nobody but that client.

Per connection, requests are served one at a time and in order; a pipelined one waits.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.accept.exchange import STATUS_LINES, Exchange
from gateway.accept.head import read_head
from gateway.accept.reply import error_reply
from gateway.errors import (
    BodyTooLarge,
    Bug,
    ClientError,
    ClientGone,
    HeadersTooLarge,
    MalformedHttp,
    RequestTimedOut,
)
from gateway.vocabulary import ROUTES, BodyKind, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from gateway.accept.head import Head
    from gateway.clock import Clock
    from gateway.settings import AcceptSettings
    from gateway.vocabulary import Seconds

LINGER_S: Final = 2.0
"""How long a refused client may go on sending before its connection is closed for good: closing at
once would reset it, and the refusal would be lost (RFC 9112, section 9.6)."""

SWEEP_EVERY_S: Final = 0.5

_FIELD_OVERHEAD: Final = 32  # what a header field costs beside its bytes, as HTTP/2 counts it

_log = logging.getLogger("headrace")


class Door:
    """What all connections share: the routes, the limits, and who lives the requests.

    Owns the set of connections for its sweep, which closes those that dawdle; `now` is its coarse
    clock, good to SWEEP_EVERY_S, so that timeouts cost no clock reading per request.
    """

    def __init__(
        self,
        settings: AcceptSettings,
        live: Callable[[Exchange], Coroutine[Any, Any, None]],
        clock: Clock,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.now: Seconds = clock()
        self.lanes: set[Lane] = set()
        self.is_closing = False  # set: responses are the last on their connections
        self.malformed = 0  # requests refused before they could be counted as received
        self._live = live
        self._routes = {route.path.encode(): route for route in ROUTES}
        self._id_prefix = f"req-{secrets.token_hex(4)}-"
        self._ids = itertools.count(1)

    def protocol(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Lane:
        """A protocol for one connection: what uvicorn's `http` setting wants."""
        return Lane(self, config, server_state, app_state, _loop)

    def route(self, target: bytes) -> Route | None:
        """The inference route of a request target, or None for the ASGI app."""
        route = self._routes.get(target)
        if route is None and b"?" in target:
            route = self._routes.get(target.partition(b"?")[0])
        return route

    def new_id(self) -> bytes:
        """A request id, unique in this process and, by its prefix, most likely in the world."""
        return f"{self._id_prefix}{next(self._ids):x}".encode()

    async def serve(self, exchange: Exchange) -> None:
        """Live one exchange; a bug in us is logged once, here, and answered with a 500."""
        try:
            await self._live(exchange)
        except Exception:
            _log.exception("a request ended in an exception nobody foresaw")
            exchange.refuse(Bug())

    def cut_short(self) -> None:
        """Our own time is up: end whatever is still being served."""
        for lane in tuple(self.lanes):
            lane.cut_short()

    async def sweep(self) -> None:
        """The lane's background loop: closes connections that dawdle."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self.now = self.clock()
            for lane in tuple(self.lanes):
                lane.check(self.now)


class Phase(Enum):
    """What we are reading from a client."""

    IDLE = "nothing: between requests"
    HEAD = "a request's head"
    BODY = "its body"
    SERVED = "nothing: the request is whole, its response is not"
    LINGERING = "whatever still comes, to throw it away"


class Lane(HttpToolsProtocol):
    """One client connection."""

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
        self.pipeline: deque[tuple[Any, Any]] = deque()  # cycles and exchanges, in their order
        self._door = door
        self._live: Exchange | None = None  # the exchange being served
        self._gathering: Exchange | None = None  # the exchange whose body is being read
        self._phase = Phase.IDLE
        self._since = door.now  # when the phase began
        self._head_bytes = 0
        self._body_bytes = 0
        self._is_deaf = False  # nothing more is parsed on this connection

    def __repr__(self) -> str:
        return f"<Lane {self._phase.name} {self._live!r}>"

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)  # uvicorn narrows the argument, and so do we
        self._door.lanes.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.lanes.discard(self)
        live, gathering = self._live, self._gathering
        self._live = self._gathering = None
        if live is not None:
            live.gone()
        if gathering is not None and not gathering.is_whole:
            gathering.fault = ClientGone()  # counted, though it never was whole
            gathering.is_gone = True
            self._launch(gathering)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        was_in_head = self._phase is Phase.HEAD
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._hang_up_after_reply()  # we speak HTTP/1.1 only, and may ignore an upgrade
        except httptools.HttpParserError:
            self._malformed(MalformedHttp())
        if was_in_head and self._phase is Phase.HEAD:
            self._head_bytes += len(data)  # the parser holds a field that is still not whole
            if self._head_bytes > self._door.settings.max_header_bytes:
                self._malformed(HeadersTooLarge())

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._live is not None:
            self._live.pause(self._door.clock())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._live is not None:
            self._live.resume()

    # What the parser calls

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._head_bytes = 0
        self._body_bytes = 0
        self._enter(Phase.HEAD)

    def on_url(self, url: bytes) -> None:
        self.url += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is Phase.HEAD:  # else a trailer, which nobody reads
            self._head_bytes += len(name) + len(value) + _FIELD_OVERHEAD
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._enter(Phase.BODY)
        if self._is_deaf:
            return
        version = self.parser.get_http_version()
        head = read_head(self.headers, version, self._door.new_id())
        if self._head_bytes > self._door.settings.max_header_bytes:
            self._malformed(HeadersTooLarge())
        elif head.fault is not None:
            self._malformed(head.fault)
        elif self.parser.get_method() == b"POST" and (route := self._door.route(self.url)):
            self._open(Exchange(self, route, self.url, head, version), head)
        else:
            self._to_the_app()

    def _to_the_app(self) -> None:
        """Let uvicorn open a cycle of its own, from what we have read of the head."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def _open(self, exchange: Exchange, head: Head) -> None:
        """An exchange has begun: it gathers its body, and waits for its turn on this connection."""
        previous = self.cycle
        exchange.keep_alive = (
            exchange.takes_chunks and self.parser.should_keep_alive() and not self._door.is_closing
        )
        self.cycle = exchange  # type: ignore[assignment]  # it plays a cycle's part: see Exchange
        self._gathering = exchange
        if previous is not None and not previous.response_complete:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, None))
        if head.content_length is not None and head.content_length > self._limit(exchange):
            self._too_large(exchange)
        elif head.expects_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        exchange = self._gathering
        if exchange is not None:
            if exchange.take_body(body) > self._limit(exchange):
                self._too_large(exchange)
        elif not self._is_deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        exchange = self._gathering
        if self._is_deaf:
            return
        self._enter(Phase.SERVED)
        if exchange is not None:
            self._whole(exchange)
        else:
            super().on_message_complete()
            self._rest_if_served()  # the app may have answered before the body had come

    # The life of an exchange on this connection

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._since = self._door.now

    def _limit(self, exchange: Exchange) -> int:
        settings = self._door.settings
        if exchange.route.body is BodyKind.MULTIPART:
            return settings.max_upload_bytes
        return settings.max_body_bytes

    def _whole(self, exchange: Exchange) -> None:
        """The body is here, or will never be: serve it, if its turn has come."""
        self._gathering = None
        exchange.is_whole = True
        if not any(waiting is exchange for waiting, _ in self.pipeline):
            self._launch(exchange)

    def _launch(self, exchange: Exchange) -> None:
        exchange.received_at = self._door.clock()
        if not exchange.is_gone:
            self._live = exchange
            if self.flow.write_paused:  # by a response before it
                exchange.pause(exchange.received_at)
        exchange.task = self.loop.create_task(self._door.serve(exchange))

    def exchange_ended(self, exchange: Exchange, *, reusable: bool) -> None:
        """The response is written: the connection is free for what comes next, or closes."""
        if self._live is exchange:
            self._live = None
        if reusable:
            self.on_response_complete()
        elif self._is_deaf:
            self._linger()
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        """A response has gone out, ours or the app's: the next request's turn.

        Idle connections are closed by the sweep, not by a timer each.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            if not isinstance(cycle, Exchange):
                task = self.loop.create_task(cycle.run_asgi(app))
                task.add_done_callback(self.tasks.discard)
                self.tasks.add(task)
            elif cycle.is_whole:
                self._launch(cycle)
        else:
            self._rest_if_served()

    def _rest_if_served(self) -> None:
        if self._phase is Phase.SERVED and self.cycle.response_complete:
            self._enter(Phase.IDLE)

    # What goes wrong

    def _hang_up_after_reply(self) -> None:
        """Parse no more; the reply that is under way, or comes, is the last on this connection."""
        self._is_deaf = True
        for cycle in (self._live, self.cycle):
            if cycle is not None:
                cycle.keep_alive = False

    def _too_large(self, exchange: Exchange) -> None:
        exchange.fault = BodyTooLarge()
        self._hang_up_after_reply()
        self._whole(exchange)

    def _malformed(self, error: ClientError) -> None:
        """Refuse what is not a request we can read. A response under way is not disturbed."""
        self._door.malformed += 1
        gathering = self._gathering
        self._hang_up_after_reply()
        if gathering is not None:
            gathering.fault = error
            self._whole(gathering)
        elif self.cycle is None or self.cycle.response_complete:
            self.transport.write(_whole_reply(error))
            self._linger()
        elif self._phase is Phase.BODY:
            self.transport.abort()  # the app is reading a body that will never be whole

    def cut_short(self) -> None:
        """End the exchange being served, telling its client what can still be told."""
        if self._live is not None and self._live.task is not None:
            self._live.task.cancel()

    def _linger(self) -> None:
        """Say that nothing more comes; close for good when the client has had time to read why."""
        if not self.transport.is_closing():
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._enter(Phase.LINGERING)

    def check(self, now: Seconds) -> None:
        """Part of the door's sweep: close the connection if its client has dawdled."""
        settings = self._door.settings
        elapsed = now - self._since
        match self._phase:
            case Phase.IDLE:
                if elapsed > settings.keep_alive_s:
                    self.transport.close()
            case Phase.HEAD:
                if elapsed > settings.header_timeout_s:
                    self._malformed(RequestTimedOut())
            case Phase.BODY:
                earned_s = self._body_bytes / settings.min_body_bytes_per_s
                if elapsed > settings.body_timeout_s + earned_s:
                    self._malformed(RequestTimedOut())
            case Phase.LINGERING:
                if elapsed > LINGER_S:
                    self.transport.abort()
            case Phase.SERVED:
                pass


def _whole_reply(error: ClientError) -> bytes:
    """A refusal of something that never became an exchange."""
    status, headers, body = error_reply(error)
    lines = b"".join([b"%b: %b\r\n" % field for field in headers])
    return b"%b%bcontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
        STATUS_LINES[status],
        lines,
        len(body),
        body,
    )
