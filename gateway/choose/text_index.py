"""What was sent where: the beginnings of prompts, and which replicas have been given them.

What is believed of a replica is what we sent it: an engine keeps what it has prefilled and evicts
the least recently used from the tail, and so do we, up to the size we believe its cache has. A
prompt on its way is *pending* there from dispatch on, so that siblings follow their leader.

A beginning also remembers what has been learnt of it: how many tokens it is, and the names of its
blocks, by which caches can be looked into (`Lesson`).

Invariants. What a replica is believed to hold is never larger than its capacity. Of one prompt,
later beginnings go before earlier ones. A beginning nobody was given is not kept. When everything
has been forgotten, nothing is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.choose.block_hash import Chain
from gateway.choose.kv_source import ChainKey
from gateway.choose.text_chain import AT_ONCE, MARKS, Prompt
from gateway.vocabulary import Tokens

LEAST_SHARE: Final = 1 / 64
"""Of its nominal size, what a cache is believed to have at the least."""


class Lesson:
    """A tokenised prompt: the names of its blocks, in each way replicas name them."""

    __slots__ = ("adapter", "chains", "salt")

    def __init__(self, salt: str | None, adapter: str | None) -> None:
        self.salt = salt
        self.adapter = adapter
        self.chains: dict[ChainKey, Chain] = {}

    def __repr__(self) -> str:
        return f"<Lesson {list(self.chains.values())}>"


class Beginning(msgspec.Struct, gc=False):
    """The first bytes of some prompts, up to a mark.

    There are many, they live long, and no cycle leads through one: the collector need not know.
    """

    believed: int = 0  # bits of replicas
    pending: int = 0
    lesson: Lesson | None = None
    # Where there is a lesson: the tokens it begins with for certain, and the bytes beyond them.
    tokens: Tokens = 0
    beyond: int = 0

    def __repr__(self) -> str:
        return f"<Beginning held by {self.believed:b}, on its way to {self.pending:b}>"


class Given:
    """What one replica was given."""

    __slots__ = ("bit", "capacity", "has_left", "nominal", "pending", "recent", "tokens", "unread",
                 )  # fmt: skip

    def __init__(self, bit: int, capacity: Tokens) -> None:
        self.bit = bit
        self.has_left = False
        self.nominal = capacity
        self.capacity: float = capacity
        self.tokens = 0.0  # sum of `recent`
        self.recent: dict[int, float] = {}  # beginnings: tokens since the mark before, oldest first
        self.unread: set[int] = set()  # believed only because they are on their way
        self.pending: dict[int, int] = {}  # beginnings: prompts on their way

    def __repr__(self) -> str:
        return f"<Given {self.tokens:.0f} of {self.capacity:.0f} tokens>"

    def resize(self, capacity: Tokens) -> None:
        """Its cache has this size."""
        self.nominal = capacity
        self.capacity = capacity

    def scale(self, factor: float) -> None:
        """It keeps more or less than was believed."""
        scaled = self.capacity * factor
        self.capacity = min(max(scaled, self.nominal * LEAST_SHARE), float(self.nominal))


class Walk:
    """How far a prompt is known: its beginnings in order, and who was given how many of them."""

    __slots__ = ("believed", "learnt", "path", "pending")

    def __init__(self) -> None:
        self.path: list[Beginning] = []
        self.believed: list[tuple[int, int]] = []  # (bits, beginnings)
        self.pending: list[tuple[int, int]] = []
        self.learnt = 0  # beginnings up to the last one with a lesson

    def __repr__(self) -> str:
        return f"<Walk over {len(self.path)} beginnings, {self.learnt} learnt>"


class TextIndex:
    """Beginnings of prompts. O(marks) per prompt."""

    __slots__ = ("_beginnings", "_bits", "_free", "_leaving")

    def __init__(self) -> None:
        self._beginnings: dict[int, Beginning] = {}
        self._free: list[int] = []
        self._bits = 0
        self._leaving: list[Given] = []

    def __repr__(self) -> str:
        return f"<TextIndex {len(self)} beginnings>"

    def __len__(self) -> int:
        return len(self._beginnings)

    def join(self, capacity: Tokens) -> Given:
        """One more replica."""
        if not self._free:
            self._free.append(1 << self._bits)
            self._bits += 1
        return Given(self._free.pop(), capacity)

    def leave(self, given: Given) -> None:
        """Its replica is gone: swept away by `sweep`."""
        given.has_left = True
        self._leaving.append(given)

    def sweep(self, beginnings: int) -> None:
        """Clear so many beginnings away after replicas that left."""
        while self._leaving and beginnings > 0:
            given = self._leaving[-1]
            for where in (given.recent, given.pending):
                while where and beginnings > 0:
                    beginnings -= 1
                    self._clear(where.popitem()[0], given.bit)
            if not given.recent and not given.pending:
                self._free.append(self._leaving.pop().bit)

    def walk(self, prompt: Prompt) -> Walk:
        """Hashes the prompt no further than anybody has been given it."""
        walk = Walk()
        path, get, hashes = walk.path, self._beginnings.get, prompt.hashes
        believed = pending = -1  # bits of those that were given all so far
        depth = 0
        while depth < len(hashes) or prompt.more(max(AT_ONCE, depth // 2) if depth else 1):
            beginning = get(hashes[depth])
            if beginning is None:
                break
            here = beginning.believed
            if here & believed != believed:
                if depth:
                    walk.believed.append((believed & ~here, depth))
                believed &= here
            here = beginning.pending
            if here & pending != pending:
                if depth:
                    walk.pending.append((pending & ~here, depth))
                pending &= here
            path.append(beginning)
            depth += 1
            if beginning.lesson is not None:
                walk.learnt = depth
        if depth:
            walk.believed.append((believed, depth))
            walk.pending.append((pending, depth))
        return walk

    def send(self, given: Given, hashes: Sequence[int], tokens_per_byte: float) -> None:
        """A prompt with these beginnings is on its way there."""
        bit, recent, pending = given.bit, given.recent, given.pending
        beginnings = self._beginnings
        # From the last to the first, so that the first is the newest.
        for at in range(len(hashes) - 1, -1, -1):
            key = hashes[at]
            beginning = beginnings.get(key)
            if beginning is None:
                beginning = beginnings[key] = Beginning()
            was = recent.pop(key, None)
            if was is None:
                given.unread.add(key)
                beginning.believed |= bit
                was = (MARKS[at] - (MARKS[at - 1] if at else 0)) * tokens_per_byte
                given.tokens += was
            recent[key] = was
            beginning.pending |= bit
            pending[key] = pending.get(key, 0) + 1
        self.trim(given)

    def arrived(self, given: Given, hashes: Sequence[int]) -> None:
        """It has been read there."""
        given.unread.difference_update(hashes)

    def settle(self, given: Given, hashes: Sequence[int]) -> None:
        """It is on its way no longer; what was not read is not believed."""
        if given.has_left:  # its bit may be another's by now
            return
        pending, unread = given.pending, given.unread
        for key in hashes:
            left = pending.get(key, 0) - 1
            if left > 0:
                pending[key] = left
                continue
            pending.pop(key, None)
            if key in unread:
                self._drop(given, key)
            beginning = self._beginnings.get(key)
            if beginning is not None:
                beginning.pending &= ~given.bit
                if not beginning.believed and not beginning.pending:
                    del self._beginnings[key]

    def trim(self, given: Given) -> None:
        """Let go of the least recently given, down to the capacity."""
        while given.tokens > given.capacity and given.recent:
            self._drop(given, next(iter(given.recent)))

    def teach(
        self,
        hashes: Sequence[int],
        lesson: Lesson,
        tokens: Sequence[Tokens],
        beyond: Sequence[int],
    ) -> None:
        """The first of these beginnings are so many tokens each, with so many bytes beyond the
        last of them, and their blocks are known. Where it is none, that is not known."""
        for key, count, rest in zip(hashes, tokens, beyond, strict=False):
            beginning = self._beginnings.get(key)
            if beginning is not None and count:
                beginning.lesson = lesson
                beginning.tokens = count
                beginning.beyond = rest

    def lesson(self, hashes: Sequence[int]) -> tuple[Lesson | None, Tokens]:
        """What is known of the longest of these beginnings that has learnt, and its tokens."""
        for key in reversed(hashes):
            beginning = self._beginnings.get(key)
            if beginning is not None and beginning.lesson is not None:
                return beginning.lesson, beginning.tokens
        return None, 0

    def _drop(self, given: Given, key: int) -> None:
        given.tokens -= given.recent.pop(key, 0.0)
        if not given.recent:
            given.tokens = 0.0  # whatever rounding has left
        given.unread.discard(key)
        beginning = self._beginnings.get(key)
        if beginning is not None:
            beginning.believed &= ~given.bit
            if not beginning.believed and not beginning.pending:
                del self._beginnings[key]

    def _clear(self, key: int, bit: int) -> None:
        beginning = self._beginnings.get(key)
        if beginning is not None:
            beginning.believed &= ~bit
            beginning.pending &= ~bit
            if not beginning.believed and not beginning.pending:
                del self._beginnings[key]
