"""What was sent where: the beginnings of prompts, and which replicas have been given them.

What is believed of a replica is what we sent it: an engine keeps what it has prefilled and evicts
the least recently used from the tail, and so do we, up to the size we believe its cache has. Where
its events are read, a prompt on its way there is *pending* from dispatch on, so that siblings
follow their leader.

Beginnings that nobody has been given apart are kept in one piece, a *stretch*: from where prompts
have parted to where they part again, or to a stop. It is found by the hash at its first mark, and
the hash at its last says whether a prompt goes all along it; so a prompt costs a look-up for each
stretch, not for each mark, and what is new of it is one object more. A stretch also remembers what
has been learnt: the tokens and the names of the blocks it stands for (`Lesson`), by which caches
can be looked into.

Invariants. What a replica is believed to hold is never larger than its capacity. Of one prompt,
later stretches go before earlier ones. A stretch nobody was given is not kept. When everything has
been forgotten, nothing is left.
"""

from __future__ import annotations

from array import array
from typing import Final

from gateway.choose.given import Given, Kept
from gateway.choose.stretch import Lesson, Stretch, each_bit, marks_without, tokens_behind
from gateway.choose.text_chain import MARKS, STOPS, Hash, Prompt
from gateway.vocabulary import Tokens

FINE: Final = 1 / 64
"""A stretch that is more of a cache than this goes piece by piece."""


class Walk:
    """How far a prompt is known: its marks, and who was given how many of them.

    `lesson` is the one that goes furthest, for `learnt` marks: `tokens` for certain, and the bytes
    `beyond` them. `last` is the stretch in which it ends, at its end where `is_whole`. The `path`
    is all stretches it goes along, of the last one so many marks as it is `along`; so it was after
    so many `changes` of the index.
    """

    __slots__ = ("along", "believed", "beyond", "changes", "depth", "is_whole", "last", "learnt",
                 "lesson", "path", "pending", "tokens")  # fmt: skip

    def __init__(self, changes: int) -> None:
        self.changes = changes
        self.path: list[Stretch] = []
        self.along = 0
        self.depth = 0
        self.is_whole = False
        self.last: Stretch | None = None
        self.believed: list[tuple[int, int]] = []  # (bits, marks)
        self.pending: list[tuple[int, int]] = []
        self.lesson: Lesson | None = None
        self.learnt = 0
        self.tokens: Tokens = 0
        self.beyond = 0

    def __repr__(self) -> str:
        return f"<Walk over {self.depth} marks, {self.learnt} learnt>"

    def ends(self, depth: int, believed: int, pending: int) -> None:
        """No more of it is known, and these replicas were given all that is."""
        self.depth = depth
        self.believed.append((believed, depth))
        if pending:
            self.pending.append((pending, depth))
        if self.lesson is not None:
            self.tokens, self.beyond = self.lesson.tokens_at(MARKS[self.learnt - 1])
            if not self.tokens:  # nothing is certain of so little of it
                self.lesson, self.learnt = None, 0


class TextIndex:
    """Beginnings of prompts. O(marks) to hash a prompt, O(stretches) for all else."""

    __slots__ = ("_bits", "_changes", "_free", "_givens", "_leaving", "_stretches")

    def __init__(self) -> None:
        self._stretches: dict[Hash, Stretch] = {}  # by the hash at the first mark
        self._changes = 0  # of which stretches there are
        self._givens: dict[int, Given] = {}  # by bit
        self._free: list[int] = []
        self._bits = 0
        self._leaving: list[Given] = []

    def __repr__(self) -> str:
        return f"<TextIndex {len(self)} stretches>"

    def __len__(self) -> int:
        return len(self._stretches)

    def join(self, capacity: Tokens) -> Given:
        """One more replica."""
        if not self._free:
            self._free.append(1 << self._bits)
            self._bits += 1
        given = Given(self._free.pop(), capacity)
        self._givens[given.bit] = given
        return given

    def leave(self, given: Given) -> None:
        """Its replica is gone: swept away by `sweep`."""
        given.has_left = True
        self._leaving.append(given)

    def sweep(self, stretches: int) -> None:
        """Clear so many stretches away after replicas that left."""
        while self._leaving and stretches > 0:
            given = self._leaving[-1]
            while stretches > 0 and (given.kept or given.pending):
                stretches -= 1
                if given.kept:
                    stretch, kept = given.kept.popitem()
                    kept.is_kept = False
                else:
                    stretch = given.pending.popitem()[0]
                stretch.believed &= ~given.bit
                stretch.pending &= ~given.bit
                self._let_go(stretch)
            if not given.kept and not given.pending:
                del self._givens[given.bit]
                self._free.append(self._leaving.pop().bit)

    def walk(self, prompt: Prompt) -> Walk:
        """Hashes the prompt no further than anybody has been given it, and to the next stop; of a
        long one, what was walked along before is looked at in one piece."""
        walk = Walk(self._changes)
        stretches, hashes, marks = self._stretches, prompt.hashes, prompt.marks
        believed = pending = -1  # bits of those that were given all so far
        at, is_whole, is_long = 0, True, marks > STOPS[0]
        while at < marks and is_whole:
            if at >= len(hashes):
                prompt.hash_to(at + 1 if is_long else STOPS[at])
            stretch = stretches.get(hashes[at])
            if stretch is None:
                break
            length = len(stretch.hashes)
            if len(hashes) < at + length:
                _hash_along(prompt, stretch, at)
            shared = stretch.shared(hashes, at)
            is_whole = shared == length
            here = stretch.believed
            if here & believed != believed:
                if at:
                    walk.believed.append((believed & ~here, at))
                believed &= here
            here = stretch.pending
            if here & pending != pending:
                if at:
                    walk.pending.append((pending & ~here, at))
                pending &= here
            at += shared
            walk.path.append(stretch)
            walk.along = shared
            lesson = stretch.lesson
            if lesson is not None:
                walk.lesson, walk.learnt = lesson, at
        if at:
            walk.last = walk.path[-1]
            walk.is_whole = is_whole
            walk.ends(at, believed, pending)
        return walk

    def send(
        self,
        given: Given,
        hashes: list[Hash],
        tokens_per_byte: float,
        *,
        is_pending: bool,
        walk: Walk | None = None,
    ) -> tuple[int, Stretch | None]:
        """A prompt with these beginnings is on its way there. From which of them on no other has
        been read there, and the last stretch. As far as it was walked along, and nothing has
        changed since, it need not be looked up again."""
        at, marks, unread_from = 0, len(hashes), len(hashes)
        stretch: Stretch | None = None
        path, step = self._walked(walk), 0
        prompt: list[Kept] = []
        stamp = given.stamp()
        while at < marks:
            if step < len(path):
                stretch = path[step]
                step += 1
            else:
                stretch = self._stretches.get(hashes[at])
                if stretch is None:
                    stretch = self._begin(hashes, at, tokens_per_byte)
                else:
                    shared = stretch.shared(hashes, at)
                    if shared < len(stretch.hashes):
                        self._split(stretch, at, shared)
            kept = given.kept.get(stretch)
            if kept is None:
                kept = given.kept[stretch] = Kept(stretch, stamp - at, 1)
                stretch.believed |= given.bit
                given.tokens += stretch.tokens
                unread_from = min(unread_from, at)
            else:
                kept.stamp = stamp - at
                if kept.unread:
                    kept.unread += 1
                    unread_from = min(unread_from, at)
            prompt.append(kept)
            if is_pending:
                stretch.pending |= given.bit
                given.pending[stretch] = given.pending.get(stretch, 0) + 1
            at += len(stretch.hashes)
        given.stand(prompt)
        if given.tokens > given.capacity:
            self.trim(given)
        return unread_from, stretch

    def _walked(self, walk: Walk | None) -> list[Stretch]:
        """What it went along, if nothing has changed since."""
        if walk is None or walk.changes != self._changes or walk.last is None:
            return []
        if not walk.is_whole:
            self._split(walk.last, walk.depth - walk.along, walk.along)
        return walk.path

    def arrived(self, given: Given, hashes: list[Hash], unread_from: int) -> None:
        """It has been read there."""
        for stretch in self._along(hashes, unread_from):
            kept = given.kept.get(stretch)
            if kept is not None:
                kept.unread = 0

    def failed(self, given: Given, hashes: list[Hash], unread_from: int) -> None:
        """It was not read there, and what nobody else brought is not believed."""
        if given.has_left:  # its bit may be another's by now
            return
        for stretch in self._along(hashes, unread_from):
            kept = given.kept.get(stretch)
            if kept is None or not kept.unread:
                continue
            if kept.unread > 1:
                kept.unread -= 1
            else:
                self._drop(given, stretch)
        given.shorten()

    def settle(self, given: Given, hashes: list[Hash]) -> None:
        """It is pending no longer."""
        if given.has_left:
            return
        pending = given.pending
        for stretch in self._along(hashes, 0):
            left = pending.get(stretch, 0) - 1
            if left > 0:
                pending[stretch] = left
                continue
            pending.pop(stretch, None)
            stretch.pending &= ~given.bit
            self._let_go(stretch)

    def trim(self, given: Given) -> None:
        """Let go of the least recently given, down to the capacity: large pieces in part."""
        while given.tokens > given.capacity:
            kept = given.oldest()
            if kept is None:
                break
            stretch = kept.stretch
            if stretch.tokens > given.capacity * FINE:
                at = kept.at
                marks = marks_without(stretch, at, given.tokens - given.capacity)
                if marks:
                    self._split(stretch, at, marks)  # what is behind is the oldest now
                    continue
            self._drop(given, stretch)

    def teach(self, hashes: list[Hash], lesson: Lesson) -> None:
        """The prompt with these beginnings has been read."""
        for stretch in self._along(hashes, 0):
            stretch.lesson = lesson

    def lesson(self, hashes: list[Hash]) -> tuple[Lesson | None, Tokens]:
        """What is known of the longest of these beginnings that has learnt, and its tokens."""
        found: Lesson | None = None
        at = learnt = 0
        for stretch in self._along(hashes, 0):
            at += len(stretch.hashes)
            if stretch.lesson is not None:
                found, learnt = stretch.lesson, at
        return found, found.tokens_at(MARKS[learnt - 1])[0] if found is not None else 0

    def spread(self, hashes: list[Hash]) -> list[tuple[int, Tokens]]:
        """Who was given how much of these beginnings: (bits, tokens). O(stretches)."""
        spread: list[tuple[int, Tokens]] = []
        bits, tokens, at = -1, 0, 0  # of those that were given all so far
        while at < len(hashes) and (stretch := self._stretches.get(hashes[at])) is not None:
            gone = bits & ~stretch.believed
            if gone and tokens:
                spread.append((gone, tokens))
            bits &= stretch.believed
            shared = stretch.shared(hashes, at)
            tokens += stretch.tokens - tokens_behind(stretch, at, shared)
            at += shared
            if shared < len(stretch.hashes):
                break
        return [*spread, (bits, tokens)] if tokens else []

    def _along(self, hashes: list[Hash], at: int) -> list[Stretch]:
        """The stretches of a prompt that was sent, from that mark on, as far as they are kept."""
        marks = len(hashes)
        along: list[Stretch] = []
        while at < marks:
            stretch = self._stretches.get(hashes[at])
            if stretch is None:
                break
            at += len(stretch.hashes)
            if at > marks or stretch.last != hashes[at - 1]:
                break
            along.append(stretch)
        return along

    def _begin(self, hashes: list[Hash], at: int, tokens_per_byte: float) -> Stretch:
        end = min(STOPS[at], len(hashes))
        length = MARKS[end - 1] - (MARKS[at - 1] if at else 0)
        mine, tokens = array("Q", hashes[at:end]), int(length * tokens_per_byte)
        stretch = Stretch(mine, hashes[end - 1], tokens)
        self._stretches[hashes[at]] = stretch
        self._changes += 1
        return stretch

    def _split(self, stretch: Stretch, at: int, marks: int) -> None:
        """Somebody goes only so far along it: what is behind is a stretch of its own."""
        tokens = tokens_behind(stretch, at, marks)
        behind = stretch.cut(marks, tokens)
        self._stretches[behind.hashes[0]] = behind
        self._changes += 1
        for bit in each_bit(behind.believed | behind.pending):
            given = self._givens[bit]
            kept = given.kept.get(stretch)
            if kept is not None:
                given.cut(kept, behind, marks)
            if stretch in given.pending:
                given.pending[behind] = given.pending[stretch]

    def _drop(self, given: Given, stretch: Stretch) -> None:
        given.drop(stretch)
        stretch.believed &= ~given.bit
        self._let_go(stretch)

    def _let_go(self, stretch: Stretch) -> None:
        if not stretch.believed and not stretch.pending:
            first = stretch.hashes[0]
            if self._stretches.get(first) is stretch:
                del self._stretches[first]
                self._changes += 1


def _hash_along(prompt: Prompt, stretch: Stretch, at: int) -> None:
    """The prompt, which has the first mark of the stretch and is hashed no further, to its last."""
    if stretch.digest:
        if not prompt.repeats(stretch.hashes, stretch.digest):
            prompt.hash_to(STOPS[at])
        return
    prompt.hash_to(STOPS[at])
    marks = len(stretch.hashes)
    if stretch.shared(prompt.hashes, at) == marks:
        stretch.digest = prompt.digest_of(at, at + marks - 1)
