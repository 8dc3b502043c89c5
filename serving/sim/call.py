"""One exchange with a client: its body, its answer, and the fault it may meet.

A `Call` sends what the routes give it. Where a fault struck this exchange, it sends what the fault
says instead, and then raises ClientLeftError once the connection is down, so that a route needs to
know nothing of faults and gives everything back as if the client had left.
"""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus

from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, HTTPScope

from serving.sim.api_errors import ApiError
from serving.sim.channel import Channel, ClientLeftError
from serving.sim.faults import Drop, Fault, Garbage, Refuse, Reset, Stuck, Truncate
from serving.sim.wire import STATE_KEY, SimProtocol

JSON_TYPE = b"application/json"
SSE_TYPE = b"text/event-stream; charset=utf-8"
GARBAGE = b"\x16\x03\x01\x02\x00 not HTTP at all \xff\xfe\r\n\r\n"

_BEFORE_RESET_S = 0.02
"""Time for the peer to read what was sent, which a reset would take from it."""


class Call:
    """One request to an inference route and its answer."""

    def __init__(
        self,
        scope: HTTPScope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        fault: Fault | None,
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.channel = Channel()
        self._send = send
        self._fault = fault
        self._events_sent = 0
        self._connection: SimProtocol = scope["state"][STATE_KEY]
        self._connection.on_lost = self.channel.leave

    def header(self, name: bytes) -> str | None:
        """The first header of this (lower-case) name."""
        for found, value in self.scope["headers"]:
            if found == name:
                return value.decode("latin-1")
        return None

    async def body(self) -> bytes:
        """The whole body. Raises ClientLeftError."""
        parts = []
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                raise ClientLeftError
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(parts)

    async def meet_fault(self) -> None:
        """Let a fault strike that does not wait for the answer; return if there is none.

        Raises ApiError for a refusal.
        """
        match self._fault:
            case Refuse(status=status):
                raise ApiError(HTTPStatus(status), "injected fault", HTTPStatus(status).phrase)
            case Garbage():
                self._connection.write_raw(GARBAGE)
                await self._closed()
            case Drop():
                await self._closed()
            case Stuck(where="before_head"):
                await self._lost()
            case _:
                return

    async def reply(self, status: int, body: bytes, content_type: bytes = JSON_TYPE) -> None:
        """The whole answer."""
        length = str(len(body)).encode()
        await self._head(status, [(b"content-length", length), (b"content-type", content_type)])
        if self._fault is not None and not isinstance(self._fault, Refuse):
            await self._raw(body[: len(body) // 2], self._fault)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def open_stream(self) -> None:
        """The head of an event stream."""
        await self._head(200, [(b"content-type", SSE_TYPE)])
        if isinstance(self._fault, Stuck) or self._strikes_now():
            await self._raw(b"1f4\r\ndata: {", self._fault)

    async def events(self, events: Sequence[bytes]) -> None:
        """Whole events, in one chunk; one by one where a fault counts them."""
        if self._fault is None:
            await self._chunk(b"".join(events))
            return
        for event in events:
            await self._chunk(event)
            self._events_sent += 1
            if self._strikes_now():
                half = event[: len(event) // 2]
                await self._raw(b"%x\r\n%b" % (len(event), half), self._fault)

    async def end_stream(self) -> None:
        """The end of an event stream."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _strikes_now(self) -> bool:
        match self._fault:
            case Reset(after_chunks=count) | Truncate(after_chunks=count):
                return count == self._events_sent
            case _:
                return False

    async def _raw(self, unfinished: bytes, fault: Fault | None) -> None:
        """End within something that was announced, as the fault says."""
        if isinstance(fault, Reset):
            await asyncio.sleep(_BEFORE_RESET_S)
            self._connection.reset()
        elif isinstance(fault, Truncate):
            self._connection.write_raw(unfinished)
            self._connection.close()
        await self._lost()

    async def _closed(self) -> None:
        self._connection.close()
        await self._lost()

    async def _lost(self) -> None:
        """Wait until the connection is down; raises ClientLeftError then, and nothing else."""
        while True:
            await self.channel.take()

    async def _head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": headers,
                "trailers": False,
            }
        )

    async def _chunk(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
