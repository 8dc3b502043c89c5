"""One HTTP exchange with a client: its body, its response, and whether anybody listens.

Invariants. A response head is written at most once; after it, only body. An exchange ends exactly
once: finished (the connection may carry the next), or cut (it may not). `bytes` from a replica are
written as given; this file adds heads, refusals and endings, nothing else.

A stream that waits for its turn may be told so: then its head goes out before any replica has been
asked. `has_started` stays False, for nothing of a replica's response has been sent and any replica
may be tried; but what cannot be said by a status any more is said by an event.
"""

from __future__ import annotations

import http
import socket
import struct
from typing import TYPE_CHECKING, Final

from gateway.accept.amend import amended
from gateway.accept.reply import error_event, error_reply, told_event
from gateway.exchange import AnyExchange

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from gateway.accept.amend import Value
    from gateway.accept.head import Head
    from gateway.accept.line import Line
    from gateway.errors import GatewayError
    from gateway.vocabulary import Body, Route, Seconds

Field = tuple[bytes, bytes]


class _Nobody:
    """uvicorn wakes whoever waits for a cycle's messages; nobody waits for an Exchange's."""

    def set(self) -> None: ...


def _status_line(status: int) -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode())


STATUS_LINES: Final = {status: _status_line(status) for status in range(200, 600)}
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time at all
LAST_CHUNK: Final = b"0\r\n\r\n"
CHUNKED: Final = b"transfer-encoding: chunked\r\n"
CLOSE: Final = b"connection: close\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
WAITING: Final = b": waiting\n\n"
"""An SSE comment, which clients skip."""
EVENTS: Final = b"content-type: text/event-stream; charset=utf-8\r\n"


def _lines(fields: Sequence[Field]) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def whole_reply(error: GatewayError) -> bytes:
    """A refusal of something that never became an exchange."""
    status, headers, body = error_reply(error)
    return b"%b%bcontent-length: %d\r\n%b\r\n%b" % (
        STATUS_LINES[status],
        _lines(headers),
        len(body),
        CLOSE,
        body,
    )


class Exchange(AnyExchange):
    """One request of one client on the express lane, and the response to it.

    It also stands where uvicorn's protocol expects its own request-response cycle, so that
    pipelining, keep-alive and shutdown stay uvicorn's: hence `response_complete`, `disconnected`,
    `keep_alive` and `message_event`.
    """

    __slots__ = (
        "_head",
        "_is_chunked",
        "_is_early",
        "_is_gone",
        "_line",
        "_parts",
        "_told",
        "disconnected",
        "fault",
        "is_whole",
        "keep_alive",
        "response_complete",
        "status",
        "task",
    )

    message_event: Final = _Nobody()

    def __init__(self, line: Line, route: Route, target: bytes, head: Head, version: str) -> None:
        super().__init__(route, target, head.request_id, head.forwarded, head.fields)
        self._line = line
        self.fault: GatewayError | None = head.fault
        self.takes_chunks = version == "1.1"
        self.keep_alive = False
        self.task: asyncio.Task[None] | None = None
        self._is_gone = False
        self.is_whole = False  # the body is here, or will never be
        self.response_complete = False
        self.disconnected = False
        self.status = 0  # of the response, once it has started
        self._parts: list[Body] = []
        self._head: bytes | None = None
        self._is_chunked = False
        self._is_early = False  # the head went out before a replica had answered
        self._told = b""  # the body of an answer whose status came too late

    def __repr__(self) -> str:
        state = (
            "complete" if self.response_complete else "started" if self.has_started else "waiting"
        )
        return f"<Exchange {self.request_id.decode('ascii', 'replace')} {self.route.path} {state}>"

    # The request

    @property
    def body(self) -> Body:
        """The request body. Joined once. Raises what was wrong with the exchange, if anything."""
        if self.fault is not None:
            raise self.fault
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0] if self._parts else b""

    def take_body(self, part: Body) -> None:
        """Keep a part of the body."""
        self._parts.append(part)

    def amend(self, *path: str, value: Value) -> bool:
        """Set a member of the JSON object that the body is; every other byte stays. False where it
        is none.

        `exchange.amend("vllm_xargs", "mode", value=b'"full"')` keeps what else `vllm_xargs` holds.
        What replicas are sent from now on is the new body. See `gateway.accept.amend`.
        """
        body = bytes(self.body)
        self._parts = [amended(body, path, value)]
        return self._parts[0] is not body

    # The response

    def start(self, status: int, fields: bytes, length: int | None, *, chunked: bool) -> None:
        """Decide the response head; it is written together with the first bytes of the body.

        `fields` are lines. `length` None without `chunked` means that the body ends with the
        connection.
        """
        self.status = status
        self.has_started = True
        if self._is_early:
            return
        framing = b""
        if chunked:
            framing = CHUNKED
            self._is_chunked = True
        elif length is None:
            self.keep_alive = False
        elif status != 204:
            framing = b"content-length: %d\r\n" % length
        self._head = b"%b%bx-request-id: %b\r\n%b%b%b\r\n" % (
            STATUS_LINES.get(status) or _status_line(status),
            fields,
            self.request_id,
            b"".join([note + b"\r\n" for note in self.notes]) if self.notes else b"",
            framing,
            b"" if self.keep_alive else CLOSE,
        )

    def write(self, data: bytes) -> None:
        """Write body bytes, already framed; the transport buffers what the kernel does not."""
        head = self._head
        if self._is_early:
            self._write_early(data)
        elif head is None:
            self._line.transport.write(data)
        else:
            self._head = None
            self._line.transport.write(head + data)

    @property
    def sink(self) -> Callable[[bytes], object]:
        """What body bytes are written by from now on: the transport's own `write`, once the head is
        out."""
        if self._head is not None or self._is_early:
            return self.write
        return self._line.transport.write

    def keep_waiting(self) -> None:
        """A stream waits for its turn: say so, that nobody on the way thinks that we are gone.

        From then on bodies are framed here: a replica's answer comes as it is.
        """
        if self.has_started or self._is_gone or self.response_complete:
            return
        if not self._is_early:
            if not self.takes_chunks:
                return  # an HTTP/1.0 client gets one answer, when there is one
            self.start(200, EVENTS, None, chunked=True)
            self.write(b"%x\r\n%b\r\n" % (len(WAITING), WAITING))
            self._is_early = True
            self.has_started = self.takes_chunks = False
        elif self.paused_since is None:
            self._line.transport.write(b"%x\r\n%b\r\n" % (len(WAITING), WAITING))

    def _write_early(self, data: bytes) -> None:
        if self.status >= 400:
            self._told += data
        elif data:
            self._line.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _end_early(self) -> None:
        if self._told:
            event = told_event(self._told, self.route)
            self._line.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._line.transport.write(LAST_CHUNK)

    def finish(self) -> None:
        """The response has been written whole."""
        if self._is_early:
            self._end_early()
        if self._head is not None:
            self.write(b"")
        self.response_complete = True
        self._line.exchange_ended(self, reusable=self.keep_alive)

    def cut(self) -> None:
        """End here, in the middle: the client sees a response that is not complete."""
        if not self.response_complete:
            self.response_complete = True
            self.keep_alive = False
            transport = self._line.transport
            connected = transport.get_extra_info("socket")
            if connected is not None and not transport.is_closing():
                # A reset, not an end: a body that lasts until we close would look complete.
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            transport.abort()

    def refuse(self, error: GatewayError) -> None:
        """Tell the client why its request ends here, in whatever way is still possible.

        Before the response has begun: a status and an error object. In a stream: an SSE event and
        the end. In the middle of a body of announced length: the connection is cut.
        """
        if self.response_complete or self._is_gone:
            return
        if not self.has_started and not self._is_early:
            status, headers, body = error_reply(error, self.route)
            self.start(status, _lines(headers), len(body), chunked=False)
            self.write(body)
            self.finish()
        elif self._is_chunked and not self._line.transport.is_closing():
            event = error_event(error, self.route)
            self._is_early = False
            self.write(b"%x\r\n%b\r\n%b" % (len(event), event, LAST_CHUNK))
            self.keep_alive = False
            self.finish()
        else:
            self.cut()

    # The connection

    @property
    def is_gone(self) -> bool:
        """The client has left."""
        return self._is_gone

    def pause(self, now: Seconds) -> None:
        """The client's socket is full: stop the replica's."""
        self.paused_since = now
        if self.source is not None:
            self.source.pause_reading()

    def resume(self) -> None:
        """The client reads again."""
        self.paused_since = None
        if self.source is not None:
            self.source.resume_reading()

    def gone(self) -> None:
        """The client has left: whatever is being done for it stops now."""
        self._is_gone = True
        if self.task is not None and not self.response_complete:
            self.task.cancel()
