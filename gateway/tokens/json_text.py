"""Where things stand in JSON text: the elements of an array, the members of an object, the
characters of a string.

Whoever decodes JSON loses the places. We need them because what a gateway can compare cheaply is
bytes, while tokens are cut from the text that those bytes mean. The text given must be valid JSON:
it has been decoded once before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

Span = tuple[int, int]

_ELEMENTS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_SPACE: Final = re.compile(rb"[ \t\n\r]*")
_BETWEEN: Final = re.compile(rb"[ \t\n\r]*[,:\[{]?[ \t\n\r]*")
_KEY: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')
_INTEGER: Final = re.compile(rb"[0-9]+")
_RUN: Final = re.compile(
    rb"[^\\]+"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\\u[0-9a-fA-F]{4}"
    rb"|\\."
)
"""A piece of a string: bytes that mean themselves, or one escape, which is one character."""


def elements(raw: bytes) -> list[Span]:
    """The places of an array's elements. O(len(raw))."""
    spans: list[Span] = []
    at = 0
    for element in _ELEMENTS.decode(raw):
        at = _after(_BETWEEN, raw, at)
        spans.append((at, at + len(element)))
        at += len(element)
    return spans


def members(raw: bytes) -> dict[str, Span] | None:
    """The places of an object's values by name; None where a name stands twice."""
    spans: dict[str, Span] = {}
    at = 0
    for name, value in _MEMBERS.decode(raw).items():
        at = _after(_KEY, raw, _after(_BETWEEN, raw, at))
        at = _after(_BETWEEN, raw, at)
        if not raw.startswith(value, at):
            return None
        spans[name] = (at, at + len(value))
        at += len(value)
    return spans if not spans or _SPACE.fullmatch(raw, at, len(raw) - 1) else None


def integers(raw: bytes, every: int) -> list[tuple[int, int]]:
    """(bytes, how many): places in an array of integers before which so many are complete.

    One for each `every` of them, just after the comma: `[1, 2` may go on as `[1, 25]`.
    """
    places: list[tuple[int, int]] = []
    for count, match in enumerate(_INTEGER.finditer(raw), 1):
        if count % every == 0:
            comma = _after(_SPACE, raw, match.end())
            if raw.startswith(b",", comma):
                places.append((comma + 1, count))
    return places


def characters(raw: bytes, string: Span, every: int) -> Iterator[tuple[int, int]]:
    """(bytes, characters): places within a string, some `every` bytes apart, ascending.

    Bytes are counted from the beginning of `raw`, whole characters of the decoded string before
    that place. No place is inside an escape or inside a character's bytes.
    """
    at, end = string[0] + 1, string[1] - 1
    count, told = 0, at
    for run in _RUN.finditer(raw, at, end):
        at, stop = run.span()
        if raw[at] == 0x5C:
            count += 1
            at = stop
        while at < stop:
            cut = min(at + every, stop)
            while cut < stop and raw[cut] & 0xC0 == 0x80:
                cut += 1
            count += len(raw[at:cut].decode())
            at = cut
            if at - told >= every and at < stop:
                yield at, count
                told = at
        if at - told >= every:
            yield at, count
            told = at


def _after(pattern: re.Pattern[bytes], raw: bytes, at: int) -> int:
    match = pattern.match(raw, at)
    return at if match is None else match.end()
