"""How many tokens is so much of a prompt?

Asked when a prompt is looked up: beginnings are marked in bytes, hits are told in tokens. Three
things are known for certain: where an earlier prompt ended and its answer began, as the response to
it told (so the next turn of a conversation is foreseen to the token); what the last one found that
parted from known ones at the same mark; and edges of prompts that have been read. Beyond them bytes
are taken in proportion to the whole prompt's estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.choose.stretch import End, Stretch, each_bit
from gateway.choose.text_chain import MARKS, Prompt
from gateway.choose.text_index import Walk
from gateway.vocabulary import Seconds, Tokens


class Ruler:
    """Beginnings of a prompt measured in tokens."""

    __slots__ = ("_keeps_answers", "ends", "length", "per_byte", "walk")

    def __init__(self, prompt: Prompt, walk: Walk, *, keeps_answers: bool) -> None:
        """`keeps_answers`: the next turn of a conversation repeats the last answer's tokens."""
        self.walk = walk
        tokens: Tokens = prompt.request.prompt_tokens
        self.per_byte = tokens / max(len(prompt), 1)
        self._keeps_answers = keeps_answers
        self.length = tokens
        self.ends: dict[int, End] = {}
        """Of the prompt that this one continues, by bits of replicas that have answered it."""
        if walk.learnt:
            rest = len(prompt) - MARKS[walk.learnt - 1] + walk.beyond
            self.length = walk.tokens + int(rest * self.per_byte)
        if walk.is_whole and walk.last is not None and walk.last.ends:
            self._find_ends(prompt, walk.last.ends)

    def __repr__(self) -> str:
        return f"<Ruler of {self.length} tokens>"

    def parting(self, bit: int) -> tuple[Stretch, int] | None:
        """Where it goes on from all that is known, and how many marks that is; None where that is
        not because prompts part, or a replica was not given so much."""
        walk = self.walk
        if self.ends or walk.last is None or not walk.believed[-1][0] & bit:
            return None
        return walk.last, walk.depth

    def tokens_of(self, depths: Sequence[tuple[int, int]]) -> dict[int, Tokens]:
        """(bits, marks) to tokens by bit."""
        found: dict[int, Tokens] = {}
        for bits, depth in depths:
            if not bits:
                continue
            tokens = self._at(depth)
            if bits & (bits - 1):
                for bit in each_bit(bits):
                    found[bit] = tokens
            else:
                found[bits] = tokens
            if self.ends and depth == self.walk.depth:
                for bit, end in self.ends.items():
                    if bit & bits:
                        found[bit] = self._kept(end)
        return found

    def cut(self, tokens: Tokens, block_size: Tokens) -> Tokens:
        """To whole blocks, and to less than the prompt: its last token is always computed."""
        tokens = min(tokens, self.length - 1)
        return tokens - tokens % block_size if tokens > 0 else 0

    def _find_ends(self, prompt: Prompt, ends: Sequence[End]) -> None:
        depth, length = self.walk.depth, len(prompt)
        for end in ends:
            if end.length > length or prompt.digest(depth, end.length) != end.digest:
                continue
            if end.length == length or prompt.is_answered(end.length):
                self.ends[end.bit] = end
                rest = int((length - end.length) * self.per_byte)
                self.length = end.prompt_tokens + rest
                if end.length < length:
                    self.length = max(self.length, self._kept(end) + 1)

    def _kept(self, end: End) -> Tokens:
        return end.tokens if self._keeps_answers else end.prompt_tokens

    def _at(self, depth: int) -> Tokens:
        walk, mark = self.walk, MARKS[depth - 1]
        if depth == walk.depth and walk.is_whole and walk.last is not None and walk.last.parted:
            return walk.last.parted
        if walk.lesson is None:
            return int(mark * self.per_byte)
        if depth > walk.learnt:
            beyond = mark - MARKS[walk.learnt - 1] + walk.beyond
            return walk.tokens + int(beyond * self.per_byte)
        tokens, beyond = walk.lesson.tokens_at(mark)
        if tokens:
            return tokens + int(beyond * self.per_byte)
        return min(int(mark * self.per_byte), walk.tokens)


class Hits:
    """What replicas hold of one prompt, in their order.

    `load_s` is how long it takes to bring in what of it is not in GPU memory. `prompt_tokens` is
    how long the prompt is, as well as is known.
    """

    __slots__ = ("load_s", "prompt_tokens", "ruler", "tokens")

    def __init__(
        self, prompt_tokens: Tokens, tokens: list[Tokens], load_s: list[Seconds], ruler: Ruler
    ) -> None:
        self.prompt_tokens: Final = prompt_tokens
        self.tokens: Final = tokens
        self.load_s: Final = load_s
        self.ruler: Final = ruler

    def __repr__(self) -> str:
        return f"<Hits {self.tokens} of {self.prompt_tokens} tokens>"

    def uncached(self, index: int) -> Tokens:
        """To be prefilled there; at least one."""
        return max(self.prompt_tokens - self.tokens[index], 1)
