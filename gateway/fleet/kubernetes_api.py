"""A Kubernetes API server, asked: one request on a connection of its own, read as it comes.

The official client says where and as whom (`kubernetes_access`); the requests are ours, so that a
watch that is no longer wanted ends with its task instead of blocking a thread, and so that an
object that is not what its schema says is one unreadable object and not a broken watch.

Everything that may go wrong is a Refused (it was answered, with an error) or an Unreachable.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlencode

import httptools

from gateway.fetch import Answer
from gateway.fleet.kubernetes_access import Access
from gateway.fleet.kubernetes_objects import read_status
from gateway.section import SettingsError
from gateway.vocabulary import Seconds

ANSWER_S: Final[Seconds] = 30.0
"""From the look-up to the end of an answer; of a watch, to its head."""
OVERTIME_S: Final[Seconds] = 5.0
"""So much longer than agreed a watch may last before its connection is called dead."""
RETRY_AFTER_MAX_S: Final[Seconds] = 300.0  # longer we do not leave it alone, whatever it says
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
MAX_LINE_BYTES: Final = 8 * 1024 * 1024  # of a watch; an object has 1.5 MB at most
_READ_BYTES: Final = 64 * 1024


class Refused(Exception):
    """Answered with an error: an HTTP status, and for how long to leave it alone."""

    def __init__(self, status: int, message: str, retry_after_s: Seconds) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
        self.retry_after_s = min(retry_after_s, RETRY_AFTER_MAX_S)


class Unreachable(Exception):
    """No answer, or not a whole one; the message says why."""


class KubernetesApi:
    """The server behind an Access."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def __repr__(self) -> str:
        return f"<KubernetesApi at {self._access.url.geturl()}>"

    async def renew(self) -> None:
        """Our token was not accepted: read it again. Raises Unreachable."""
        try:
            await asyncio.to_thread(self._access.load)
        except SettingsError as error:
            raise Unreachable(str(error)) from error

    async def get(self, path: str, query: Mapping[str, str]) -> bytes:
        """The body of the answer. Raises Refused, Unreachable."""
        return await self._whole("GET", f"{path}?{urlencode(query)}", b"")

    async def merge(self, path: str, patch: bytes) -> None:
        """Change an object by a JSON merge patch. Raises Refused, Unreachable."""
        await self._whole("PATCH", path, patch)

    async def watch(
        self,
        path: str,
        query: Mapping[str, str],
        lasting_s: Seconds,
        take: Callable[[list[bytes]], None],
    ) -> None:
        """Give `take` the lines of a watch as they come, until the server ends it in order.

        Raises Refused, Unreachable if it ends in any other way, and what `take` raises: a
        ValueError of its own as Unreachable.
        """
        async with (
            _errors(),
            asyncio.timeout(lasting_s + OVERTIME_S),
            self._asked("GET", f"{path}?{urlencode(query)}", b"") as answer,
        ):
            rest = b""
            while not answer.is_complete or answer.body:
                *lines, rest = (rest + answer.taken()).split(b"\n")
                if len(rest) > MAX_LINE_BYTES:
                    raise ValueError(f"a line is longer than {MAX_LINE_BYTES} bytes")
                if lines:
                    take(lines)
                if not answer.is_complete:
                    await answer.more()

    async def _whole(self, method: str, target: str, content: bytes) -> bytes:
        async with (
            _errors(),
            asyncio.timeout(ANSWER_S),
            self._asked(method, target, content) as answer,
        ):
            await answer.rest()
            return bytes(answer.body)

    @asynccontextmanager
    async def _asked(self, method: str, target: str, content: bytes) -> AsyncIterator[_Answer]:
        """An answer whose head is here, and says that all is well. Raises Refused."""
        access = self._access
        async with asyncio.timeout(ANSWER_S):
            authorization = await asyncio.to_thread(access.authorization)
            reader, writer = await self._connected()
        try:
            lines = [
                f"{method} {access.url.path}{target} HTTP/1.1",
                f"Host: {access.url.netloc}",
                "User-Agent: headrace",
                "Accept: application/json",
                "Connection: close",
                *([f"Authorization: {authorization}"] if authorization else ()),
                *(
                    (
                        "Content-Type: application/merge-patch+json",
                        f"Content-Length: {len(content)}",
                    )
                    if content
                    else ()
                ),
            ]
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + content)
            answer = _Answer(reader)
            async with asyncio.timeout(ANSWER_S):
                while not answer.status:
                    await answer.more()
                if not 200 <= answer.status < 300:
                    await answer.rest()
                    raise answer.refusal()
            yield answer
        finally:
            writer.transport.abort()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        access = self._access
        host, port, tls = access.url.hostname, access.url.port, access.tls
        if tls is None:
            return await asyncio.open_connection(host, port or 80)
        name = access.server_name or host
        return await asyncio.open_connection(host, port or 443, ssl=tls, server_hostname=name)


@asynccontextmanager
async def _errors() -> AsyncIterator[None]:
    """Whatever goes wrong inside is Refused or Unreachable."""
    try:
        yield
    except TimeoutError as error:
        raise Unreachable("no answer in time") from error
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        raise Unreachable(f"not HTTP as we asked for it: {error}") from error
    except (OSError, ValueError, SettingsError) as error:
        raise Unreachable(str(error) or type(error).__name__) from error


class _Answer(Answer):
    """One that is read as it is needed, and may say when to come again."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(MAX_BODY_BYTES)
        self._reader = reader
        self._retry_after = b""

    async def more(self) -> None:
        """Read on. Raises ConnectionError for an end that comes too early, ValueError for a body
        that is too large, httptools' errors for what is not HTTP."""
        self.feed(await self._reader.read(_READ_BYTES))

    async def rest(self) -> None:
        """Read to its end."""
        while not self.is_complete:
            await self.more()

    def taken(self) -> bytes:
        """What of the body has come since it was last taken."""
        piece = bytes(self.body)
        self.body.clear()
        return piece

    def refusal(self) -> Refused:
        """What an error says."""
        said = read_status(bytes(self.body))
        text = self._retry_after.decode("latin-1")
        asked_s = float(text) if text.isdecimal() and len(text) < 6 else said.retry_after_s
        return Refused(self.status, (said.message or "")[:300], asked_s)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if name.lower() == b"retry-after":
            self._retry_after = value
