"""A replica that does what its script says and keeps every byte it was sent.

For what a simulated replica cannot show: the exact bytes that went upstream, and answers that no
engine gives. `answer` is the bytes it replies to each POST, or a coroutine that writes them itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.builders import MODEL


def a_reply(
    body: bytes = b'{"ok": true}', *, status: int = 200, headers: tuple[str, ...] = ()
) -> bytes:
    """A whole response with a length."""
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def chunked(*pieces: bytes, end: bool = True) -> bytes:
    """Pieces of a body in the chunked framing."""
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return framed + b"0\r\n\r\n" if end else framed


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Received:
    """A POST as it came: its head's lines, and its body."""

    lines: tuple[str, ...]
    body: bytes

    @property
    def target(self) -> str:
        """Path and query."""
        return self.lines[0].split(" ")[1]

    def all(self, name: str) -> list[str]:
        """The values of every field of this (lower-case) name."""
        fields = (line.partition(":") for line in self.lines[1:])
        return [value.strip() for key, _, value in fields if key.lower() == name]


Script = Callable[[Received, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Scripted:
    """The replica. `received` holds every POST, `open` counts connections."""

    def __init__(
        self,
        answer: bytes | Script | None = None,
        model: str = MODEL,
        hosts: Sequence[str] = ("127.0.0.1",),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`hosts` are the addresses it answers at, all at one port; `tls` makes it an https one."""
        self._tls = tls
        self.answer: bytes | Script = a_reply() if answer is None else answer
        self._hosts = hosts
        self.received: list[Received] = []
        self.raw = b""  # all that came on connections that carried a POST, heads and bodies
        self.open = 0
        self.port = 0
        self._models = b'{"object":"list","data":[{"id":"%b"}]}' % model.encode()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Scripted]:
        """Listen inside the `with`; every connection ends with it."""
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            serving = self._serve(reader, writer)
            task = asyncio.get_running_loop().create_task(serving, name="scripted")
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        first, *others = self._hosts
        servers = [await asyncio.start_server(connected, first, self.port, ssl=self._tls)]
        self.port = servers[0].sockets[0].getsockname()[1]
        if others:
            servers.append(await asyncio.start_server(connected, others, self.port))
        try:
            yield self
        finally:
            for server in servers:
                server.close()
            for task in tuple(tasks):
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while True:
                await self._one(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the gateway has closed
        finally:
            self.open -= 1
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = tuple(head.decode("latin-1").split("\r\n")[:-2])
        if lines[0].startswith("GET "):
            writer.write(a_reply(self._models if "/v1/models" in lines[0] else b""))
            await writer.drain()
            return
        length = int(Received(lines, b"").all("content-length")[0])
        body = await reader.readexactly(length)
        self.raw += head + body
        received = Received(lines, body)
        self.received.append(received)
        if isinstance(self.answer, bytes):
            writer.write(self.answer)
            await writer.drain()
        else:
            await self.answer(received, reader, writer)


class Held:
    """A script: a stream that stops half-way until released, for bodies that hold the word "held".

    Whatever else is asked gets `reply` at once.
    """

    HALF = b"data: one\n\n"
    REST = b"data: two\n\ndata: [DONE]\n\n"

    def __init__(self, reply: bytes | None = None) -> None:
        self.reply = a_reply() if reply is None else reply
        self.released = asyncio.Event()

    async def __call__(
        self, received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one request."""
        if b"held" in received.body:
            writer.write(STREAM_HEAD + chunked(self.HALF, end=False))
            await self.released.wait()
            writer.write(chunked(self.REST))
        else:
            writer.write(self.reply)
        await writer.drain()
