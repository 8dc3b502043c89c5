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
_CLEAR: Final = re.compile(rb"[^\\]{12}")
"""So many bytes without a backslash: behind them no escape is open."""
_LONGEST_ESCAPE: Final = 12
_STRING: Final = msgspec.json.Decoder(str)


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
    """(bytes, characters): places within a string, `every` bytes apart or a little more, ascending.

    Bytes are counted from the beginning of `raw`, whole characters of the decoded string before
    that place. No place is inside an escape or inside a character's bytes.
    """
    at, end = string[0] + 1, string[1] - 1
    count = 0
    while end - at > every:
        clear = _CLEAR.search(raw, at + every, min(end, at + 2 * every + _LONGEST_ESCAPE))
        cut = clear.end() if clear is not None else _past_escapes(raw, at, end, every)
        while cut < end and raw[cut] & 0xC0 == 0x80:
            cut += 1
        count += _length(raw[at:cut])
        at = cut
        yield at, count


def _past_escapes(raw: bytes, at: int, end: int, every: int) -> int:
    """The first place from `at + every` on that is not inside an escape."""
    for run in _RUN.finditer(raw, at, end):
        if run.end() - at >= every:
            return run.end() if raw[run.start()] == 0x5C else max(run.start(), at + every)
    return end


def _length(written: bytes) -> int:
    """Characters of a piece of a string."""
    if b"\\" in written or not written.isascii():
        return len(_STRING.decode(b'"' + written + b'"'))
    return len(written)


def _after(pattern: re.Pattern[bytes], raw: bytes, at: int) -> int:
    match = pattern.match(raw, at)
    return at if match is None else match.end()
