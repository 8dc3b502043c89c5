"""What one replica was given of prompts, and in which order.

Believed to be kept there, until it is more than its cache can hold: then goes first what was given
longest ago, and of one prompt what is further behind.

How it is done: what is given again stands in line again, behind everything; where it stood before,
it is passed over. So giving costs no more than that, however many there are. Only what a stretch is
cut into later belongs further in front, and is kept in a heap of its own.

Invariants. Whoever is kept stands in line, or in the heap, where its stamp belongs. The line is no
longer than twice what is kept, and some more.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final

from gateway.choose.stretch import Stretch
from gateway.vocabulary import Tokens

LEAST_SHARE: Final = 1 / 64
"""Of its nominal size, what a cache is believed to have at the least."""

LEAST_LINE: Final = 64
"""More than twice what is kept, and so much: of what went otherwise there is too much in line."""

_TICK: Final = 256  # more than there are marks: earlier ones of a prompt are newer than later ones


class Kept:
    """A stretch that is believed to be kept."""

    __slots__ = ("is_kept", "places", "stamp", "stretch", "unread")

    def __init__(self, stretch: Stretch, stamp: int, unread: int) -> None:
        self.stretch: Final = stretch
        self.stamp = stamp  # when it was last given
        self.unread = unread  # if not 0, it is believed only because so many are on their way
        self.places = 0  # in line; it belongs at the last of them
        self.is_kept = True

    def __repr__(self) -> str:
        return f"<Kept {self.stretch!r} since {self.stamp}>"

    @property
    def at(self) -> int:
        """Its first mark, counted from the beginning of the prompt."""
        return _TICK - 1 - self.stamp % _TICK


class Given:
    """What one replica was given."""

    __slots__ = ("_line", "_newest", "_next", "_parts", "bit", "capacity", "has_left", "kept",
                 "nominal", "pending", "tokens")  # fmt: skip

    def __init__(self, bit: int, capacity: Tokens) -> None:
        self.bit: Final = bit
        self.has_left = False
        self.nominal = capacity
        self.capacity = float(capacity)
        self.tokens: Tokens = 0  # sum over `kept`
        self.kept: Final[dict[Stretch, Kept]] = {}
        self.pending: Final[dict[Stretch, int]] = {}  # prompts on their way
        self._newest = _TICK - 1  # stamp of the last prompt's beginning
        self._line: list[Kept] = []  # as they were given
        self._next: list[Kept] = []  # and what came before all of them, the oldest one last
        self._parts: list[tuple[int, Kept]] = []  # heap: of those that were cut

    def __repr__(self) -> str:
        return f"<Given {self.tokens} of {self.capacity:.0f} tokens>"

    @property
    def in_line(self) -> int:
        """Places, those to be passed over included."""
        return len(self._line) + len(self._next) + len(self._parts)

    def resize(self, capacity: Tokens) -> None:
        """Its cache has this size."""
        self.nominal = capacity
        self.capacity = float(capacity)

    def scale(self, factor: float) -> None:
        """It keeps more or less than was believed."""
        scaled = self.capacity * factor
        self.capacity = min(max(scaled, self.nominal * LEAST_SHARE), float(self.nominal))

    def stamp(self) -> int:
        """Of the beginning of one more prompt; what is so many marks behind has so much less."""
        self._newest += _TICK
        return self._newest

    def stand(self, prompt: list[Kept]) -> None:
        """These stretches, in their order, are the last prompt that was given."""
        line = self._line
        for at in range(len(prompt) - 1, -1, -1):
            kept = prompt[at]
            kept.places += 1
            line.append(kept)
        self.shorten()

    def cut(self, kept: Kept, behind: Stretch, marks: int) -> None:
        """What is behind so many of its marks is a stretch of its own."""
        part = self.kept[behind] = Kept(behind, kept.stamp - marks, kept.unread)
        heappush(self._parts, (part.stamp, part))

    def oldest(self) -> Kept | None:
        """Of all that are kept: given longest ago. O(1) amortised, for those never cut."""
        after, parts = self._next, self._parts
        while True:
            if not after:
                if not self._line:
                    break
                self._line, self._next = after, self._line
                after = self._next
                after.reverse()
            kept = after[-1]
            if kept.is_kept and kept.places == 1:
                break
            kept.places -= 1
            after.pop()
        while parts and not _belongs(parts[0]):
            heappop(parts)
        if parts and (not after or parts[0][0] < after[-1].stamp):
            return parts[0][1]
        return after[-1] if after else None

    def drop(self, stretch: Stretch) -> None:
        """It is not there, or no longer."""
        kept = self.kept.pop(stretch, None)
        if kept is not None:
            kept.is_kept = False
            self.tokens -= stretch.tokens

    def shorten(self) -> None:
        """Pass over at once what is to be passed over, if that is most of it."""
        if self.in_line <= 2 * len(self.kept) + LEAST_LINE:
            return
        self._next.reverse()
        line: list[Kept] = []
        for kept in (*self._next, *self._line):
            if kept.is_kept and kept.places == 1:
                line.append(kept)
            else:
                kept.places -= 1
        self._line, self._next = line, []
        self._parts = [each for each in self._parts if _belongs(each)]
        self._parts.sort()


def _belongs(part: tuple[int, Kept]) -> bool:
    """It is where its stamp says, and not in line again."""
    stamp, kept = part
    return kept.is_kept and kept.stamp == stamp
