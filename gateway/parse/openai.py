"""A JSON body becomes a GenerationRequest: only the fields we decide by are read.

The top level is split into its members without building their values (`msgspec.Raw`), so a long
prompt costs one scan and no copies.

Invariant: what we decided by is what any correct JSON parser would read. A body with two members of
one name has more than one reading, so it is refused; whether there are two is seen from the length
of what was kept, and only a body laid out unusually is looked at twice.
"""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

import msgspec

from gateway.errors import InvalidRequest
from gateway.request import GenerationRequest
from gateway.vocabulary import Body, ModelName, Route, Tokens

_SPLIT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRING: Final = msgspec.json.Decoder(str)
_SWITCH: Final = msgspec.json.Decoder(bool | None)
_COUNT: Final = msgspec.json.Decoder(int | float | None)

_CONTEXT: Final = frozenset(
    {
        "add_generation_prompt",
        "add_special_tokens",
        "cache_salt",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "documents",
        "echo",
        "instructions",
        "mm_processor_kwargs",
        "output_config",
        "previous_response_id",
        "prompt_embeds",
        "reasoning",
        "reasoning_effort",
        "suffix",
        "system",
        "thinking",
        "tools",
        "truncate_prompt_tokens",
    }
)
"""What decides, beside the prompt, which tokens an engine reads and how it names their blocks."""

_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""Names for "generate at most", the newest first; an engine takes the first it knows."""


class PromptTokens(Protocol):
    """Estimates how many tokens a prompt of so many bytes is, for a model."""

    def __call__(self, model: ModelName, prompt_bytes: int) -> Tokens: ...


def parse_json(
    body: Body, route: Route, prompt_tokens: PromptTokens, session: bytes | None = None
) -> GenerationRequest:
    """Read the fields we decide by. Raises InvalidRequest, naming the field, for anything else.

    `session` is what the request's head said of it; without, `prompt_cache_key` is one.

    O(len(body)), one scan, no copy of the prompt.
    """
    members = _split(body)
    model = _model(members)
    stream = "stream" in members and _stream(members["stream"])
    prompt = members.get(route.prompt_field)
    prompt_bytes = len(prompt) if prompt is not None else 0
    if session is None and "prompt_cache_key" in members:
        session = bytes(members["prompt_cache_key"])
    return GenerationRequest(
        route=route,
        model=model,
        stream=stream,
        prompt_bytes=prompt_bytes,
        prompt_tokens=prompt_tokens(model, prompt_bytes),
        max_tokens=_max_tokens(members) if route.generates else None,
        prompt=prompt if prompt is not None else b"",
        context=() if _CONTEXT.isdisjoint(members) else _context(members),
        session=session,
    )


def _split(body: Body) -> dict[str, msgspec.Raw]:
    try:
        members = _SPLIT.decode(body)
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None
    except msgspec.ValidationError:
        raise InvalidRequest("The request body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("The request body is not valid JSON.") from None
    if not _accounts_for_all(body, members):
        _refuse_duplicates(bytes(body))
    return members


def _accounts_for_all(body: Body, members: dict[str, msgspec.Raw]) -> bool:
    """True when the members, written compactly or in Python's default style, fill the whole body.

    A member that was overwritten by a later one of its name would leave a hole. Written compactly
    there is no room for one, so the length tells; the spaces of the other style could be one.
    """
    gaps = max(len(members) - 1, 0)
    compact = len(b"{}") + gaps
    for name, raw in members.items():
        compact += len(name) + len(b'"":') + len(raw)
    if len(body) == compact:
        return True
    return len(body) == compact + gaps + len(members) and _is_spaced(bytes(body), members)


def _is_spaced(body: bytes, members: dict[str, msgspec.Raw]) -> bool:
    """Is the body, byte for byte, its members in Python's default style? Doubtful: False."""
    at = 1
    for name, raw in members.items():
        if not name.isascii():
            return False
        key = b'"%b": ' % name.encode()
        if not body.startswith(key, at) or not body.startswith(bytes(raw), at + len(key)):
            return False
        at += len(key) + len(raw) + 2
    return True


def _refuse_duplicates(body: bytes) -> None:
    """Look closely at an unusual layout: raise if two members have one name."""
    names: list[str] = []

    def keep(pairs: list[tuple[str, Any]]) -> None:
        names[:] = [name for name, _ in pairs]  # the outermost object is the last to be closed

    try:
        json.loads(body, object_pairs_hook=keep)
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None
    except ValueError:
        raise InvalidRequest("The request body is not valid JSON.") from None
    if len(set(names)) < len(names):
        raise InvalidRequest("The request body has two members with the same name.")


def _context(members: dict[str, msgspec.Raw]) -> tuple[tuple[str, msgspec.Raw], ...]:
    return tuple([(name, members[name]) for name in sorted(members) if name in _CONTEXT])


def _model(members: dict[str, msgspec.Raw]) -> ModelName:
    if "model" not in members:
        raise InvalidRequest("You must provide a `model`.", param="model")
    try:
        model = _STRING.decode(members["model"])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("`model` must be a string.", param="model") from None
    if not model:
        raise InvalidRequest("`model` must not be empty.", param="model")
    return ModelName(model)


def _stream(raw: msgspec.Raw) -> bool:
    try:
        return bool(_SWITCH.decode(raw))
    except msgspec.DecodeError:
        raise InvalidRequest("`stream` must be true or false.", param="stream") from None


def _max_tokens(members: dict[str, msgspec.Raw]) -> int | None:
    for name in _LIMITS:
        if name in members:
            limit = _count(name, members[name])
            if limit is not None:
                return limit
    return None


def _count(name: str, raw: msgspec.Raw) -> int | None:
    """A number of tokens; 5.0 is one too, as it is to an engine. None for null."""
    try:
        count: float | None = _COUNT.decode(raw)
    except msgspec.DecodeError:
        count = 0.5
    if count is None:
        return None
    if not isinstance(count, int):
        if count != int(count):
            raise InvalidRequest(f"`{name}` must be a whole number.", param=name)
        count = int(count)
    if count < 0:
        raise InvalidRequest(f"`{name}` must not be negative.", param=name)
    return count
