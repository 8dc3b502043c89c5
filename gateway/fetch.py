"""One small, bounded question over HTTP: how a replica is, what a policy says.

Not a client for anything else: no redirects, no cookies, no kept connections, no bodies over 1 MiB.
An HTTP client library would cost more memory than the rest of the gateway for a few requests a
second.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from typing import Final
from urllib.parse import urlsplit

import httptools

from gateway.vocabulary import Seconds

MAX_BODY_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = 64 * 1024


class FetchFailed(Exception):
    """No answer, or not one that can be used; the message says why, for the log."""


async def fetch(
    url: str,
    *,
    timeout_s: Seconds,
    tls: ssl.SSLContext | None,
    method: str = "GET",
    body: bytes = b"",
) -> tuple[int, bytes]:
    """Ask `url`: its status and whole body; `timeout_s` is from the look-up to the last byte.
    `body` is JSON, for a POST.

    `tls` is how https is trusted; None: as the machine trusts. Raises FetchFailed for everything
    that may go wrong on the way; a status is not judged here. The connection is gone when this
    returns.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(url, method, body, tls)
    except TimeoutError as error:
        raise FetchFailed(f"no answer within {timeout_s:g} s") from error
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        raise FetchFailed(f"not HTTP as we asked for it: {error}") from error
    except (OSError, ValueError) as error:
        # ValueError: a host name that IDNA refuses
        raise FetchFailed(str(error) or type(error).__name__) from error


async def _ask(url: str, method: str, body: bytes, tls: ssl.SSLContext | None) -> tuple[int, bytes]:
    parts = urlsplit(url)
    trust = (tls or _system_trust()) if parts.scheme == "https" else None
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=trust)
    length = "" if method == "GET" else f"Content-Length: {len(body)}\r\n"
    kind = "Content-Type: application/json\r\n" if body else ""
    try:
        writer.write(
            f"{method} {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n{length}{kind}"
            "User-Agent: headrace\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode("ascii")
            + body
        )
        answer = Answer()
        while not answer.is_complete:
            answer.feed(await reader.read(_READ_BYTES))
        return answer.status, bytes(answer.body)
    finally:
        writer.transport.abort()  # nothing is owed to the other side, and nobody waits for it


class Answer:
    """One response, fed as it arrives; the methods named `on_` are called by httptools."""

    def __init__(self, most_bytes: int = MAX_BODY_BYTES) -> None:
        """Of the body no more than `most_bytes` may be here at once."""
        self.status = 0
        self.body = bytearray()
        self.is_complete = False
        self._most_bytes = most_bytes
        self._is_framed = False  # the end is told by a length or by chunks, not by closing
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, received: bytes) -> None:
        """Take in bytes; none means that the other side has ended.

        Raises httptools' errors for what is not HTTP, ConnectionError for an end that comes too
        early, ValueError for a body that is too large.
        """
        if received:
            self._parser.feed_data(received)
        elif not self.status or self._is_framed:
            raise ConnectionError("the connection closed before the answer was complete")
        else:
            self.is_complete = True
        if len(self.body) > self._most_bytes:
            raise ValueError(f"the answer is larger than {self._most_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._is_framed |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self.is_complete = True
        else:  # 100 Continue and its kind: the answer itself is still to come
            self.status = 0
            self._is_framed = False


@functools.cache
def _system_trust() -> ssl.SSLContext:
    """Made when first needed: it reads all the authorities of the machine, over a megabyte."""
    return ssl.create_default_context()
