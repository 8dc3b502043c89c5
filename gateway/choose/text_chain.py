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

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

import xxhash

if TYPE_CHECKING:
    from gateway.vocabulary import GenerationRequest

_STEPS: Final = (
    (128, 2048), (256, 4096), (512, 8192), (1024, 16_384), (2048, 65_536), (4096, 131_072),
    (16_384, 2_097_152),
)  # fmt: skip
_STOP_EVERY: Final = 16_384


def _marks() -> tuple[int, ...]:
    marks: list[int] = []
    for step, end in _STEPS:
        marks.extend(range((marks[-1] if marks else 0) + step, end + 1, step))
    return tuple(marks)


MARKS: Final = _marks()
"""Bytes from the beginning, ascending; what is longer than the last is told apart by then."""


def _stops() -> tuple[int, ...]:
    stops = [at + 1 for at, mark in enumerate(MARKS) if mark == 4096 or not mark % _STOP_EVERY]
    return tuple([next(stop for stop in stops if stop > at) for at in range(len(MARKS))])


STOPS: Final = _stops()
"""Of each mark, how many there are up to where prompts are cut in any case: pieces that are
remembered, and forgotten, in one are not longer than that."""


class Prompt:
    """One request's prompt, hashed as far as anybody asked and never twice."""

    __slots__ = ("_bytes", "hashes", "marks", "request")

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.hashes: array[int] = array("Q")  # at MARKS, as far as hashed
        self._bytes = memoryview(request.prompt)
        self.marks = bisect_right(MARKS, len(self))
        """How many it has: what closes it is behind them all."""

    def __repr__(self) -> str:
        return f"<Prompt of {len(self)} bytes, {len(self.hashes)} marks hashed>"

    def __len__(self) -> int:
        """In bytes, without what closes it."""
        return max(len(self._bytes) - 1, 0)

    def hash_to(self, marks: int) -> None:
        """As many of its first marks as there are."""
        hashes, data, digest = self.hashes, self._bytes, xxhash.xxh3_64_intdigest
        begin, end = len(hashes), min(marks, self.marks)
        if begin >= end:
            return
        above, start = (hashes[-1], MARKS[begin - 1]) if begin else (_scope(self.request), 0)
        for mark in MARKS[begin:end]:
            above = digest(data[start:mark], above)
            hashes.append(above)
            start = mark

    def whole(self) -> array[int]:
        """The hashes at all its marks."""
        self.hash_to(self.marks)
        return self.hashes

    def digest(self, end: int) -> int:
        """Of its first bytes, from the last mark before `end` on with all before it; hashed up to
        there."""
        at = bisect_right(MARKS, end)
        above, start = (self.hashes[at - 1], MARKS[at - 1]) if at else (_scope(self.request), 0)
        return xxhash.xxh3_64_intdigest(self._bytes[start:end], above)


def _scope(request: GenerationRequest) -> int:
    """What must be equal, beside the prompt, for a prefix to be shared."""
    digest = xxhash.xxh3_64(request.model.encode())
    digest.update(b"\x00" + request.route.path.encode())
    for name, part in request.context:
        # Each by its own digest: parts that only join to the same bytes are different.
        digest.update(name.encode() + b"\x00")
        digest.update(xxhash.xxh3_64_digest(part))
    return digest.intdigest()
