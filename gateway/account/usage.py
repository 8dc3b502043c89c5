"""The token counts of a response, read once, after its end, from its last bytes.

OpenAI's responses end with `usage`, whole or in the last event before `[DONE]`; Anthropic's and the
Responses API's put it one level deeper and use other names for the same counts. Text that looks
like a usage object cannot mislead us: inside a JSON string its quotation marks are escaped.
"""

from __future__ import annotations

import json
from typing import Final

import msgspec

from gateway.account.usage_wire import Counts, Document
from gateway.request import Usage

_MARK: Final = b'"usage"'
_JSON: Final = json.JSONDecoder()
_WINDOW_BYTES: Final = 4096  # a usage object is far smaller

NOTHING: Final = Usage()

_DOCUMENT: Final = msgspec.json.Decoder(Document)
_COUNTS: Final = msgspec.json.Decoder(Counts)


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
    return _from_line(tail, at, end) if document.usage is None else _usage(document.usage)


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
    return NOTHING if counts is None else _usage(counts)


def _from_fragment(tail: bytes, at: int) -> Usage:
    """The object behind the mark at `at`, whatever stands before it."""
    text = tail[at + len(_MARK) : at + _WINDOW_BYTES].decode("utf-8", "replace")
    start = text.find("{")
    if start < 0 or text[:start].strip() != ":":
        return NOTHING
    try:
        _, end = _JSON.raw_decode(text, start)
        return _usage(_COUNTS.decode(text[start:end]))
    except (ValueError, RecursionError):
        return NOTHING


def _usage(counts: Counts) -> Usage:
    """Anthropic's `input_tokens` leave out what was read from the cache or written to it."""
    prompt, output = counts.prompt_tokens, counts.completion_tokens
    if prompt is None and counts.input_tokens is not None:
        prompt = counts.input_tokens + (counts.cache_read_input_tokens or 0)
        prompt += counts.cache_creation_input_tokens or 0
    if output is None:
        output = counts.output_tokens
    details = counts.prompt_tokens_details or counts.input_tokens_details
    cached = counts.cache_read_input_tokens if details is None else details.cached_tokens
    return Usage(prompt, output, cached)
