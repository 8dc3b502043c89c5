"""A replica's own POST /tokenize: how it reads a prompt, where we cannot.

The answer has the same tokens as the prompt will have, template and all, but tells nothing of where
they come from: only the whole prompt is known by it. Prompts that we could not be sure of are not
asked about either: images and the like decide more than tokens.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httptools
import msgspec

from gateway.tokens.prompts import ChatPrompt, TextPrompt, Unreadable, read_prompt
from gateway.vocabulary import GenerationRequest, Seconds

if TYPE_CHECKING:
    from ssl import SSLContext

MOST_BYTES: Final = 32 * 1024 * 1024
"""Of an answer: a million tokens with their commas are 8 MB."""

_READ_BYTES: Final = 256 * 1024


class NotTold(Exception):
    """No answer, or not one that can be used; the message says why."""


class _Answer(msgspec.Struct):
    tokens: list[int]


_ANSWER: Final = msgspec.json.Decoder(_Answer)


def question(request: GenerationRequest) -> bytes:
    """The body to ask with. Raises Unreadable."""
    prompt = read_prompt(request)
    asked: dict[str, Any] = {"model": request.model}
    if isinstance(prompt, TextPrompt):
        asked |= {"prompt": prompt.text, "add_special_tokens": prompt.add_special_tokens}
    elif isinstance(prompt, ChatPrompt) and request.route.path == "/v1/chat/completions":
        asked["messages"] = _messages(bytes(request.prompt))
        for name, part in request.context:
            if name in ("tools", "add_generation_prompt", "add_special_tokens"):
                asked[name] = msgspec.Raw(bytes(part))
        variables = dict(prompt.variables)
        del variables["add_generation_prompt"]
        asked["chat_template_kwargs"] = variables
    else:
        raise Unreadable("a replica cannot be asked about such a prompt")
    return msgspec.json.encode(asked)


def _messages(raw: bytes) -> Any:
    """As they stand; but /tokenize does not know the old name of `reasoning`, as chats do."""
    if b"reasoning_content" not in raw:
        return msgspec.Raw(raw)
    messages: list[dict[str, Any]] = msgspec.json.decode(raw)
    for message in messages:
        reasoning = message.pop("reasoning_content", None)
        if message.get("reasoning") is None and reasoning is not None:
            message["reasoning"] = reasoning
    return messages


async def ask(url: str, body: bytes, timeout_s: Seconds, ssl: SSLContext | None) -> list[int]:
    """The tokens of a question. Raises NotTold."""
    try:
        async with asyncio.timeout(timeout_s):
            status, answer = await _post(url, body, ssl)
        if status != 200:
            raise NotTold(f"/tokenize answered with status {status}")
        return _ANSWER.decode(answer).tokens
    except TimeoutError:
        raise NotTold(f"/tokenize did not answer within {timeout_s:g} s") from None
    except (OSError, ValueError, httptools.HttpParserError, msgspec.DecodeError) as error:
        raise NotTold(f"/tokenize: {error or type(error).__name__}") from error


async def _post(url: str, body: bytes, ssl: SSLContext | None) -> tuple[int, bytes]:
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    if is_tls and ssl is None:
        raise ValueError("https needs an SSL context")
    reader, writer = await asyncio.open_connection(
        parts.hostname, parts.port, ssl=ssl if is_tls else None
    )
    try:
        writer.write(
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: headrace\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode("ascii")
            + body
        )
        response = _Response()
        while not response.is_complete:
            received = await reader.read(_READ_BYTES)
            if not received:
                raise ConnectionError("the connection closed before the answer was complete")
            response.feed(received)
        return response.status, bytes(response.body)
    finally:
        writer.transport.abort()  # nothing is owed to the other side


class _Response:
    """One response, fed as it arrives; the methods named `on_` are called by httptools."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.is_complete = False
        self._parser = httptools.HttpResponseParser(self)

    @property
    def status(self) -> int:
        status: int = self._parser.get_status_code()
        return status

    def feed(self, received: bytes) -> None:
        """Raises httptools' errors for what is not HTTP, ValueError for a body too large."""
        self._parser.feed_data(received)
        if len(self.body) > MOST_BYTES:
            raise ValueError(f"the answer is larger than {MOST_BYTES} bytes")

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        self.is_complete = True
