"""How many tokens is so much of a prompt?

Asked when a prompt is looked up: beginnings are marked in bytes, hits are told in tokens. Learnt
beginnings are known; beyond them bytes are taken in proportion to the whole prompt's estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gateway.choose.text_chain import MARKS, Prompt
from gateway.choose.text_index import Walk
from gateway.vocabulary import Tokens


class Ruler:
    """Beginnings of a prompt measured in tokens: learnt where they are, in proportion beyond."""

    __slots__ = ("_per_byte", "_walk", "length")

    def __init__(self, prompt: Prompt, walk: Walk) -> None:
        self._walk = walk
        self._per_byte = prompt.request.prompt_tokens / max(len(prompt), 1)
        self.length: Tokens = prompt.request.prompt_tokens
        if walk.learnt:
            last = walk.path[walk.learnt - 1]
            rest = len(prompt) - MARKS[walk.learnt - 1] + last.beyond
            self.length = last.tokens + int(rest * self._per_byte)

    def __repr__(self) -> str:
        return f"<Ruler of {self.length} tokens>"

    def tokens_of(self, depths: Sequence[tuple[int, int]]) -> dict[int, Tokens]:
        """(bits, beginnings) to tokens by bit."""
        return {bit: self._at(depth) for bits, depth in depths for bit in each_bit(bits)}

    def cut(self, tokens: Tokens, block_size: Tokens) -> Tokens:
        """To whole blocks, and to less than the prompt: its last token is always computed."""
        return max(min(tokens, self.length - 1), 0) // block_size * block_size

    def _at(self, depth: int) -> Tokens:
        walk = self._walk
        beginning = walk.path[depth - 1]
        if beginning.lesson is not None:
            return beginning.tokens + int(beginning.beyond * self._per_byte)
        plain = int(MARKS[depth - 1] * self._per_byte)
        if not walk.learnt:
            return plain
        if depth < walk.learnt:
            return min(plain, walk.path[walk.learnt - 1].tokens)
        last = walk.path[walk.learnt - 1]
        beyond = MARKS[depth - 1] - MARKS[walk.learnt - 1] + last.beyond
        return last.tokens + int(beyond * self._per_byte)


def each_bit(bits: int) -> Iterator[int]:
    """The bits of a mask, one by one."""
    while bits:
        bit = bits & -bits
        yield bit
        bits ^= bit
