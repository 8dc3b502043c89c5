"""`usage` as responses write it, by all the names the dialects have for its members.

Records that are decoded from bytes are not compiled, and whoever reads these is: docs/adr/0032.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Details(msgspec.Struct):
    """Of a prompt."""

    cached_tokens: Count | None = None


class Counts(msgspec.Struct):
    """OpenAI's names, then those of Anthropic's and of the Responses API."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: Details | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: Details | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None


class Holder(msgspec.Struct):
    """What the Responses API wraps it in."""

    usage: Counts | None = None


class Document(msgspec.Struct):
    """A response, or an event of one."""

    usage: Counts | None = None
    response: Holder | None = None
