"""How many tokens is so much of a prompt?

Asked when a prompt is looked up: beginnings are marked in bytes, hits are told in tokens. Learnt
beginnings are known; beyond them bytes are taken in proportion to the whole prompt's estimate.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.choose.stretch import each_bit
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
            rest = len(prompt) - MARKS[walk.learnt - 1] + walk.beyond
            self.length = walk.tokens + int(rest * self._per_byte)

    def __repr__(self) -> str:
        return f"<Ruler of {self.length} tokens>"

    def tokens_of(self, depths: Sequence[tuple[int, int]]) -> dict[int, Tokens]:
        """(bits, marks) to tokens by bit."""
        found: dict[int, Tokens] = {}
        for bits, depth in depths:
            tokens = self._at(depth)
            for bit in each_bit(bits):
                found[bit] = tokens
        return found

    def cut(self, tokens: Tokens, block_size: Tokens) -> Tokens:
        """To whole blocks, and to less than the prompt: its last token is always computed."""
        return max(min(tokens, self.length - 1), 0) // block_size * block_size

    def _at(self, depth: int) -> Tokens:
        walk, mark = self._walk, MARKS[depth - 1]
        if walk.lesson is None:
            return int(mark * self._per_byte)
        if depth > walk.learnt:
            beyond = mark - MARKS[walk.learnt - 1] + walk.beyond
            return walk.tokens + int(beyond * self._per_byte)
        tokens, beyond = walk.lesson.tokens_at(mark)
        if tokens:
            return tokens + int(beyond * self._per_byte)
        return min(int(mark * self._per_byte), walk.tokens)
