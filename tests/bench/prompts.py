"""Chat requests of an exact size, as bytes, from a seed.

A book of templates stands for conversations in progress: templates of one group share a system
prompt, each has a history of its own, and a serial number in the last user message makes every
request unlike all others. So two requests share either a system prompt, or all but the last
quarter of the prompt, or nothing: a prefix-aware policy has real work to do, and nobody may
answer from memory.

Invariants: a body is exactly `size_bytes` long and is valid JSON; the same seed gives the same
book; bodies with different serials differ.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import orjson

SERIAL_DIGITS: Final = 12
_SERIAL_MARK: Final = "#" * SERIAL_DIGITS
_GROUP: Final = 8  # templates that share a system prompt
_SYSTEM_SHARE, _HISTORY_SHARE = 0.25, 0.5  # of the body; the last user message has the rest
_SYLLABLES: Final = ("ba", "co", "du", "fen", "gri", "lo", "mar", "nu", "per", "qua", "ri", "ston")
KEY: Final = b"sk-bench-0123456789abcdef"
"""Whose all requests are."""

_HEADERS: Final = (
    b"host: 127.0.0.1\r\naccept: application/json\r\ncontent-type: application/json\r\n"
    b"user-agent: OpenAI/Python 2.8.1\r\nx-stainless-lang: python\r\n"
    b"x-stainless-async: async:asyncio\r\n"
    b"x-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\n"
    b"authorization: Bearer " + KEY + b"\r\n"
)


@dataclass(frozen=True, slots=True)
class Template:
    """A whole HTTP request with a hole for the serial number."""

    before: bytes
    after: bytes

    def request(self, serial: int) -> bytes:
        """The request on the wire; `serial` has at most `SERIAL_DIGITS` digits."""
        return b"%b%012d%b" % (self.before, serial, self.after)


@dataclass(frozen=True, slots=True)
class Book:
    """The templates of one workload, taken in turn."""

    size_bytes: int
    templates: tuple[Template, ...]

    def request(self, serial: int) -> bytes:
        """The HTTP request with this serial number."""
        return self.templates[serial % len(self.templates)].request(serial)


def write_book(*, seed: int, size_bytes: int, is_stream: bool, templates: int) -> Book:
    """Write a book whose bodies are `size_bytes` long (1 KiB at least)."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(2000)]
    systems: list[str] = []
    pages = []
    for index in range(templates):
        if index % _GROUP == 0:
            systems.append(_prose(rng, words, int(size_bytes * _SYSTEM_SHARE)))
        pages.append(_template(rng, words, systems[-1], size_bytes, is_stream=is_stream))
    rng.shuffle(pages)
    return Book(size_bytes, tuple(pages))


def _template(
    rng: random.Random, words: list[str], system: str, size_bytes: int, *, is_stream: bool
) -> Template:
    turn_bytes = int(size_bytes * _HISTORY_SHARE / 2)
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": _prose(rng, words, turn_bytes)},
        {"role": "assistant", "content": _prose(rng, words, turn_bytes)},
        {"role": "user", "content": _SERIAL_MARK},
    ]
    document: dict[str, object] = {"model": "bench", "messages": messages}
    document |= {"max_tokens": 256, "temperature": 0.7}
    if is_stream:
        document |= {"stream": True, "stream_options": {"include_usage": True}}
    missing_bytes = size_bytes - len(orjson.dumps(document))
    if missing_bytes < 0:
        raise ValueError(f"a chat does not fit in {size_bytes} bytes")
    messages[-1]["content"] += _prose(rng, words, missing_bytes)
    body = orjson.dumps(document)
    head = b"POST /v1/chat/completions HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n" % (
        _HEADERS,
        len(body),
    )
    before, after = (head + body).split(_SERIAL_MARK.encode())
    return Template(before, after)


def _prose(rng: random.Random, words: list[str], size_bytes: int) -> str:
    """Sentences and paragraphs that take exactly `size_bytes` once escaped in JSON."""
    parts: list[str] = []
    written = 0
    while written < size_bytes:
        ending = rng.choices((" ", ", ", ". ", ".\n", '" '), (80, 8, 8, 3, 1))[0]
        parts.append(rng.choice(words) + ending)
        written += len(orjson.dumps(parts[-1])) - 2
    excess = written - size_bytes
    if excess:
        last = parts.pop()
        room = len(orjson.dumps(last)) - 2 - excess
        parts.append("x" * room)
    return "".join(parts)
