"""The token counts of a response, read once, after its end, from its last bytes.

OpenAI's responses end with `usage`, whole or in the last event before `[DONE]`; Anthropic's and the
Responses API's use other names for the same counts. Text that looks like a usage object cannot
mislead us: inside a JSON string its quotation marks are escaped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from gateway.vocabulary import Tokens

_MARK: Final = b'"usage"'
_DECODER: Final = json.JSONDecoder()
_WINDOW_BYTES: Final = 4096  # a usage object is far smaller


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts as the replica reported them; None where it said nothing."""

    prompt_tokens: Tokens | None
    output_tokens: Tokens | None
    cached_tokens: Tokens | None


NOTHING: Final = Usage(None, None, None)


def read_usage(tail: bytes) -> Usage:
    """The last usage object in `tail`. Anything unreadable is NOTHING, never an error."""
    at = tail.rfind(_MARK)
    if at < 0:
        return NOTHING
    text = tail[at + len(_MARK) : at + _WINDOW_BYTES].decode("utf-8", "replace")
    start = text.find("{")
    if start < 0 or text[:start].strip() != ":":
        return NOTHING
    try:
        counts, _ = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return NOTHING
    details = counts.get("prompt_tokens_details") or counts.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    if cached is None:
        cached = counts.get("cache_read_input_tokens")
    return Usage(
        prompt_tokens=_count(counts.get("prompt_tokens", counts.get("input_tokens"))),
        output_tokens=_count(counts.get("completion_tokens", counts.get("output_tokens"))),
        cached_tokens=_count(cached),
    )


def _count(value: object) -> Tokens | None:
    """A count, or None for anything that is not one."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53:
        return value
    return None
