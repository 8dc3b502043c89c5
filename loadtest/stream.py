"""The streaming client: asks over kept connections and marks each event when its bytes came.

Gevent sockets and the parser of `httptools`, because nothing may stand between the bytes and their
mark: one read, one look at the clock, then the parsing.
A connection is opened for every request that finds none idle, so the generator never queues, and
the time it takes counts, as it does for users.
"""

from __future__ import annotations

import ssl
from time import perf_counter
from typing import Final
from urllib.parse import urlsplit

import gevent
import gevent.ssl
import httptools
import msgspec
import orjson
from gevent import socket

from loadtest.deltas import Reader, reader_of
from loadtest.replies import Reading, Reply
from loadtest.samples import Marks

_READ: Final = 65_536
_STALE: Final = (ConnectionError, ssl.SSLError)


class Endpoint(msgspec.Struct, frozen=True):
    """Where requests go, and the headers all of them bear."""

    host: str
    port: int
    is_tls: bool = False
    base_path: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    verifies: bool = True
    """Whether a certificate must be good."""

    @classmethod
    def of(cls, url: str, *, api_key: str | None = None, verifies: bool = True) -> Endpoint:
        """From `http://host:port`, with or without `/v1` at the end. Raises ValueError."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https URL")
        is_tls = parts.scheme == "https"
        return cls(
            host=parts.hostname,
            port=parts.port or (443 if is_tls else 80),
            is_tls=is_tls,
            base_path=parts.path.rstrip("/").removesuffix("/v1"),
            headers=(("Authorization", f"Bearer {api_key}"),) if api_key else (),
            verifies=verifies,
        )

    @property
    def authority(self) -> str:
        """Host and port, an address of IPv6 in its brackets."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Without `/v1`."""
        return f"{'https' if self.is_tls else 'http'}://{self.authority}{self.base_path}"


class Client:
    """One endpoint's connections, idle ones on a stack. For one gevent hub."""

    def __init__(self, endpoint: Endpoint, timeout_s: float = 600.0) -> None:
        self.endpoint = endpoint
        self.opened = 0
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        self._tls = _tls(endpoint) if endpoint.is_tls else None

    def __repr__(self) -> str:
        return f"<Client of {self.endpoint.url}, {len(self._idle)} idle>"

    def post(
        self, path: str, body: object, marks: Marks, headers: tuple[tuple[str, str], ...] = ()
    ) -> Reply:
        """Send a JSON body and read the reply to its end. Never raises for what went wrong."""
        return self._exchange(self._request("POST", path, orjson.dumps(body), headers), path, marks)

    def get(self, path: str) -> Reply:
        """A plain page, such as `/metrics`."""
        marks = Marks(perf_counter())
        return self._exchange(self._request("GET", path, b"", ()), path, marks)

    def close(self) -> None:
        """Close the idle connections; those at work close when they are done."""
        while self._idle:
            self._idle.pop().close()

    def _exchange(self, request: bytes, path: str, marks: Marks) -> Reply:
        reply = Reply(marks)
        try:
            with gevent.Timeout(self._timeout_s):
                self._attempt(request, reader_of(path), reply)
        except gevent.Timeout:
            reply.error = "timeout"
        except OSError as error:
            reply.error = "connect" if reply.status is None else "reset"
            reply.cause = str(error)
        except httptools.HttpParserError:
            reply.error = "garbage"
        if reply.error is not None and marks.ended_s <= marks.sent_s:
            marks.ended_s = perf_counter()
        return reply

    def _attempt(self, request: bytes, reader: Reader, reply: Reply) -> None:
        """One try; another where a kept connection turned out to have been closed meanwhile."""
        reply.marks.sent_s = perf_counter()
        while self._idle:
            connection = self._idle.pop()
            try:
                return self._use(connection, request, reader, reply)
            except _STALE:
                if reply.status is not None:
                    raise
        self.opened += 1
        return self._use(_Connection(self.endpoint, self._tls), request, reader, reply)

    def _use(self, connection: _Connection, request: bytes, reader: Reader, reply: Reply) -> None:
        is_kept = False
        try:
            is_kept = connection.exchange(request, reader, reply)
        finally:
            if is_kept:
                self._idle.append(connection)
            else:
                connection.close()

    def _request(
        self, method: str, path: str, body: bytes, headers: tuple[tuple[str, str], ...]
    ) -> bytes:
        named = {name.lower(): value for name, value in (*self.endpoint.headers, *headers)}
        endpoint = self.endpoint
        lines = [
            f"{method} {endpoint.base_path}{path} HTTP/1.1",
            f"host: {endpoint.authority}",
            "accept: */*",
            *(f"{name}: {value}" for name, value in named.items()),
        ]
        if body:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class _Connection:
    """One socket, and the reply that is being read from it."""

    def __init__(self, endpoint: Endpoint, tls: ssl.SSLContext | None) -> None:
        plain = socket.create_connection((endpoint.host, endpoint.port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            self._socket = plain
        else:
            self._socket = tls.wrap_socket(plain, server_hostname=endpoint.host)

    def exchange(self, request: bytes, reader: Reader, reply: Reply) -> bool:
        """Ask, and read to the end of the reply. Whether the connection may be used again.

        Raises ConnectionError where it ended before a byte of a reply came.
        """
        self._socket.sendall(request)
        reading = Reading(reader, reply)
        while not reading.is_done:
            data = self._socket.recv(_READ)
            now_s = perf_counter()
            if not data:
                if reply.status is None:
                    raise ConnectionResetError("closed before the reply")
                reading.cut_off(now_s)
                return False
            reading.feed(data, now_s)
        return reading.is_kept_alive

    def close(self) -> None:
        self._socket.close()


def _tls(endpoint: Endpoint) -> ssl.SSLContext:
    context: ssl.SSLContext = gevent.ssl.create_default_context()
    if not endpoint.verifies:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
