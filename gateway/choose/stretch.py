"""What prompts have in common, in pieces.

A *stretch* is some successive beginnings that nobody has been given apart. Whoever walks along it
is told apart by the hashes at its marks: they are chained, so that two prompts that agree at one
mark agree at all before it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

from gateway.choose.block_hash import Chain
from gateway.choose.kv_source import ChainKey
from gateway.choose.text_chain import MARKS, Hash
from gateway.vocabulary import Tokens

MOST_ENDS: Final = 4
"""Remembered of prompts that are alike up to their last mark."""


class Lesson:
    """A tokenised prompt: the names of its blocks, in each way replicas name them, and how many
    tokens it begins with for certain up to where."""

    __slots__ = ("_counts", "_ends", "adapter", "chains", "salt")

    def __init__(self, salt: str | None, adapter: str | None) -> None:
        self.salt = salt
        self.adapter = adapter
        self.chains: dict[ChainKey, Chain] = {}
        self._ends: array[int] = array("Q")
        self._counts: array[int] = array("Q")

    def __repr__(self) -> str:
        return f"<Lesson {list(self.chains.values())}>"

    def measured(self, edges: Sequence[tuple[int, Tokens]]) -> None:
        """By these (see `Tokenised`)."""
        self._ends = array("Q", [end for end, _ in edges])
        self._counts = array("Q", [count for _, count in edges])

    def tokens_at(self, mark: int) -> tuple[Tokens, int]:
        """How many are certain of so many bytes, and the bytes beyond the last of them."""
        at = bisect_right(self._ends, mark)
        return (self._counts[at - 1], mark - self._ends[at - 1]) if at else (0, mark)


class End:
    """Where a prompt ended, and its answer began, at one replica.

    The prompt is so many bytes, those beyond its last mark told by their digest. Its tokens, and
    those the replica computed with the answer, are as the response told them.
    """

    __slots__ = ("bit", "digest", "length", "prompt_tokens", "tokens")

    def __init__(
        self, length: int, digest: Hash, bit: int, prompt_tokens: Tokens, tokens: Tokens
    ) -> None:
        self.length: Final = length
        self.digest: Final = digest
        self.bit: Final = bit
        self.prompt_tokens: Final = prompt_tokens
        self.tokens: Final = tokens

    def __repr__(self) -> str:
        return f"<End after {self.length} bytes, {self.prompt_tokens} tokens>"


class Stretch:
    """Some successive beginnings of prompts.

    There are many, they live long, and no cycle leads through one.
    """

    __slots__ = ("believed", "digest", "ends", "hashes", "last", "lesson", "parted", "pending",
                 "tokens")  # fmt: skip

    def __init__(self, hashes: array[int], last: Hash, tokens: Tokens) -> None:
        self.hashes = hashes  # at its marks
        self.last = last  # of them: it is looked at most, and taking it out of them makes a new one
        self.tokens = tokens  # about as many as it adds to what is before it
        self.believed = 0  # bits of replicas
        self.pending = 0
        self.lesson: Lesson | None = None  # of a prompt that goes all along it
        self.ends: tuple[End, ...] = ()  # beyond its last mark
        self.digest: Hash = 0  # of the bytes behind its first mark, once they have been seen again
        self.parted: Tokens = 0  # cached of the last prompt that went on from here where nobody had

    def __repr__(self) -> str:
        return f"<Stretch of {len(self.hashes)} held by {self.believed:b}>"

    def end(self, end: End) -> None:
        """A prompt that goes no further than a mark beyond it was answered."""
        if not self.ends:
            self.ends = (end,)
            return
        others = [each for each in self.ends if (each.digest, each.bit) != (end.digest, end.bit)]
        self.ends = (*others[1 - MOST_ENDS :], end)

    def cut(self, marks: int, tokens: Tokens) -> Stretch:
        """It ends after so many marks; what was behind them, so many tokens, is another."""
        behind = Stretch(self.hashes[marks:], self.last, tokens)
        behind.believed, behind.pending = self.believed, self.pending
        behind.lesson, behind.ends, behind.parted = self.lesson, self.ends, self.parted
        self.hashes = self.hashes[:marks]
        self.last = self.hashes[-1]
        self.tokens -= tokens
        self.ends, self.digest, self.parted = (), 0, 0
        return behind

    def shared(self, hashes: list[Hash], at: int) -> int:
        """How many of its marks are those of the prompt from `at` on; the first is."""
        theirs = self.hashes
        marks, length = len(hashes) - at, len(theirs)
        if length <= marks:
            if self.last == hashes[at + length - 1]:
                return length
            marks = length
        elif theirs[marks - 1] == hashes[at + marks - 1]:
            return marks
        low, high = 1, marks - 1
        while low < high:
            middle = (low + high + 1) // 2
            if theirs[middle - 1] == hashes[at + middle - 1]:
                low = middle
            else:
                high = middle - 1
        return low


def tokens_behind(stretch: Stretch, at: int, marks: int) -> Tokens:
    """Those of one that begins at a mark, behind so many of its own."""
    begin, middle = MARKS[at - 1] if at else 0, MARKS[at + marks - 1]
    end = MARKS[at + len(stretch.hashes) - 1]
    return stretch.tokens * (end - middle) // (end - begin)


def marks_without(stretch: Stretch, at: int, tokens: float) -> int:
    """How many of its marks are left when so many tokens go from its tail."""
    for marks in range(len(stretch.hashes) - 1, 0, -1):
        if tokens_behind(stretch, at, marks) >= tokens:
            return marks
    return 0


def each_bit(bits: int) -> Iterator[int]:
    """The bits of a mask, one by one."""
    while bits:
        bit = bits & -bits
        yield bit
        bits ^= bit
