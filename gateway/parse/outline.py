"""A long body without the insides of its long strings: a prompt is stepped over, not read.

Where strings begin and end is told by quotation marks, and by the backslashes before them; memory
is searched for these thirty times as fast as a parser reads. So a body's *outline* is read, in
which long strings are empty, and its members are then filled with what was left out: by views.

Invariant. JSON has no quotation marks but those that begin and end strings, and those in strings
that a backslash escapes. So whoever can read the body finds the same strings in it, and the same
members. What is not looked at is what stands inside of a long string: control characters may, or
escapes that are none (but no halves of surrogate pairs: see `openai`). The body is no JSON then,
and the engine, which reads all of it, says so; here nothing is decided by it.

Bounded. A body with many marks, as one that quotes JSON has, is given up after the first of them;
to search any other is a fraction of reading it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.vocabulary import Buffer

LONG_STRING: Final = 1024
FREE_MARKS: Final = 32
BYTES_A_MARK: Final = 384
"""There may be so many marks, and one more for so many bytes that have been passed."""
MOST_BACKSLASHES: Final = 16  # in a row, before a mark

_BACKSLASH: Final = 0x5C

Gap = tuple[int, int]
"""Where in an outline something was left out, and how many bytes."""


def outline(body: bytes) -> tuple[bytes, list[Gap]] | None:
    """That of a body; None where no string is long, or there are too many marks."""
    pieces: list[bytes] = []
    gaps: list[Gap] = []
    kept = left_out = marks = 0
    begin = body.find(b'"')
    while begin >= 0:
        end = begin + 1
        while True:
            end = body.find(b'"', end)
            marks += 1
            if end < 0 or marks > FREE_MARKS + end // BYTES_A_MARK:
                return None
            before = end
            while body[before - 1] == _BACKSLASH:
                before -= 1
                if end - before > MOST_BACKSLASHES:
                    return None
            if (end - before) % 2 == 0:
                break
            end += 1
        inside = end - begin - 1
        if inside > LONG_STRING:
            pieces.append(body[kept : begin + 1])
            gaps.append((begin + 1 - left_out, inside))
            kept = end
            left_out += inside
        begin = body.find(b'"', end + 1)
    if not gaps:
        return None
    pieces.append(body[kept:])
    return b"".join(pieces), gaps


def filled(
    members: Mapping[str, Buffer], gaps: list[Gap], body: bytes, spaces: int
) -> dict[str, Buffer] | None:
    """The members of a body, given those of its outline, which fill it with so many spaces after
    each colon and comma. None where a name is long, which nobody's is that we read."""
    view, found = memoryview(body), dict(members)
    at, left_out, passed = 1, 0, 0
    for name, value in members.items():
        begin = at + len(name) + len('"":') + spaces
        at = begin + len(value)
        inside = 0
        while passed < len(gaps) and gaps[passed][0] < at:
            where, size = gaps[passed]
            if where < begin:
                return None
            inside += size
            passed += 1
        if inside:
            found[name] = view[begin + left_out : at + left_out + inside]
            left_out += inside
        at += 1 + spaces
    return found
