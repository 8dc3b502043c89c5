"""What a policy is asked about a request, and what its answer means.

The question holds names: tenant, model, tools. Nothing a prompt says is in it. The answer is OPA's
(REST API, "Get a document with input"): a `result` that is true or false, or an object with `allow`
and maybe `reason`. Whatever else is no answer, and nobody is let in by it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway.errors import InvalidRequest
from gateway.vocabulary import BodyKind

if TYPE_CHECKING:
    from gateway.request import GenerationRequest
    from gateway.vocabulary import Buffer

MOST_REASON: Final = 500
"""Characters of a reason that a client is told."""

_TOOLS: Final = msgspec.json.Decoder(list[dict[str, Any]] | None)
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
_NULL: Final = msgspec.Raw(b"null")
_JSON: Final = BodyKind.JSON


class OddAnswer(ValueError):
    """An answer that says neither yes nor no."""


class Verdict(msgspec.Struct, frozen=True):
    """What a policy has said."""

    allowed: bool
    reason: str | None = None


class _Input(msgspec.Struct, frozen=True):
    tenant: str
    model: str
    tools: tuple[str, ...]


class _Question(msgspec.Struct, frozen=True):
    input: _Input


class _Allow(msgspec.Struct, frozen=True):
    allow: bool
    reason: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    result: bool | _Allow


_ANSWER: Final = msgspec.json.Decoder(_Answer)


def question_of(request: GenerationRequest) -> bytes:
    """The body to be posted: the same for requests that are the same to a policy.

    Raises InvalidRequest for tools that cannot be told apart by a name.
    """
    asked = _Input(request.tenant.name, request.model, _tools(request))
    return msgspec.json.encode(_Question(asked))


def key_of(question: bytes) -> bytes:
    """A short name for it; as good as the question itself."""
    return hashlib.blake2b(question, digest_size=16).digest()


def verdict_of(status: int, answer: bytes) -> Verdict:
    """Raises OddAnswer."""
    if status != 200:
        raise OddAnswer(f"it answers with status {status}")
    try:
        result = _ANSWER.decode(answer).result
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise OddAnswer("its answer is not one that a policy gives") from error
    if isinstance(result, bool):
        return Verdict(result)
    reason = " ".join(result.reason.split())[:MOST_REASON] if result.reason else None
    return Verdict(result.allow, reason or None)


def _tools(request: GenerationRequest) -> tuple[str, ...]:
    """The names of the tools it brings, each once, in order of the alphabet: of the member itself,
    and of what is put in its place for the template."""
    names: set[str] = set()
    if request.route.body is _JSON:
        for member, raw in request.context:
            if member == "tools":
                names |= _names(raw)
            elif member == "chat_template_kwargs":
                names |= _names(_within(raw, "tools"))
    return tuple(sorted(names))


def _names(raw: Buffer) -> set[str]:
    try:
        tools = _TOOLS.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("`tools` must be a list of objects.", param="tools") from None
    return {_name(tool) for tool in tools or ()}


def _within(raw: Buffer, member: str) -> Buffer:
    """A member of an object, as it stands there; null where there is none."""
    try:
        members: dict[str, msgspec.Raw] = _OBJECT.decode(raw) or {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        message = "`chat_template_kwargs` must be an object."
        raise InvalidRequest(message, param="chat_template_kwargs") from None
    return members.get(member, _NULL)


def _name(tool: dict[str, Any]) -> str:
    """As each API writes it: a function's or custom tool's own name, wherever it stands; the server
    of an `mcp` tool, as mcp:LABEL; else the type is the name (web_search).

    One that says two names has none: an engine might go by the other.
    """
    kind = tool.get("type", "function")
    inner = [tool[each].get("name") for each in ("function", "custom") if _is_object(tool, each)]
    names = {name for name in (tool.get("name"), *inner) if name is not None}
    if kind == "mcp" and isinstance(tool.get("server_label"), str):
        return f"mcp:{tool['server_label']}"
    if not names and kind not in ("function", "custom") and isinstance(kind, str):
        return kind
    name = names.pop() if len(names) == 1 else None
    if not isinstance(name, str) or not name:
        raise InvalidRequest("Each of `tools` must have one name.", param="tools")
    return name


def _is_object(tool: dict[str, Any], member: str) -> bool:
    return isinstance(tool.get(member), dict)
