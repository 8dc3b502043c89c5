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
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import xxhash

if TYPE_CHECKING:
    from gateway.request import GenerationRequest

Hash: TypeAlias = Any
"""An `int` of 64 bits. They are compared and looked up, nothing is calculated with them: what mypyc
knows to be an `int` it takes apart, and puts together again, wherever it goes."""

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

_BEGINS: Final = (0, *MARKS)
_PARTS: Final = tuple([slice(begin, end) for begin, end in zip(_BEGINS, MARKS, strict=False)])


def _stops() -> tuple[int, ...]:
    stops = [at + 1 for at, mark in enumerate(MARKS) if mark == 4096 or not mark % _STOP_EVERY]
    return tuple([next(stop for stop in stops if stop > at) for at in range(len(MARKS))])


STOPS: Final = _stops()
"""Of each mark, how many there are up to where prompts are cut in any case: pieces that are
remembered, and forgotten, in one are not longer than that."""

HEAD: Final = MARKS[STOPS[0] - 1]
"""Bytes up to the first stop. So many are copied: pieces are cut out of a copy, which is `bytes`,
sooner than out of a view."""

_HEAD_MARKS: Final = tuple([bisect_right(MARKS, size) for size in range(0, HEAD + 1, MARKS[0])])
"""Of prompts that are no longer than that, by their length in steps of the finest."""

_digest: Final = cast("Callable[..., Hash]", xxhash.xxh3_64_intdigest)


class Prompt:
    """One request's prompt, hashed as far as anybody asked and never twice."""

    __slots__ = ("_head", "_length", "_view", "hashes", "marks", "model", "request")

    def __init__(self, request: GenerationRequest) -> None:
        self.request: Final = request
        self.model: Final = request.model
        self.hashes: Final[list[Hash]] = []  # at MARKS, as far as hashed
        prompt = request.prompt
        end = len(cast("Sized", prompt)) - 1  # what closes it is none of the next turn's
        self._view: memoryview | None = None  # of one that is longer than its head
        if end <= HEAD:
            self._head = b"".join((prompt,))  # `bytes` looks for a method first, and copies bytes
        else:
            self._view = memoryview(prompt)
            self._head = bytes(self._view[:HEAD])
        self._length = end = self._without_blanks(max(end, 0))
        self.marks: Final = (
            _HEAD_MARKS[end // MARKS[0]] if end <= HEAD else bisect_right(MARKS, end)
        )
        """How many it has: what closes it is behind them all."""

    def __repr__(self) -> str:
        return f"<Prompt of {len(self)} bytes, {len(self.hashes)} marks hashed>"

    def __len__(self) -> int:
        """In bytes, without what closes it."""
        return self._length

    def _without_blanks(self, end: int) -> int:
        """Nor are blanks before that the next turn's."""
        if end == 0:
            return end
        last = self._head[end - 1] if self._view is None else self._view[end - 1]
        if last > _SPACE:
            return end
        before = bytes(self._part(max(end - _MOST_BLANKS, 0), end))
        return end - len(before) + len(before.rstrip(b" \t\r\n"))

    def _part(self, begin: int, end: int) -> bytes | memoryview:
        """Its bytes from here to there."""
        return self._head[begin:end] if self._view is None else self._view[begin:end]

    def hash_to(self, marks: int) -> None:
        """As many of its first marks as there are."""
        hashes, head, view = self.hashes, self._head, self._view
        at, end = len(hashes), min(marks, self.marks)
        if at >= end:
            return
        above = hashes[-1] if at else _scope(self.model, self.request)
        begin, in_head = _BEGINS[at], min(end, STOPS[0])
        while at < in_head:
            mark = MARKS[at]
            above = _digest(head[begin:mark], above)
            hashes.append(above)
            begin = mark
            at += 1
        while at < end and view is not None:
            above = _digest(view[_PARTS[at]], above)
            hashes.append(above)
            at += 1

    def digest_of(self, begin: int, end: int) -> Hash:
        """Of the bytes from one of its marks, which is hashed, to another."""
        return _digest(self._part(MARKS[begin], MARKS[end]), self.hashes[begin])

    def repeats(self, hashes: array[int], digest: Hash) -> bool:
        """Does it go on from its last hash as those do who have these, the first of them the same,
        and this digest behind it? Then these are its own: a long part costs two looks, not one for
        each mark."""
        begin = len(self.hashes) - 1
        end = begin + len(hashes) - 1
        if end >= self.marks or self.digest_of(begin, end) != digest:
            return False
        self.hashes.pop()  # it is the first of them
        self.hashes.extend(hashes.tolist())
        return True

    def whole(self) -> list[Hash]:
        """The hashes at all its marks."""
        self.hash_to(self.marks)
        return self.hashes

    def digest(self, marks: int, end: int) -> Hash:
        """Of so many first bytes, given the last of their marks."""
        return _digest(self._part(MARKS[marks - 1], end), self.hashes[marks - 1])

    def is_answered(self, end: int) -> bool:
        """Is the next of its messages an answer, as far as can be seen at once?"""
        whole = self._head if self._view is None else self._view
        return _ANSWER.match(whole, end, end + _ROLE_WITHIN) is not None


_scopes: Final[dict[str, dict[str, Hash]]] = {}  # of prompts without more, by path and model
_MOST_MODELS: Final = 256


def _scope(model: str, request: GenerationRequest) -> Hash:
    """What must be equal, beside the prompt, for a prefix to be shared."""
    path = request.route.path
    models = _scopes.get(path)
    if models is None:
        models = _scopes[path] = {}
    scope = models.get(model)
    if scope is None:
        if len(models) >= _MOST_MODELS:  # clients may ask for any
            models.clear()
        scope = models[model] = _digest(model.encode() + b"\x00" + path.encode())
    for name, part in request.context:
        # Each by its own digest: parts that only join to the same bytes are different.
        named = name.encode() + b"\x00" + xxhash.xxh3_64_digest(part)
        scope = _digest(named, scope)
    return scope
