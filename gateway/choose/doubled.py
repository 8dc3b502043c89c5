"""A beginning that several gateways send to a replica at once is read there once.

Each that sends it before it has heard of the others counts all of it as work of its own. Who hears
that another has done the same has one of the two give up what is common: the one that brings less
of it; else the one whose last mark, or whose gateway's number, is the higher. So both gateways find
the same one without asking, and of any number of them one goes on counting it.

What was given up is not taken back if the other one is not read there after all: the replica is
then believed to have less to do, by one beginning, until a first byte says better.

Invariants. Nothing is given up twice, nor to one that gives it up itself. Only what is on its way
is remembered.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from typing import TYPE_CHECKING

from gateway.choose.elsewhere import marks_of
from gateway.choose.price import work
from gateway.choose.text_chain import MARKS

if TYPE_CHECKING:
    from gateway.choose.owed import Owed
    from gateway.choose.text_chain import Hash, Prompt
    from gateway.kv_cache import Placement
    from gateway.vocabulary import Tokens


class Brought:
    """A prompt of ours on its way: it brings its marks from one of them on."""

    __slots__ = ("_attention_tokens", "_length", "_owed", "_tokens", "fresh_from", "gateway",
                 "hashes")  # fmt: skip

    def __init__(
        self,
        owed: Owed,
        prompt: Prompt,
        prompt_tokens: Tokens,
        gateway: int,
        attention_tokens: float,
    ) -> None:
        """`prompt_tokens` are all of it; those that `owed` does not count are there already."""
        assert owed.uncached is not None
        self.hashes = prompt.hashes
        self.gateway = gateway
        self._owed = owed
        self._tokens = prompt_tokens
        self._length = len(prompt)
        self._attention_tokens = attention_tokens
        held = self._length * (prompt_tokens - owed.uncached) // prompt_tokens  # of its bytes
        self.fresh_from = bisect_right(MARKS, held, hi=len(self.hashes))

    def __repr__(self) -> str:
        return f"<Brought from {self.fresh_from} of {len(self.hashes)} marks>"

    @property
    def key(self) -> Hash:
        """The hash at the first mark it brings."""
        return self.hashes[self.fresh_from]

    @property
    def order(self) -> tuple[int, Hash, int]:
        """Of two that bring the same, the lesser goes on counting it. As others were told, so that
        it is the same of any two, whatever they have given up to a third."""
        return self.fresh_from, self.hashes[-1], self.gateway

    def leaves(self, until: int) -> bool:
        """Another one brings what is before this mark. Is that news?"""
        owed, tokens = self._owed, self._tokens
        assert owed.uncached is not None
        assert owed.dispatch is not None
        found = tokens * MARKS[until - 1] // self._length
        found -= found % owed.dispatch.record.block_size
        uncached = max(tokens - found, 1)
        if uncached >= owed.uncached:
            return False
        owed.less(owed.uncached - uncached, work(tokens, uncached, self._attention_tokens))
        return True


class Doubled:
    """Those of ours that are on their way, by replica. O(marks) for each that is heard of."""

    __slots__ = ("_ours",)

    def __init__(self) -> None:
        self._ours: defaultdict[str, dict[Hash, Brought]] = defaultdict(dict)

    def __repr__(self) -> str:
        return f"<Doubled: {len(self)} on their way>"

    def __len__(self) -> int:
        """On their way, with marks of their own."""
        return sum([len(each) for each in self._ours.values()])

    def add(self, replica: str, brought: Brought) -> None:
        """It goes there. Of ours that bring the same, the first one is remembered."""
        if brought.fresh_from < len(brought.hashes):
            self._ours[replica].setdefault(brought.key, brought)

    def remove(self, replica: str, brought: Brought) -> None:
        """It is on its way no longer."""
        ours = self._ours.get(replica)
        if ours is None or brought.fresh_from >= len(brought.hashes):
            return
        if ours.get(brought.key) is brought:
            del ours[brought.key]
        if not ours:
            del self._ours[replica]

    def told(self, placement: Placement) -> bool:
        """Another gateway has sent one: does one of ours bring less for that?"""
        ours = self._ours.get(placement.replica)
        if not ours:
            return False
        marks = marks_of(placement)
        if not marks:
            return False
        theirs = placement.fresh_from, marks[-1], placement.gateway
        for at in range(max(placement.fresh_from, 0), len(marks)):
            mine = ours.get(marks[at])
            if mine is not None and mine.fresh_from == at and theirs < mine.order:
                return mine.leaves(_alike(mine.hashes, marks, at))
        return False


def _alike(one: list[Hash], other: list[Hash], at: int) -> int:
    """Up to which mark they are the same, if they are at this one."""
    low, high = at + 1, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
