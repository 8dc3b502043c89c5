"""Prompts as chains of hashes over their bytes: equal beginnings give equal beginnings.

    h[0] = H(scope, bytes up to mark 0)      h[i] = H(h[i-1], bytes from mark i-1 to mark i)

Cut from the prompt as it stood in the request's body, so nothing is decoded or tokenised: the next
turn of a conversation repeats the bytes of the last one. What else an engine's cache depends on
(model, route, tools, salt) goes into the scope. Marks are close together where prompts are short
and far apart where they are long: what is missed is some per cent of a prompt, and a long one costs
little more to hash than a short one. 64 bits, not cryptographic: a collision costs a cache miss,
never a wrong answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import xxhash

if TYPE_CHECKING:
    from gateway.vocabulary import GenerationRequest


def _marks() -> tuple[int, ...]:
    marks: list[int] = []
    for step, end in ((128, 4096), (512, 16_384), (2048, 131_072), (16_384, 2_097_152)):
        marks.extend(range((marks[-1] if marks else 0) + step, end + 1, step))
    return tuple(marks)


MARKS: Final = _marks()
"""Bytes from the beginning, ascending; what is longer than the last is told apart by then."""

AT_ONCE: Final = 8
"""Marks hashed together at the least, once the first is known to somebody."""


class Prompt:
    """One request's prompt, hashed as far as anybody asked and never twice."""

    __slots__ = ("_bytes", "hashes", "request")

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.hashes: list[int] = []  # at MARKS, as far as hashed
        self._bytes = memoryview(request.prompt)

    def __repr__(self) -> str:
        return f"<Prompt of {len(self._bytes)} bytes, {len(self.hashes)} marks hashed>"

    def __len__(self) -> int:
        return len(self._bytes)

    def more(self, marks: int = AT_ONCE) -> bool:
        """Hash on to so many further marks. False if there were none."""
        hashes, data, digest = self.hashes, self._bytes, xxhash.xxh3_64_intdigest
        begin = len(hashes)
        above, start = (hashes[-1], MARKS[begin - 1]) if begin else (_scope(self.request), 0)
        for mark in MARKS[begin : begin + marks]:
            if mark > len(data):
                break
            above = digest(data[start:mark], above)
            hashes.append(above)
            start = mark
        return len(hashes) > begin

    def whole(self) -> list[int]:
        """The hashes at all its marks."""
        while self.more(64):
            pass
        return self.hashes


def _scope(request: GenerationRequest) -> int:
    """What must be equal, beside the prompt, for a prefix to be shared."""
    digest = xxhash.xxh3_64(request.model.encode())
    digest.update(b"\x00" + request.route.path.encode())
    for name, part in request.context:
        # Each by its own digest: parts that only join to the same bytes are different.
        digest.update(name.encode() + b"\x00")
        digest.update(xxhash.xxh3_64_digest(part))
    return digest.intdigest()
