"""The token counts of a response, read once, after its end, from its last bytes.

OpenAI's responses end with `usage`, whole or in the last event before `[DONE]`; Anthropic's and the
Responses API's put it one level deeper and use other names for the same counts. Text that looks
like a usage object cannot mislead us: inside a JSON string its quotation marks are escaped.
"""

from __future__ import annotations

import json
from typing import Annotated, Final

import msgspec

from gateway.request import Usage
from gateway.vocabulary import Tokens

_MARK: Final = b'"usage"'
_JSON: Final = json.JSONDecoder()
_WINDOW_BYTES: Final = 4096  # a usage object is far smaller

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


NOTHING: Final = Usage()


class _Details(msgspec.Struct):
    cached_tokens: Count | None = None


class _Counts(msgspec.Struct):
    """`usage`, by all the names the dialects have for its members."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None

    def usage(self) -> Usage:
        details = self.prompt_tokens_details or self.input_tokens_details
        prompt, output = self.prompt_tokens, self.completion_tokens
        return Usage(
            self._input() if prompt is None else prompt,
            self.output_tokens if output is None else output,
            self.cache_read_input_tokens if details is None else details.cached_tokens,
        )

    def _input(self) -> Tokens | None:
        """Anthropic's `input_tokens` leave out what was read from the cache or written to it."""
        if self.input_tokens is None:
            return None
        read, created = self.cache_read_input_tokens, self.cache_creation_input_tokens
        return self.input_tokens + (read or 0) + (created or 0)


class _Holder(msgspec.Struct):
    usage: _Counts | None = None


class _Document(msgspec.Struct):
    """A response, or an event of one: the Responses API wraps it once more."""

    usage: _Counts | None = None
    response: _Holder | None = None


_DOCUMENT: Final = msgspec.json.Decoder(_Document)
_COUNTS: Final = msgspec.json.Decoder(_Counts)


def read_usage(tail: bytes) -> Usage:
    """The last usage object in `tail`. Anything unreadable is NOTHING, never an error.

    As a rule it is a member of the outermost object: then the rest of that, from it on, is an
    object too, and what stands before need not be read. Else its line is read, in one pass and
    without building what is not a count.
    """
    at = tail.rfind(_MARK)
    if at < 0:
        return NOTHING
    end = tail.find(b"\n", at)
    if end < 0:
        end = len(tail)
    try:
        document = _DOCUMENT.decode(b"{" + tail[at:end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _from_line(tail, at, end)
    return _from_line(tail, at, end) if document.usage is None else document.usage.usage()


def _from_line(tail: bytes, at: int, end: int) -> Usage:
    """That of the document in the line with the mark at `at`."""
    line = tail[tail.rfind(b"\n", 0, at) + 1 : end]
    try:
        document = _DOCUMENT.decode(line.removeprefix(b"data:"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _from_fragment(tail, at)  # its beginning is no longer in the tail
    counts = document.usage
    if counts is None and document.response is not None:
        counts = document.response.usage
    return NOTHING if counts is None else counts.usage()


def _from_fragment(tail: bytes, at: int) -> Usage:
    """The object behind the mark at `at`, whatever stands before it."""
    text = tail[at + len(_MARK) : at + _WINDOW_BYTES].decode("utf-8", "replace")
    start = text.find("{")
    if start < 0 or text[:start].strip() != ":":
        return NOTHING
    try:
        _, end = _JSON.raw_decode(text, start)
        return _COUNTS.decode(text[start:end]).usage()
    except (ValueError, RecursionError):
        return NOTHING
