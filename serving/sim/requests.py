"""The requests of the generating routes, as far as the simulator reads them.

Unknown fields pass, as in vLLM. Each request knows its `Limits` and its prompts as text or tokens.
"""

from http import HTTPStatus
from typing import Any, TypeVar

import msgspec

from serving.sim.api_errors import ApiError, bad_request, malformed
from serving.sim.call import Call
from serving.sim.tokens import Message

TextPart = dict[str, Any]
T = TypeVar("T")


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Limits(msgspec.Struct, frozen=True):
    """What ends a reply."""

    max_tokens: int | None = None
    least_tokens: int = 0
    stops: tuple[str, ...] = ()
    ignores_end: bool = False


class _Sampled(msgspec.Struct, kw_only=True):
    """Fields every generating route shares."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    n: int | None = 1
    min_tokens: int = 0
    ignore_eos: bool = False
    cache_salt: str | None = None
    vllm_xargs: dict[str, Any] | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        options = self.stream_options
        return self.include_usage and bool(options and options.continuous_usage_stats)

    @property
    def announces_reuse(self) -> bool:
        return (self.vllm_xargs or {}).get("kv_cache_report_mode") == "full"

    def check(self) -> None:
        """Raise ApiError for what a type cannot say."""
        if self.n not in (None, 1):
            raise bad_request("the simulated replica answers with n=1 only", "n")

    def limits_of(self, max_tokens: int | None) -> Limits:
        if max_tokens is not None and max_tokens < 1:
            raise bad_request(f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Limits(max_tokens, self.min_tokens, stops, self.ignore_eos)


class ChatMessage(msgspec.Struct):
    """One message; whatever else it carries is not rendered."""

    role: str
    content: str | list[TextPart] | None = None

    def rendered(self) -> Message:
        return self.role, plain_text(self.content)


class ChatRequest(_Sampled, kw_only=True):
    """POST /v1/chat/completions"""

    messages: list[ChatMessage]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    def check(self) -> None:
        super().check()
        if not self.messages:
            raise bad_request("messages must not be empty", "messages")
        if self.continue_final_message and self.add_generation_prompt:
            raise bad_request(
                "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
            )

    @property
    def limits(self) -> Limits:
        return self.limits_of(self.max_completion_tokens or self.max_tokens)


class CompletionRequest(_Sampled, kw_only=True):
    """POST /v1/completions"""

    prompt: str | list[Any]
    max_tokens: int | None = 16
    echo: bool | None = False

    @property
    def limits(self) -> Limits:
        return self.limits_of(self.max_tokens)


class ResponsesRequest(_Sampled, kw_only=True):
    """POST /v1/responses"""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    metadata: dict[str, str] | None = None

    @property
    def limits(self) -> Limits:
        return self.limits_of(self.max_output_tokens)

    def messages(self) -> list[Message]:
        """The conversation; items that are no messages are rendered as their JSON."""
        first = [("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*first, ("user", self.input)]
        return [*first, *(_item_message(item) for item in self.input)]


class MessagesRequest(msgspec.Struct, kw_only=True):
    """POST /v1/messages, and /v1/messages/count_tokens without its limits."""

    model: str
    messages: list[ChatMessage]
    system: str | list[TextPart] | None = None
    max_tokens: int = 1
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    tools: list[dict[str, Any]] | None = None

    @property
    def limits(self) -> Limits:
        if self.max_tokens < 1:
            raise bad_request("max_tokens must be at least 1", "max_tokens")
        return Limits(self.max_tokens, stops=tuple(self.stop_sequences or ()))

    def conversation(self) -> list[Message]:
        first = [("system", plain_text(self.system))] if self.system else []
        return [*first, *(message.rendered() for message in self.messages)]


async def read(call: Call, kind: type[T]) -> T:
    """The body of a call as a request. Raises ApiError, and ClientLeftError."""
    body = await call.body()
    media_type = (call.header(b"content-type") or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
        )
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise malformed(error) from error


def plain_text(content: str | list[TextPart] | None) -> str:
    """Text parts as they are, other parts as their JSON, so that they too tell prompts apart."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(_part_text(part) for part in content)


def tools_message(tools: list[dict[str, Any]] | None) -> list[Message]:
    """Tools as a first message of the conversation."""
    return [("tools", _json(tools))] if tools else []


def _part_text(part: TextPart) -> str:
    text = part.get("text")
    return text if isinstance(text, str) else _json(part)


def _item_message(item: dict[str, Any]) -> Message:
    content = item.get("content")
    if isinstance(content, str | list):
        return str(item.get("role", "user")), plain_text(content)
    return "item", _json(item)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
