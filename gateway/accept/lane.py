"""The express lane: uvicorn's own HTTP protocol, with a second door for the inference routes.

A POST to an inference route is gathered here and becomes an Exchange; everything else falls through
to the ASGI app as uvicorn would have it, so TLS, shutdown and access control stay uvicorn's. What a
client may do wrong on the wire is answered here, and costs nobody but that client.

Per connection, requests are served one at a time and in order; a pipelined one waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import httptools
from mypy_extensions import mypyc_attr
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.accept.exchange import CONTINUE, Exchange, whole_reply
from gateway.accept.head import origin_form, read_head, size_of, without_upgrade
from gateway.accept.patience import Outflow, Phase, is_overdue
from gateway.accept.recall import recall
from gateway.errors import (
    BodyTooLarge,
    ClientError,
    ClientGone,
    HeadersTooLarge,
    MalformedHttp,
    RequestTimedOut,
)

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from gateway.accept.door import Door
    from gateway.accept.head import Head
    from gateway.accept.recall import Recall
    from gateway.vocabulary import Route, Seconds

MOST_WAITING: Final = 8
"""Pipelined requests that may wait on a connection; beyond, it is not read, and so we would not
see its client leave."""

# CPython 3.11 takes 0.14 us to find an enum's member by its name, and 0.02 us to find these.
_IDLE: Final = Phase.IDLE
_HEAD: Final = Phase.HEAD
_BODY: Final = Phase.BODY
_SERVED: Final = Phase.SERVED

_FIELD_OVERHEAD: Final = 32  # what a header field costs beside its bytes, as HTTP/2 counts it


@mypyc_attr(native_class=False)
class Lane(HttpToolsProtocol):
    """One client connection."""

    # Slots spare a request 1 us: uvicorn's own attributes are many, and more make all slower.
    __slots__ = (
        "_body_bytes", "_door", "_gathering", "_is_deaf", "_live", "_outflow", "_owes_continue",
        "_phase", "_read_bytes", "_recall", "_since", "_unread_bytes",
    )  # fmt: skip

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
        self._recall: Recall | None = None  # the last request, where the next may be like it
        self._phase = _IDLE
        self._since = door.now  # when the phase began
        self._read_bytes = 0  # of the reads in which the head came
        self._body_bytes = 0
        self._unread_bytes = 0  # of a head, or of a body's framing, that does not end
        self._outflow = Outflow()
        self._owes_continue = False  # to the exchange that gathers, once its turn has come
        self._is_deaf = False  # nothing more is parsed on this connection

    def __repr__(self) -> str:
        return f"<Lane {self._phase.name} {self._live!r}>"

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)  # uvicorn narrows the argument, and so do we
        self._door.lanes.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.lanes.discard(self)
        live, waiting = self._live, [cycle for cycle, _ in self.pipeline]
        if self._gathering is not None and self._gathering not in waiting:
            waiting.append(self._gathering)
        self._live = self._gathering = None
        self.pipeline.clear()
        if live is not None:
            live.gone()
        for exchange in waiting:
            if isinstance(exchange, Exchange):
                exchange.fault = ClientGone()  # counted, though it never was served
                exchange.is_gone = True
                self._launch(exchange)
        super().connection_lost(exc)
        self.cycle = self._recall = None  # type: ignore[assignment]  # it knows us: both would stay

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        phase, cycle, body_bytes = self._phase, self.cycle, self._body_bytes
        if phase is _IDLE and self._recall is not None:
            again = self._recall.again(data, self, self._door)
            if again is not None:
                self._body_bytes = len(data)
                exchange, head = again
                self._open(exchange, head, keeps_alive=True)
                if self._gathering is exchange:  # it has not been refused
                    self._whole(exchange)
                return
        self._recall = None
        self._read_bytes = len(data) + (self._read_bytes if phase is _HEAD else 0)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._malformed(MalformedHttp())
        if self._phase is _SERVED and phase is _IDLE and self._live is not None:
            self._recall = recall(data, self._live)
        elif self._phase is _HEAD or self._phase is _BODY:
            if self._phase is not phase:
                # Of a read in which a request begins, all is its head, unless one before it ended.
                is_head = phase is not _BODY and self.cycle is cycle
                self._unread_bytes = len(data) if is_head else 0
            elif self.cycle is cycle and self._body_bytes == body_bytes:
                self._unread_bytes += len(data)
            else:
                self._unread_bytes = 0
            if self._unread_bytes > self._door.settings.max_header_bytes:
                self._malformed(HeadersTooLarge())  # a field, or a trailer, that does not end

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
        self._malformed(MalformedHttp())

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
        if self._is_deaf:
            return
        self.url = b""
        self.headers = []
        self._body_bytes = 0
        self._enter(_HEAD)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is _HEAD:  # else a trailer, which nobody reads
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._is_deaf or self.parser.should_upgrade():
            return
        version = self.parser.get_http_version()
        head = read_head(self.headers, version, self._door.new_id(), self._door.reading)
        if self._head_is_too_large():
            self._malformed(HeadersTooLarge())
        elif head.fault is not None:
            self._malformed(head.fault)
        elif self.parser.get_method() == b"POST" and (route := self._route()):
            self._enter(_BODY)
            exchange = Exchange(self, route, self.url, head, version)
            self._open(exchange, head, keeps_alive=self.parser.should_keep_alive())
        else:
            self._to_the_app()
            self._enter(_BODY)

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
        super().on_headers_complete()
        if len(self.pipeline) <= MOST_WAITING:
            self.flow.resume_reading()

    def _open(self, exchange: Exchange, head: Head, *, keeps_alive: bool) -> None:
        """An exchange has begun: it gathers its body, and waits for its turn on this connection."""
        previous = self.cycle
        exchange.keep_alive = keeps_alive and exchange.takes_chunks and not self._door.is_closing
        self.cycle = exchange  # type: ignore[assignment]  # it plays a cycle's part: see Exchange
        self._gathering = exchange
        must_wait = previous is not None and not previous.response_complete
        if must_wait:
            self.pipeline.appendleft((exchange, None))
            self._owes_continue = head.expects_continue
            if len(self.pipeline) > MOST_WAITING:
                self.flow.pause_reading()
        objection = self._door.objection(head, exchange.route)
        if objection is not None:
            self._refuse(exchange, objection)
        elif head.expects_continue and not must_wait:
            self.transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        exchange = self._gathering
        if exchange is not None:
            exchange.take_body(body)
            if self._body_bytes > self._door.limit(exchange.route):
                self._refuse(exchange, BodyTooLarge())
        elif not self._is_deaf:
            if self._body_bytes > self._door.most_bytes(self.url):
                self._malformed(BodyTooLarge())
            else:
                super().on_body(body)

    def on_message_complete(self) -> None:
        exchange = self._gathering
        if self._is_deaf or self._phase is _HEAD:  # refused, or to be read again
            return
        if exchange is not None:
            self._whole(exchange)
        else:
            self._enter(_SERVED)
            super().on_message_complete()
            self._rest_if_served()  # the app may have answered before the body had come

    # The life of an exchange on this connection

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._since = self._door.now

    def _whole(self, exchange: Exchange) -> None:
        """The body is here, or will never be: serve it, if its turn has come."""
        self._enter(_SERVED)
        self._gathering = None
        exchange.is_whole = True
        if not self.pipeline or all(waiting is not exchange for waiting, _ in self.pipeline):
            self._launch(exchange)

    def _launch(self, exchange: Exchange) -> None:
        exchange.received_at = self._door.clock()
        if not exchange.is_gone:
            self._live = exchange
            if self.flow.write_paused:  # by a response before it
                exchange.pause(exchange.received_at)
        # Not named: by uvloop, that costs 0.4 us, and the coroutine tells as much.
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
        """A response has gone out, ours or the app's: the next request's turn. Idle connections are
        closed by the sweep, not by a timer each."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            if not isinstance(cycle, Exchange):
                task = self.loop.create_task(cycle.run_asgi(app))
                task.add_done_callback(self.tasks.discard)
                self.tasks.add(task)
            elif cycle.is_whole:
                self._launch(cycle)
            elif self._owes_continue:
                self._owes_continue = False
                self.transport.write(CONTINUE)
        else:
            self._rest_if_served()

    def _rest_if_served(self) -> None:
        if self._phase is _SERVED and self.cycle.response_complete:
            self._enter(_IDLE)

    # What goes wrong

    def _hang_up_after_reply(self) -> None:
        """Parse no more; the last of the replies that are owed is the last on this connection."""
        self._is_deaf = True
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _refuse(self, exchange: Exchange, error: ClientError) -> None:
        exchange.fault = error
        self._hang_up_after_reply()
        self._whole(exchange)

    def _malformed(self, error: ClientError) -> None:
        """Refuse what is not a request we can read. Responses that are owed are not disturbed."""
        if self._is_deaf:
            return  # once is enough
        gathering = self._gathering
        self._hang_up_after_reply()
        if gathering is not None:
            gathering.fault = error
            self._whole(gathering)
            return
        self._door.malformed += 1
        if self._phase is _BODY:  # of a request that is the app's
            if self.cycle.response_complete:
                self._linger()  # it has been answered, and there must be no second answer
        elif self.cycle is None or self.cycle.response_complete:
            self.transport.write(whole_reply(error))
            self._linger()
        else:
            self._enter(_SERVED)

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
        settings, transport = self._door.settings, self.transport
        unsent = transport.get_write_buffer_size()
        if self._outflow.stalled_s(unsent, now) > settings.client_stall_s and self._live is None:
            transport.abort()
        if transport.is_closing():
            return
        if self.flow.read_paused or (unsent and self._phase is Phase.LINGERING):
            self._since = now  # it is we who do not read, or it who still does
        if not is_overdue(self._phase, now - self._since, self._body_bytes, settings):
            return
        if self._phase is _IDLE or self._phase is Phase.LINGERING:
            transport.close()
        elif not self._is_deaf:
            self._malformed(RequestTimedOut())
        elif not self.pipeline:
            transport.abort()  # the app waits for a body that will not come
