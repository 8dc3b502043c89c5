"""What to measure: a plan of points that pins every parameter of the timing model down.

Pure. Prompts alone, short to long, whole and with a part cached (what prefill costs, and attention
over a context); prompts right behind another (what of it is the step's); batches of several sizes
at several contexts (what a decode step costs); and a prompt that comes among decodes (what the two
share in a step).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SHORTEST: Final = 16
ROOM: Final = 64
"""Tokens left of the model's length for what is generated."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine can hold."""

    max_model_len: int
    block_size: int
    capacity_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int

    @property
    def longest(self) -> int:
        """The longest prompt that leaves room."""
        return max(1, self.max_model_len - ROOM)

    def aligned(self, tokens: int) -> int:
        """Whole blocks, at least one: what can be cached."""
        return max(1, tokens // self.block_size) * self.block_size


@dataclass(frozen=True, slots=True)
class Point:
    """So many sequences that decode at a context, and a prompt beside; either may be missing."""

    batch: int = 0
    context: int = 0
    cached: int = 0
    """Tokens of the prompt that are cached when it is asked for."""
    uncached: int = 0
    behind: int = 0
    """The prompt comes while another of so many tokens is computed, and is computed next: so it
    shows a step alone, without what it takes to arrive."""

    def __str__(self) -> str:
        decode = f"decode of {self.batch} at {self.context}" if self.batch else ""
        prompt = f"prefill of {self.uncached}" if self.uncached else ""
        after = f" after {self.cached} cached" if self.cached else ""
        before = f" behind {self.behind}" if self.behind else ""
        return " with ".join(part for part in (decode, prompt + after + before) if part)


def plan(limits: Limits) -> list[Point]:
    """The points, each once, of those that fit."""
    points = [Point(uncached=length) for length in _lengths(limits.longest)]
    points += [
        Point(cached=cached, uncached=total - cached)
        for total in (limits.longest // 2, limits.longest)
        for cached in (limits.aligned(total // 2), limits.aligned(total * 7 // 8))
        if 0 < cached < total
    ]
    # What is computed in several steps would share the last of them with whatever comes behind.
    ahead = min(limits.longest, limits.max_num_batched_tokens)
    points += [
        Point(uncached=length, behind=ahead)
        for length in (SHORTEST, ahead // 4)
        if 0 < length < ahead
    ]
    contexts = {limits.aligned(limits.longest * part // 8) for part in (1, 3, 6)}
    points += [
        Point(batch=batch, context=context)
        for batch in (1, 2, 4, 8, 16, 32)
        for context in sorted(contexts)
        if _fits(limits, batch, context, 0)
    ]
    points += [
        Point(batch=batch, context=limits.aligned(limits.longest // 4), uncached=length)
        for batch in (1, 8)
        for length in (limits.longest // 16, limits.longest // 4)
        if length and _fits(limits, batch, limits.aligned(limits.longest // 4), length)
    ]
    return list(dict.fromkeys(points))


def _lengths(longest: int) -> list[int]:
    lengths, length = [], min(SHORTEST, longest)
    while length < longest:
        lengths.append(length)
        length *= 2
    return [*lengths, longest]


def _fits(limits: Limits, batch: int, context: int, prompt: int) -> bool:
    if batch + bool(prompt) > limits.max_num_seqs or context + ROOM > limits.max_model_len:
        return False
    if batch + prompt > limits.max_num_batched_tokens:
        return False  # the prompt would take more than the one step
    return batch * (context + ROOM) + prompt <= limits.capacity_tokens * 3 // 4
