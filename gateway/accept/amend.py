"""One member added to a JSON body, or its value replaced; every other byte stays as it came.

Asked where a request needs something of ours on its way to a replica. The body is not read into
values and written again: that costs as much as all else we do for a request, and would change what
the client wrote (numbers beyond a float, escapes, the order of members).

Invariants. What is no JSON object, or has two members of one name, is returned as it came, the same
object: no amendment makes it readable, and whoever cannot do without it refuses it. A member is
there once afterwards, however the client had spelt its name (`"\\u0063ache_salt"` is `cache_salt`),
since parsers differ in which of two they take. What is added is laid out as the body is, compactly
or in Python's default style: see `gateway.parse.openai`, which tells by length that there are no
two members of one name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

_SPLIT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])

_OPENING: Final = re.compile(rb"[ \t\n\r]*\{")
_EMPTY: Final = re.compile(rb"[ \t\n\r]*\}")
_SPACED: Final = re.compile(rb'"[^"\\]*": ')  # how the first member begins in the other style
_KEY: Final = re.compile(rb'[ \t\n\r]*"[^"\\]*(?:\\.[^"\\]*)*"[ \t\n\r]*:[ \t\n\r]*', re.DOTALL)
_COMMA: Final = re.compile(rb"[ \t\n\r]*,")
_END: Final = re.compile(rb"[ \t\n\r]*\}[ \t\n\r]*")


Value = bytes | Callable[[bytes | None], bytes]
"""JSON; or what makes it out of the value that was there, None where there was none."""


def amended(body: bytes, path: Sequence[str], value: Value) -> bytes:
    """`body` with the member at `path` set to `value`.

    A path of several names leads through objects; those that are missing, or null, are made. Where
    something else stands in the way, it stays. Names are of lower-case letters and `_`.

    One copy of the body; O(len(body)), at the speed of a search for a few bytes unless the name, or
    an escape that could hide it, occurs in the body.
    """
    name, *inner = path
    at = _inside(body)
    if not at:
        return body
    span = None
    if not _surely_lacks(body, name):
        try:
            span = _span(body, at, name)
        except ValueError:
            return body
    if span is None:
        return _inserted(body, at, path, value)
    start, end = span
    held = body[start:end]
    if not inner:
        held = _made(value, held)
    elif held == b"null":
        held = b"{%b}" % _member(inner, value, b"")
    else:
        held = amended(held, inner, value)
    return body[:start] + held + body[end:]


def _made(value: Value, held: bytes | None) -> bytes:
    return value if isinstance(value, bytes) else value(held)


def _inside(body: bytes) -> int:
    """Where the opening brace ends; 0 if there is none."""
    if body.startswith(b"{"):
        return 1
    opening = _OPENING.match(body)
    return 0 if opening is None else opening.end()


def _surely_lacks(body: bytes, name: str) -> bool:
    """Not spelt anywhere, and nothing is there that could be a letter of it in disguise."""
    return name.encode() not in body and b"\\u00" not in body


def _inserted(body: bytes, at: int, path: Sequence[str], value: Value) -> bytes:
    """With a first member more: the end of the body may be far away, and need not be looked at."""
    space = b" " if _SPACED.match(body, at) else b""
    comma = b"" if not space and _EMPTY.match(body, at) else b"," + space
    return body[:at] + _member(path, value, space) + comma + body[at:]


def _member(path: Sequence[str], value: Value, space: bytes) -> bytes:
    name, *inner = path
    made = b"{%b}" % _member(inner, value, space) if inner else _made(value, None)
    return b'"%b":%b%b' % (name.encode(), space, made)


def _span(body: bytes, at: int, name: str) -> tuple[int, int] | None:
    """From where to where the value of a member stands in the object whose brace ends at `at`.

    The decoder finds the values, but not where they stand: they are laid against the body one after
    another. If they fill it, there were no others. Raises ValueError for what is no object, or has
    two members of one name.
    """
    found = None
    for position, (each, raw) in enumerate(_members(body).items()):
        if position:
            at = _end(_COMMA.match(body, at))
        start = _end(_KEY.match(body, at))
        at = start + len(raw)
        if not body.startswith(bytes(raw), start):
            raise ValueError("two members of one name")
        if each == name:
            found = start, at
    _end(_END.fullmatch(body, at))
    return found


def _end(match: re.Match[bytes] | None) -> int:
    if match is None:
        raise ValueError("two members of one name")
    return match.end()


def _members(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _SPLIT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("not a JSON object") from None
