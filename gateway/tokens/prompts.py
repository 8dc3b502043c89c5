"""A request's prompt, as the engine's own front turns it into input for a chat template.

What vLLM does to messages, tools and their defaults is repeated here for text, so that the same
template gives the same text. Whatever we cannot be sure of (images, a template in the request, a
conversation kept at the engine) raises Unreadable: an unknown prompt costs a guess, a wrong one
would be believed.

Invariant: `ends[k]` bytes of the prompt decide `messages[k]` and everything before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.record import Value
from gateway.request import GenerationRequest
from gateway.tokens.json_text import Span, elements, members

Message = dict[str, Any]


class Unreadable(Exception):
    """We cannot tell what the engine reads; the message says why, for whoever asks."""


class ChatPrompt(Value, frozen=True):
    """What goes into a chat template.

    `strings` are the places of messages' contents in the prompt, where a content is one string and
    its message's role stands before it.
    """

    messages: list[Message]
    ends: list[int]
    strings: list[Span | None]
    tools: list[dict[str, Any]] | None
    variables: dict[str, Any]
    add_special_tokens: bool


class TextPrompt(Value, frozen=True):
    """Text to be read as it is. `string` is its place in the prompt."""

    text: str
    string: Span
    add_special_tokens: bool


class TokenPrompt(Value, frozen=True):
    """Token ids. `array` is their place in the prompt."""

    tokens: list[int]
    array: Span


Prompt = ChatPrompt | TextPrompt | TokenPrompt

_REFUSED: Final = (
    "chat_template",
    "continue_final_message",
    "documents",
    "echo",
    "mm_processor_kwargs",
    "output_config",
    "previous_response_id",
    "prompt_embeds",
    "reasoning",
    "suffix",
    "truncate_prompt_tokens",
)
"""Members that change the prompt in ways we do not follow, unless they are null or false."""

_NOT_VARIABLES: Final = frozenset({"chat_template", "tokenize", "messages", "tools", "documents"})
_BILLING: Final = "x-anthropic-billing-header"
"""A first line of system prompts that changes with every request; vLLM drops it."""


def read_prompt(request: GenerationRequest) -> Prompt:
    """The prompt of a request that generates, or of POST /tokenize. Raises Unreadable."""
    raw = bytes(request.prompt)
    context = {name: _decoded(part) for name, part in request.context}
    for name in _REFUSED:
        if context.get(name) not in (None, False):
            raise Unreadable(f"`{name}` is not followed")
    match request.route.path:
        case "/v1/chat/completions":
            return _chat(raw, context)
        case "/v1/completions" | "/tokenize":
            return _completion(raw, context)
        case "/v1/responses":
            return _response(raw, context)
        case "/v1/messages":
            return _anthropic(raw, context)
        case path:
            raise Unreadable(f"the prompts of {path} are not followed")


def cache_salt(request: GenerationRequest) -> str | None:
    """What the client wants mixed into the names of its blocks."""
    for name, part in request.context:
        if name == "cache_salt":
            salt = _decoded(part)
            return salt if isinstance(salt, str) else None
    return None


def _decoded(raw: bytes | memoryview | msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Unreadable("a part of the body cannot be decoded") from None


def _completion(raw: bytes, context: Mapping[str, Any]) -> Prompt:
    prompt = _decoded(raw)
    special = context.get("add_special_tokens") is not False
    place = (0, len(raw))
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        (place,) = elements(raw)
        prompt = prompt[0]
    if isinstance(prompt, str):
        return TextPrompt(prompt, place, special)
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return TokenPrompt(prompt, place)
    raise Unreadable("the prompt is neither one text nor one list of tokens")


def _chat(raw: bytes, context: Mapping[str, Any]) -> ChatPrompt:
    messages = _messages(raw)
    return ChatPrompt(
        messages=[_message(each) for each in messages],
        ends=[end for _, end in elements(raw)],
        strings=_strings(raw, messages),
        tools=_tools(context.get("tools")),
        variables=_variables(context),
        add_special_tokens=context.get("add_special_tokens") is True,
    )


def _response(raw: bytes, context: Mapping[str, Any]) -> ChatPrompt:
    """Instructions become a system message; the input is a text, or messages of plain text."""
    if context.get("tools"):
        raise Unreadable("tools of /v1/responses are not followed")
    strings: list[Span | None]
    given = _decoded(raw)
    if isinstance(given, str):
        messages = [_message({"role": "user", "content": given})]
        ends, strings = [len(raw)], [(0, len(raw)) if len(given) >= LONG else None]
    else:
        messages = [_message(each) for each in _messages(raw)]
        if any(message["role"] == "assistant" for message in messages):
            raise Unreadable("earlier outputs in /v1/responses are not followed")
        ends, strings = [end for _, end in elements(raw)], _strings(raw, _messages(raw))
    instructions = context.get("instructions")
    if isinstance(instructions, str) and instructions:
        messages.insert(0, _message({"role": "system", "content": instructions}))
        ends.insert(0, 0)
        strings.insert(0, None)
    return ChatPrompt(messages, ends, strings, None, _variables(context), False)


def _anthropic(raw: bytes, context: Mapping[str, Any]) -> ChatPrompt:
    """Messages of /v1/messages. Results of tools become messages before the one they stand in, so
    several messages may end at one place."""
    given = _messages(raw)
    messages: list[Message] = []
    ends: list[int] = []
    strings: list[Span | None] = []
    _check_thinking(context.get("thinking"))
    system = _system(context.get("system"))
    if system:
        messages, ends, strings = [{"role": "system", "content": [system]}], [0], [None]
    for each, (_, end), string in zip(given, elements(raw), _strings(raw, given), strict=True):
        made = _converted(each)
        messages += made
        ends += [end] * len(made)
        strings += [string] * len(made)  # one, where the content is a string
    tools = context.get("tools")
    if not isinstance(tools, list | None):
        raise Unreadable("`tools` is not a list")
    shown = None if tools is None else [_tool(_as_function(tool)) for tool in tools]
    return ChatPrompt(messages, ends, strings, shown, _variables(context), False)


def _check_thinking(thinking: Any) -> None:
    """Where it is disabled, the engine tries out what its model understands by that."""
    if thinking is None:
        return
    if not isinstance(thinking, dict) or thinking.get("type") not in ("enabled", "adaptive"):
        raise Unreadable("this `thinking` is not followed")


def _system(system: Any) -> str:
    if not isinstance(system, list):
        return _text(system or "")
    return "".join(text for text in map(_text, system) if not text.startswith(_BILLING))


def _converted(given: Message) -> list[Message]:
    role, content = given["role"], given.get("content")
    if role not in ("user", "assistant"):
        raise Unreadable(f"{role} messages among others are not followed")
    if isinstance(content, str):
        return [{"role": role, "content": [content]}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise Unreadable("a content is neither text nor blocks")
    results: list[Message] = []
    message: Message = {"role": role, "content": []}
    for block in content:
        match block.get("type"):
            case "text":
                message["content"] += [text] if (text := _text(block)) else []
            case "tool_result" if role == "user":
                results.append(_tool_result(block))
            case "tool_use" if role == "assistant":
                function = {"name": block.get("name") or "", "arguments": block.get("input")}
                call = _tool_call({"id": block.get("id"), "function": function})
                message.setdefault("tool_calls", []).append(call)
            case "thinking" if role == "assistant" and isinstance(block.get("thinking"), str):
                thought = message.get("reasoning", "") + block["thinking"]
                message["reasoning"] = message["reasoning_content"] = thought
            case "redacted_thinking":
                pass
            case kind:
                raise Unreadable(f"a content block of type {kind!r} is not followed")
    return results if role == "user" and not message["content"] else [*results, message]


def _tool_result(block: Message) -> Message:
    content = block.get("content") or ""
    texts = [content] if isinstance(content, str) else [_text(part) for part in content]
    text = "\n".join(texts)
    return {"role": "tool", "content": [text], "tool_call_id": block.get("tool_use_id") or ""}


def _as_function(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict) or not isinstance(tool.get("input_schema"), dict):
        raise Unreadable("a tool has no schema")
    function = {name: tool.get(name) for name in ("name", "description", "strict", "defer_loading")}
    schema = {**tool["input_schema"]}
    schema.setdefault("type", "object")
    return {"type": "function", "function": {**function, "parameters": schema}}


def _messages(raw: bytes) -> list[Message]:
    messages = _decoded(raw)
    if not isinstance(messages, list) or not messages:
        raise Unreadable("there are no messages")
    if not all(isinstance(each, dict) and isinstance(each.get("role"), str) for each in messages):
        raise Unreadable("a message has no role")
    return messages


def _message(given: Message) -> Message:
    """A message as vLLM hands it on; contents of several parts stay a list of texts."""
    role = given["role"]
    if role == "developer":
        raise Unreadable("developer messages are not followed")
    if given.get("type", "message") != "message":
        raise Unreadable(f"items of type {given['type']!r} are not followed")
    message: Message = {"role": role, "content": _content(role, given.get("content"))}
    if role == "assistant":
        if given.get("tool_calls"):
            message["tool_calls"] = [_tool_call(call) for call in given["tool_calls"]]
        reasoning = given.get("reasoning")
        if reasoning is None:
            reasoning = given.get("reasoning_content")
        if reasoning is not None:
            message["reasoning"] = message["reasoning_content"] = reasoning
    elif role == "tool" and "tool_call_id" in given:
        message["tool_call_id"] = given["tool_call_id"]
    if isinstance(given.get("name"), str):
        message["name"] = given["name"]
    return message


def _content(role: str, content: Any) -> list[str]:
    if content is None:
        return []
    parts = [content] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise Unreadable("a content is neither text nor parts")
    texts = [_text(part) for part in parts]
    if role == "system" and any(text.startswith(_BILLING) for text in texts):
        texts = [text.partition("\n")[2] if text.startswith(_BILLING) else text for text in texts]
        texts = [text for text in texts if text]
    return texts


def _text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") in ("text", "input_text"):
        text = part.get("text")
        if isinstance(text, str):
            return text
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise Unreadable(f"a content part of type {kind!r} is not followed")


def _tool_call(call: Any) -> Message:
    """Arguments are an object for the template, though clients write them as a string."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise Unreadable("a tool call is not of a function")
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        arguments = {}
    shown: Message = {}
    if "id" in call:
        shown["id"] = call["id"]
    shown["function"] = {"arguments": arguments, "name": function.get("name")}
    shown["type"] = "function"
    return shown


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    """In vLLM's order of fields, absent ones null, unknown ones dropped."""
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise Unreadable("`tools` is not a list")
    return [_tool(tool) for tool in tools]


def _tool(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type", "function") != "function":
        raise Unreadable("a tool is not a function")
    if tool.get("defer_loading") is not None or function.get("defer_loading") is not None:
        raise Unreadable("`defer_loading` is not followed")
    shown = {name: function.get(name) for name in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        shown["strict"] = function["strict"]
    return {"type": "function", "function": shown}


def _variables(context: Mapping[str, Any]) -> dict[str, Any]:
    """What else the template is given."""
    given = context.get("chat_template_kwargs") or {}
    if not isinstance(given, dict) or not _NOT_VARIABLES.isdisjoint(given):
        raise Unreadable("`chat_template_kwargs` cannot be followed")
    variables = dict(given)
    effort = context.get("reasoning_effort")
    if effort is not None:
        variables["reasoning_effort"] = effort
        variables.setdefault("enable_thinking", effort != "none")
    variables["add_generation_prompt"] = context.get("add_generation_prompt") is not False
    return variables


def _strings(raw: bytes, messages: list[Message]) -> list[Span | None]:
    places: list[Span | None] = []
    for (start, end), message in zip(elements(raw), messages, strict=True):
        place = None
        if isinstance(message.get("content"), str) and len(message["content"]) >= LONG:
            inside = members(raw[start:end])
            if inside is not None and inside["role"] < inside["content"]:
                place = (start + inside["content"][0], start + inside["content"][1])
        places.append(place)
    return places


LONG: Final = 512
"""Characters from which on places inside a content are worth knowing: it may be cut anywhere."""
