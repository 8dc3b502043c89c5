"""Prompts as chains of hashes over their bytes: equal beginnings give equal beginnings.

    h[0] = H(scope, bytes up to mark 0)      h[i] = H(h[i-1], bytes from mark i-1 to mark i)

Cut from the prompt as it stood in the request's body, so nothing is decoded or tokenised: the next
turn of a conversation repeats the bytes of the last one, up to the bracket or quote that closes it.
What else an engine's cache depends on (model, route, tools, salt) goes into the scope. Marks are
close together where prompts are short and far apart where they are long: what is missed is some per
cent of a prompt, and a long one costs little more to hash than a short one. 64 bits, not
cryptographic: a collision costs a cache miss, never a wrong answer.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Final

import xxhash

if TYPE_CHECKING:
    from gateway.request import GenerationRequest

_STEPS: Final = (
    (128, 512), (256, 4096), (512, 8192), (1024, 16_384), (2048, 65_536), (4096, 131_072),
    (16_384, 2_097_152),
)  # fmt: skip
_SPACE: Final = 0x20
_MOST_BLANKS: Final = 32
_ROLE_WITHIN: Final = 128
_ANSWER: Final = re.compile(
    rb'\s*,\s*\{\s*(?:"\w+"\s*:\s*"[^"\\]*"\s*,\s*){0,3}"role"\s*:\s*"assistant"'
)
_STOP_EVERY: Final = 16_384


def _marks() -> tuple[int, ...]:
    marks: list[int] = []
    for step, end in _STEPS:
        marks.extend(range((marks[-1] if marks else 0) + step, end + 1, step))
    return tuple(marks)


MARKS: Final = _marks()
"""Bytes from the beginning, ascending; what is longer than the last is told apart by then."""

_PARTS: Final = tuple([slice(start, end) for start, end in zip((0, *MARKS), MARKS, strict=False)])


def _stops() -> tuple[int, ...]:
    stops = [at + 1 for at, mark in enumerate(MARKS) if mark == 4096 or not mark % _STOP_EVERY]
    return tuple([next(stop for stop in stops if stop > at) for at in range(len(MARKS))])


STOPS: Final = _stops()
"""Of each mark, how many there are up to where prompts are cut in any case: pieces that are
remembered, and forgotten, in one are not longer than that."""

_CUTS: Final = tuple(
    [
        Struct("".join([f"{part.stop - part.start}s" for part in _PARTS[:marks]]))
        for marks in range(STOPS[0] + 1)
    ]
)
"""What cuts out so many first pieces at once: small ones are copied sooner than viewed."""


class Prompt:
    """One request's prompt, hashed as far as anybody asked and never twice."""

    __slots__ = ("_bytes", "_length", "hashes", "marks", "request")

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.hashes: array[int] = array("Q")  # at MARKS, as far as hashed
        self._bytes = data = memoryview(request.prompt)
        end = max(len(data) - 1, 0)  # what closes it is none of the next turn's, nor are
        if end and data[end - 1] <= _SPACE:  # blanks before that
            before = bytes(data[max(end - _MOST_BLANKS, 0) : end])
            end -= len(before) - len(before.rstrip(b" \t\r\n"))
        self._length = end
        self.marks = bisect_right(MARKS, self._length)
        """How many it has: what closes it is behind them all."""

    def __repr__(self) -> str:
        return f"<Prompt of {len(self)} bytes, {len(self.hashes)} marks hashed>"

    def __len__(self) -> int:
        """In bytes, without what closes it."""
        return self._length

    def hash_to(self, marks: int) -> None:
        """As many of its first marks as there are."""
        hashes, data, digest = self.hashes, self._bytes, xxhash.xxh3_64_intdigest
        begin, end = len(hashes), min(marks, self.marks)
        if begin >= end:
            return
        above = hashes[-1] if begin else _scope(self.request)
        if end == begin + 1:
            hashes.append(digest(data[_PARTS[begin]], above))
            return
        pieces: Sequence[bytes | memoryview]
        if end < len(_CUTS):
            pieces = _CUTS[end].unpack_from(data)[begin:]
        else:
            pieces = [data[part] for part in _PARTS[begin:end]]
        found: list[int] = []
        for piece in pieces:
            above = digest(piece, above)
            found.append(above)
        hashes.fromlist(found)

    def digest_of(self, begin: int, end: int) -> int:
        """Of the bytes from one of its marks, which is hashed, to another."""
        part = self._bytes[MARKS[begin] : MARKS[end]]
        return xxhash.xxh3_64_intdigest(part, self.hashes[begin])

    def repeats(self, hashes: array[int], digest: int) -> bool:
        """Does it go on from its last hash as those do who have these, the first of them the same,
        and this digest behind it? Then these are its own: a long part costs two looks, not one for
        each mark."""
        begin = len(self.hashes) - 1
        end = begin + len(hashes) - 1
        if end >= self.marks or self.digest_of(begin, end) != digest:
            return False
        self.hashes.extend(hashes[1:])
        return True

    def whole(self) -> array[int]:
        """The hashes at all its marks."""
        self.hash_to(self.marks)
        return self.hashes

    def digest(self, marks: int, end: int) -> int:
        """Of so many first bytes, given the last of their marks."""
        return xxhash.xxh3_64_intdigest(self._bytes[MARKS[marks - 1] : end], self.hashes[marks - 1])

    def is_answered(self, end: int) -> bool:
        """Is the next of its messages an answer, as far as can be seen at once?"""
        return _ANSWER.match(self._bytes, end, end + _ROLE_WITHIN) is not None


def _scope(request: GenerationRequest) -> int:
    """What must be equal, beside the prompt, for a prefix to be shared."""
    scope = _scope_of(request.model, request.route.path)
    for name, part in request.context:
        # Each by its own digest: parts that only join to the same bytes are different.
        named = name.encode() + b"\x00" + xxhash.xxh3_64_digest(part)
        scope = xxhash.xxh3_64_intdigest(named, scope)
    return scope


@lru_cache(maxsize=256)
def _scope_of(model: str, path: str) -> int:
    return xxhash.xxh3_64_intdigest(model.encode() + b"\x00" + path.encode())
