"""Calls to a gateway over one kept connection, by Python's own library.

One object, one thread. What is answered is an Answer, whatever its status; what is not is Away.
`base` is the gateway's address, with or without `/v1`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from serving.jobs.pace import retry_after_s

_READ_BYTES = 256 * 1024
LATER = frozenset({429, 502, 503, 504})
"""Statuses that say: not now. The same call may be made again."""


class Away(Exception):
    """No whole answer came: the gateway is not there, or went away meanwhile."""


class BadAddress(Exception):
    """The URL, the key or the certificate of the gateway cannot be used; time will not help."""


@dataclass(frozen=True)
class Answer:
    """What came back; `retry_after_s` is None where the gateway did not say."""

    status: int
    body: bytes
    retry_after_s: float | None = None

    def json(self) -> Any:
        """Raises ValueError if it is no JSON."""
        return json.loads(self.body)

    def message(self) -> str:
        """What went wrong, in the words of OpenAI's error shape, or the body's first ones."""
        try:
            return str(self.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return self.body[:200].decode("utf-8", "replace").strip() or f"status {self.status}"


def read_key(path: str | None) -> str | None:
    """The API key in a file. Raises OSError, BadAddress if it is empty or cannot be a header."""
    if path is None:
        return None
    key = Path(path).read_text(encoding="utf-8").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise BadAddress(f"{path} holds no API key")
    return key


class Calls:
    """A connection to the gateway, opened when it is needed and kept while it can be."""

    def __init__(self, base: str, key: str | None = None, timeout_s: float = 60.0) -> None:
        """Connects to nothing yet. Raises BadAddress."""
        try:
            parts = urlsplit(base if "://" in base else f"http://{base}")
            port = parts.port
        except ValueError as error:
            raise BadAddress(f"{base} is no URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadAddress(f"{base} is no http or https URL")
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Accept": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, port, timeout=timeout_s, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, port, timeout=timeout_s)

    def close(self) -> None:
        """The next call opens it again."""
        self._connection.close()

    def get(self, path: str) -> Answer:
        """Raises Away, BadAddress."""
        return self._answer("GET", path, None, {})

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        """A JSON body. Raises Away, BadAddress."""
        return self._answer(
            "POST", path, body, {"Content-Type": "application/json", **(headers or {})}
        )

    def upload(self, path: str, name: str, content: IO[bytes], size: int) -> Answer:
        """A file of `size` bytes for the Batch API, as a form, as it is read.

        Raises Away, BadAddress.
        """
        edge = "headrace-job-7f1c9e7a3b5d"
        head = (
            f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{edge}--\r\n".encode()
        headers = {
            "Content-Type": f"multipart/form-data; boundary={edge}",
            "Content-Length": str(len(head) + size + len(tail)),
        }

        def pieces() -> Iterator[bytes]:
            yield head
            content.seek(0)
            while piece := content.read(_READ_BYTES):
                yield piece
            yield tail

        return self._answer("POST", path, pieces(), headers)

    def download(self, path: str, into: IO[bytes]) -> Answer:
        """Writes the body of an answer with 200 to `into`, from its start.

        Raises Away, BadAddress.
        """
        try:
            response = self._sent("GET", path, None, {})
            if response.status != 200:
                return self._read(response)
            into.seek(0)
            into.truncate()
            expected = int(response.headers["Content-Length"])
            while piece := response.read(_READ_BYTES):
                into.write(piece)
            if into.tell() != expected:  # http.client takes a body that is cut short for its end
                raise http.client.IncompleteRead(b"", expected - into.tell())
        except (OSError, http.client.HTTPException) as error:
            raise self._gone(error) from error
        return Answer(200, b"")

    def _answer(
        self, method: str, path: str, body: bytes | Iterable[bytes] | None, more: Mapping[str, str]
    ) -> Answer:
        try:
            return self._read(self._sent(method, path, body, more))
        except (OSError, http.client.HTTPException) as error:
            raise self._gone(error) from error

    def _sent(
        self, method: str, path: str, body: bytes | Iterable[bytes] | None, more: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        with contextlib.suppress(BrokenPipeError):  # refused before it had read all: read why
            self._connection.request(method, self._path + path, body, {**self._headers, **more})
        return self._connection.getresponse()

    def _read(self, response: http.client.HTTPResponse) -> Answer:
        wait_s = retry_after_s(response.headers.get("Retry-After"), time.time())
        return Answer(response.status, response.read(), wait_s)

    def _gone(self, error: Exception) -> Exception:
        self.close()
        if isinstance(error, ssl.SSLCertVerificationError):
            return BadAddress(f"{error} (SSL_CERT_FILE names the authorities that are trusted)")
        return Away(str(error) or type(error).__name__)
