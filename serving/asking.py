"""Short questions over HTTP to processes of ours: one connection each, nothing to install.

Made for the short documents that an engine answers with a length: a chunked body is returned as it
came.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: its status and its body."""

    status: int
    body: bytes


async def ask(
    host: str,
    port: int,
    path: str,
    body: bytes | None = None,
    timeout_s: float = 2.0,
    tls: ssl.SSLContext | None = None,
) -> Answer | None:
    """GET `path`, or POST `body` (JSON) there, over TLS if `tls` is given; None if no whole answer
    comes in time."""
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port, ssl=tls)
            try:
                writer.write(f"{head}Connection: close\r\n\r\n".encode() + (body or b""))
                return _answer(await reader.read())
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None


async def answers(
    host: str, port: int, path: str, timeout_s: float = 2.0, tls: ssl.SSLContext | None = None
) -> bool:
    """True if GET `path` is answered with 200 in time."""
    return await fetch(host, port, path, timeout_s, tls) is not None


async def fetch(
    host: str, port: int, path: str, timeout_s: float = 2.0, tls: ssl.SSLContext | None = None
) -> bytes | None:
    """The body with which GET `path` is answered; None unless that is with 200 and in time."""
    answer = await ask(host, port, path, timeout_s=timeout_s, tls=tls)
    return answer.body if answer is not None and answer.status == 200 else None


def _answer(said: bytes) -> Answer | None:
    """None for what is not the beginning of a response."""
    head, _, body = said.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or words[0] != b"HTTP/1.1" or not words[1].isdigit():
        return None
    return Answer(int(words[1]), body)
