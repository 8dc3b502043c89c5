"""What prompts have in common, in pieces, and what one replica was given of them.

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
from gateway.choose.text_chain import MARKS
from gateway.record import Leaf, Node
from gateway.vocabulary import Tokens

MOST_ENDS: Final = 4
"""Remembered of prompts that are alike up to their last mark."""

LEAST_SHARE: Final = 1 / 64
"""Of its nominal size, what a cache is believed to have at the least."""


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


class End(Leaf, frozen=True):
    """Where a prompt ended, and its answer began, at one replica.

    The prompt is so many bytes, those beyond its last mark told by their digest. Its tokens, and
    those the replica computed with the answer, are as the response told them.
    """

    length: int
    digest: int
    bit: int
    prompt_tokens: Tokens
    tokens: Tokens


class Stretch(Node):
    """Some successive beginnings of prompts.

    There are many, they live long, and no cycle leads through one: the collector need not know.
    """

    hashes: array[int]  # at its marks
    tokens: Tokens  # about as many as it adds to what is before it
    believed: int = 0  # bits of replicas
    pending: int = 0
    lesson: Lesson | None = None  # of a prompt that goes all along it
    ends: tuple[End, ...] = ()  # beyond its last mark
    digest: int = 0  # of the bytes behind its first mark, once they have been seen again
    parted: Tokens = 0  # cached of the last prompt that went on from here where nobody had

    def end(self, end: End) -> None:
        """A prompt that goes no further than a mark beyond it was answered."""
        if not self.ends:
            self.ends = (end,)
            return
        others = [each for each in self.ends if (each.digest, each.bit) != (end.digest, end.bit)]
        self.ends = (*others[1 - MOST_ENDS :], end)

    def __repr__(self) -> str:
        return f"<Stretch of {len(self.hashes)} held by {self.believed:b}>"


class Given:
    """What one replica was given."""

    __slots__ = ("bit", "capacity", "has_left", "nominal", "pending", "queue", "stamps", "tick",
                 "tokens", "unread")  # fmt: skip

    def __init__(self, bit: int, capacity: Tokens) -> None:
        self.bit = bit
        self.has_left = False
        self.nominal = capacity
        self.capacity = float(capacity)
        self.tokens: Tokens = 0  # sum over `stamps`
        self.tick = 0
        self.stamps: dict[Stretch, int] = {}  # what is believed, and when it was last given
        self.queue: list[tuple[int, Stretch]] = []  # heap; a stamp may be older than it is by now
        self.unread: dict[Stretch, int] = {}  # believed only because so many are on their way
        self.pending: dict[Stretch, int] = {}  # prompts on their way

    def __repr__(self) -> str:
        return f"<Given {self.tokens} of {self.capacity:.0f} tokens>"

    def resize(self, capacity: Tokens) -> None:
        """Its cache has this size."""
        self.nominal = capacity
        self.capacity = float(capacity)

    def scale(self, factor: float) -> None:
        """It keeps more or less than was believed."""
        scaled = self.capacity * factor
        self.capacity = min(max(scaled, self.nominal * LEAST_SHARE), float(self.nominal))


def shared_marks(stretch: Stretch, hashes: array[int], at: int) -> int:
    """How many of its marks are those of the prompt from `at` on; the first is."""
    theirs = stretch.hashes
    low, high = 1, min(len(theirs), len(hashes) - at)
    if theirs[high - 1] == hashes[at + high - 1]:
        return high
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
