"""One line of an input file becomes a BatchLine, or a Problem that says what is wrong with it.

Only the envelope and `model` and `stream` are read; the body itself is sent on byte for byte, and
is judged by the replica. Every mistake is told with the line's number, as OpenAI's API does.
"""

from __future__ import annotations

from typing import Final

import msgspec
import xxhash

from gateway.batch.nouns import BatchLine, Problem
from gateway.vocabulary import ROUTES, Route

ENDPOINTS: Final[dict[str, Route]] = {
    route.path: route
    for route in ROUTES
    if route.path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
}
"""What a batch may ask."""

_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT: Final = msgspec.json.Decoder(str)
_SWITCH: Final = msgspec.json.Decoder(bool | None)
_CONTEXT: Final = ("tools", "system", "instructions")  # what an engine puts before the prompt
_BLOCK_BYTES: Final = 256
_MOST_BLOCKS: Final = 64  # 16 KiB of prompt are told apart
_LONGEST_ID: Final = 512


class LineRefused(Exception):
    """A line that cannot be worked on; `problem` says why."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param

    def problem(self, number: int) -> Problem:
        """For the batch's list of errors."""
        return Problem(self.code, str(self), self.param, number)


def read_line(raw: bytes, number: int, start: int, endpoint: str) -> BatchLine:
    """Read one line of a batch on `endpoint`. Raises LineRefused. O(len(raw))."""
    members = _object(raw, "invalid_json_line", "This line is not a valid JSON object.", None)
    custom_id = _text(members, "custom_id")
    if not custom_id or len(custom_id) > _LONGEST_ID:
        raise LineRefused("invalid_value", "`custom_id` has from 1 to 512 characters.", "custom_id")
    if _text(members, "method") != "POST":
        raise LineRefused("invalid_method", "`method` must be POST.", "method")
    if _text(members, "url") != endpoint:
        raise LineRefused("mismatched_url", f"`url` must be the batch's own: {endpoint}.", "url")
    body = _object(_member(members, "body"), "invalid_type", "`body` must be an object.", "body")
    model = _text(body, "model", "body.")
    if not model:
        raise LineRefused("invalid_value", "`model` must not be empty.", "body.model")
    if "stream" in body and _is_on(body["stream"]):
        raise LineRefused("invalid_value", "A batch cannot be streamed.", "body.stream")
    route = ENDPOINTS[endpoint]
    return BatchLine(number, custom_id, model, start, len(raw), prefix_key(body, route))


def body_of(raw: bytes) -> bytes:
    """The request body of a line that has been read before, as it stands there."""
    return bytes(_MEMBERS.decode(raw)["body"])


def prefix_key(body: dict[str, msgspec.Raw], route: Route) -> bytes:
    """A hash per block of what an engine would read, in order.

    Sorted by it, lines whose prompts begin alike stand together, at every length of what they
    share: the order in which a prefix cache is used best.
    """
    names = (*_CONTEXT, route.prompt_field)
    text = b"".join([bytes(body[name]) for name in names if name in body])
    blocks = range(0, min(len(text), _BLOCK_BYTES * _MOST_BLOCKS), _BLOCK_BYTES)
    return b"".join([xxhash.xxh32_digest(text[at : at + _BLOCK_BYTES]) for at in blocks])


def _object(
    raw: bytes | msgspec.Raw, code: str, message: str, param: str | None
) -> dict[str, msgspec.Raw]:
    try:
        return _MEMBERS.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise LineRefused(code, message, param) from None


def _member(members: dict[str, msgspec.Raw], name: str, within: str = "") -> msgspec.Raw:
    if name not in members:
        raise LineRefused("missing_required_parameter", f"`{name}` is missing.", within + name)
    return members[name]


def _text(members: dict[str, msgspec.Raw], name: str, within: str = "") -> str:
    try:
        return _TEXT.decode(_member(members, name, within))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise LineRefused("invalid_type", f"`{name}` must be a string.", within + name) from None


def _is_on(raw: msgspec.Raw) -> bool:
    try:
        return bool(_SWITCH.decode(raw))
    except msgspec.DecodeError:
        raise LineRefused(
            "invalid_type", "`stream` must be true or false.", "body.stream"
        ) from None
