"""A replica's own POST /tokenize: how it reads a prompt, where we cannot.

The answer has the same tokens as the prompt will have, template and all, and the strings they are
written with. Where contents stand in them is worked out by `layout`: for each model and each set of
tools and template variables, some short conversations are tried on the replica first, and again
after a while, for engines are started anew and some templates write the date. Prompts that we could
not be sure of are not asked about: images and the like decide more than tokens.

Invariant. No more than one set of trials runs at a time, whatever waits for it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httptools
import msgspec

from gateway.kv_cache import Tokenised
from gateway.request import GenerationRequest
from gateway.tokens.layout import Layout, edges, learn, trials
from gateway.tokens.prompts import ChatPrompt, TextPrompt, Unreadable, cache_salt, read_prompt
from gateway.tokens.token_text import READINGS, Reading, byte_level
from gateway.vocabulary import Seconds

if TYPE_CHECKING:
    from ssl import SSLContext

MOST_BYTES: Final = 64 * 1024 * 1024
"""Of an answer: a million tokens, their strings and commas are 20 MB."""

KEPT_LAYOUTS: Final = 256
LAYOUT_S: Final[Seconds] = 600.0
"""Trials are made anew after so long; after a failure, sooner."""

FAILED_S: Final[Seconds] = 10.0

_READ_BYTES: Final = 256 * 1024


class NotTold(Exception):
    """No answer, or not one that can be used; the message says why."""


class _Answer(msgspec.Struct):
    tokens: list[int]
    token_strs: list[str] | None = None


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_Known = tuple[Reading, Layout]


class Question(msgspec.Struct, frozen=True):
    """What a replica is asked: `rest` are the members beside the prompt itself."""

    prompt: ChatPrompt | TextPrompt
    rest: dict[str, Any]
    raw: bytes

    @property
    def body(self) -> bytes:
        """To be posted."""
        if isinstance(self.prompt, TextPrompt):
            return msgspec.json.encode({**self.rest, "prompt": self.prompt.text})
        return msgspec.json.encode({**self.rest, "messages": _messages(self.raw)})


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


def question(request: GenerationRequest) -> Question:
    """Raises Unreadable."""
    prompt = read_prompt(request)
    rest: dict[str, Any] = {"model": request.model, "return_token_strs": True}
    if isinstance(prompt, TextPrompt):
        rest["add_special_tokens"] = prompt.add_special_tokens
    elif isinstance(prompt, ChatPrompt) and request.route.path == "/v1/chat/completions":
        for name, part in request.context:
            if name in ("tools", "add_generation_prompt", "add_special_tokens"):
                rest[name] = msgspec.Raw(bytes(part))
        variables = dict(prompt.variables)
        del variables["add_generation_prompt"]
        rest["chat_template_kwargs"] = variables
    else:
        raise Unreadable("a replica cannot be asked about such a prompt")
    return Question(prompt, rest, bytes(request.prompt))


class Remote:
    """Asks replicas, and remembers how their models lay messages out."""

    def __init__(self, timeout_s: Seconds, ssl: SSLContext | None, thread: Executor) -> None:
        """`thread` does what would hold up the event loop."""
        self._timeout_s = timeout_s
        self._ssl = ssl
        self._thread = thread
        self._layouts: OrderedDict[bytes, tuple[Seconds, _Known | None]] = OrderedDict()
        self._learning = asyncio.Lock()

    async def read(
        self,
        request: GenerationRequest,
        url: str,
        adapter: str | None,
        early: Callable[[Tokenised], None],
    ) -> Tokenised:
        """Raises Unreadable, NotTold. `early` is told the tokens as soon as they are known, with
        no edge inside the prompt yet."""
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(self._thread, question, request)
        answer = await self._ask(url, asked.body)
        if answer is None:
            raise NotTold("/tokenize refuses the prompt")
        salt, tokens = cache_salt(request), answer.tokens
        whole = Tokenised(tokens, [(len(asked.raw), len(tokens))], salt, adapter)
        if answer.token_strs is None or len(answer.token_strs) != len(tokens):
            return whole
        early(whole)
        known = await self._layout(asked, url) if isinstance(asked.prompt, ChatPrompt) else None
        found = await loop.run_in_executor(self._thread, _edges, asked, answer, known)
        return Tokenised(tokens, found, salt, adapter)

    async def _layout(self, asked: Question, url: str) -> _Known | None:
        """How it lays out chats that are asked about with the same other members."""
        key, loop = msgspec.json.encode(asked.rest), asyncio.get_running_loop()
        async with self._learning:
            until, known = self._layouts.get(key, (0.0, None))
            if loop.time() >= until:
                known = await self._try(asked, url)
                lasts = FAILED_S if known is None else LAYOUT_S
                self._layouts[key] = (loop.time() + lasts, known)
            self._layouts.move_to_end(key)
            if len(self._layouts) > KEPT_LAYOUTS:
                self._layouts.popitem(last=False)
            return known

    async def _try(self, asked: Question, url: str) -> _Known | None:
        answers: list[_Answer | None] = []
        for messages in trials():
            body = msgspec.json.encode({**asked.rest, "messages": messages})
            try:
                answers.append(await self._ask(url, body))
            except NotTold:
                return None
        return _learnt(answers)

    async def _ask(self, url: str, body: bytes) -> _Answer | None:
        """None where it finds something wrong with the question. Raises NotTold."""
        try:
            async with asyncio.timeout(self._timeout_s):
                status, answer = await _post(url, body, self._ssl)
            if status == 400:
                return None
            if status != 200:
                raise NotTold(f"/tokenize answered with status {status}")
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, _ANSWER.decode, answer)
        except TimeoutError:
            raise NotTold(f"/tokenize did not answer within {self._timeout_s:g} s") from None
        except (OSError, ValueError, httptools.HttpParserError, msgspec.DecodeError) as error:
            raise NotTold(f"/tokenize: {error or type(error).__name__}") from error


# On the thread


def _learnt(answers: list[_Answer | None]) -> _Known | None:
    """Read as that kind of token strings in which contents are found."""
    for reading in READINGS:
        layout = learn(
            [
                None if each is None else reading(each.tokens, each.token_strs or [])
                for each in answers
            ]
        )
        if layout.between:
            return reading, layout
    return None


def _edges(asked: Question, answer: _Answer, known: _Known | None) -> list[tuple[int, int]]:
    reading, layout = known if known is not None else (byte_level, None)
    text = reading(answer.tokens, answer.token_strs or [])
    return edges(asked.prompt, asked.raw, text, layout)


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
