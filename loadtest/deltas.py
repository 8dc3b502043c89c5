"""What one event of a stream, or one unary body, says: output, usage, an error.

Pure. `Events` cuts a byte stream into the data of server-sent events, wherever it was cut on its
way; `reader_of` gives what understands a route's data. What is no JSON we know is no output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

DONE: Final = b"[DONE]"


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request, as the endpoint counted them; None where it does not say."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


class Delta(msgspec.Struct, frozen=True):
    """One event."""

    is_output: bool = False
    text: str = ""
    """What a next turn would repeat of it: not reasoning, not tool calls."""
    usage: Usage | None = None
    error: str | None = None


NOTHING: Final = Delta()
Reader = Callable[[bytes], Delta]


class Events:
    """Bytes in, the data of whole events out."""

    __slots__ = ("_data", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def __repr__(self) -> str:
        return f"<Events, {len(self._rest)} bytes of a line>"

    def feed(self, data: bytes) -> list[bytes]:
        """The events that end in `data`; several data lines of one are joined by newlines."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = []
        for line in lines:
            if line[:5] == b"data:":
                self._data.append(line[5:].strip())
            elif line in (b"", b"\r") and self._data:
                found.append(b"\n".join(self._data))
                self._data = []
        return found


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """Both vocabularies: `prompt` and `completion`, or `input` and `output`."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _PromptDetails | None = None

    def plain(self) -> Usage:
        details = self.prompt_tokens_details or self.input_tokens_details
        prompt = self.input_tokens if self.prompt_tokens is None else self.prompt_tokens
        output = self.output_tokens if self.completion_tokens is None else self.completion_tokens
        return Usage(prompt, output, None if details is None else details.cached_tokens)


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Message(msgspec.Struct):
    """A `delta` of a stream, or the `message` of a whole reply."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None

    @property
    def is_output(self) -> bool:
        if self.content or self.reasoning or self.reasoning_content or self.refusal:
            return True
        functions = [call.function for call in self.tool_calls or () if call.function is not None]
        return any(function.name or function.arguments for function in functions)


class _Choice(msgspec.Struct):
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None


class _Completion(msgspec.Struct):
    """An event or a body of chat and text completions, and a body of embeddings."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


class _Content(msgspec.Struct):
    text: str = ""


class _Item(msgspec.Struct):
    content: list[_Content] | None = None


class _Response(msgspec.Struct):
    """A body of the responses route, or what its last event carries."""

    output: list[_Item] = []
    usage: _Usage | None = None


class _ResponseEvent(msgspec.Struct):
    type: str = ""
    delta: object = None
    response: _Response | None = None
    output: list[_Item] = []
    usage: _Usage | None = None


_completion: Final = msgspec.json.Decoder(_Completion)
_response: Final = msgspec.json.Decoder(_ResponseEvent)


def read_completion(data: bytes) -> Delta:
    """One event of `/v1/chat/completions` or `/v1/completions`, or a whole body of theirs."""
    try:
        event = _completion.decode(data)
    except msgspec.MsgspecError:
        return NOTHING if data == DONE else Delta(error="garbage")
    if event.error is not None:
        return Delta(error="error_event")
    is_output, text = False, ""
    for choice in event.choices:
        message = choice.delta or choice.message
        if message is not None:
            is_output = is_output or message.is_output
            text += message.content or ""
        if choice.text:
            is_output, text = True, text + choice.text
    return Delta(is_output, text, None if event.usage is None else event.usage.plain())


def read_response(data: bytes) -> Delta:
    """One event of `/v1/responses`, or a whole body of it."""
    try:
        event = _response.decode(data)
    except msgspec.MsgspecError:
        return NOTHING if data == DONE else Delta(error="garbage")
    if event.type in ("error", "response.failed"):
        return Delta(error="error_event")
    if event.type.endswith(".delta"):
        piece = event.delta if isinstance(event.delta, str) else ""
        is_text = event.type == "response.output_text.delta"
        return Delta(bool(piece), piece if is_text else "")
    usage = event.usage or (event.response.usage if event.response is not None else None)
    text = "".join(part.text for item in event.output for part in item.content or ())
    return Delta(bool(text), text, None if usage is None else usage.plain())


def reader_of(path: str) -> Reader:
    """What reads the events and bodies of this route."""
    return read_response if path.endswith("/responses") else read_completion
