"""What one replica was given, in which order, against a model that looks through all of it."""

from __future__ import annotations

from array import array
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.choose.given import LEAST_LINE, Given, Kept
from gateway.choose.stretch import Stretch

STRETCHES, MARKS = 6, 8
CAPACITY = 1_000

Step = tuple[Any, ...]  # a method of World, and its arguments


class World:
    """Prompts that are chains of the same stretches, the longest of all of them, and a model: who
    is kept, by when it was last given and how far behind."""

    def __init__(self) -> None:
        firsts = range(0, STRETCHES * MARKS, MARKS)
        self.chain = [
            Stretch(array("Q", range(first, first + MARKS)), first + MARKS - 1, MARKS)
            for first in firsts
        ]
        self.given = Given(1, CAPACITY)
        self.model: dict[Stretch, tuple[int, int]] = {}  # prompt, and less for what is behind
        self.prompts = 0

    def at(self, which: int) -> int:
        return sum(len(each.hashes) for each in self.chain[:which])

    def give(self, stretches: int) -> None:
        self.prompts += 1
        stamp = self.given.stamp()
        prompt = []
        for at, stretch in enumerate(self.chain[:stretches]):
            kept = self.given.kept.get(stretch)
            if kept is None:
                kept = self.given.kept[stretch] = Kept(stretch, 0, 1)
                self.given.tokens += stretch.tokens
            kept.stamp = stamp - self.at(at)
            prompt.append(kept)
            self.model[stretch] = (self.prompts, -self.at(at))
        self.given.stand(prompt)

    def cut(self, which: int, marks: int) -> None:
        stretch = self.chain[which % len(self.chain)]
        if marks >= len(stretch.hashes):
            return
        behind = stretch.cut(marks, len(stretch.hashes) - marks)
        self.chain.insert(self.chain.index(stretch) + 1, behind)
        kept = self.given.kept.get(stretch)
        assert (kept is not None) == (stretch in self.model)
        if kept is not None:
            self.given.cut(kept, behind, marks)
            prompt, at = self.model[stretch]
            self.model[behind] = (prompt, at - marks)

    def drop(self, which: int) -> None:
        stretch = self.chain[which % len(self.chain)]
        self.given.drop(stretch)
        self.model.pop(stretch, None)

    def drop_oldest(self) -> None:
        oldest = self.given.oldest()
        if oldest is not None:
            self.given.drop(oldest.stretch)
            del self.model[oldest.stretch]


which = st.integers(0, 20)
steps = st.one_of(
    st.tuples(st.just("give"), st.integers(1, 12)),
    st.tuples(st.just("cut"), which, st.integers(1, MARKS - 1)),
    st.tuples(st.just("drop"), which),
    st.tuples(st.just("drop_oldest")),
)
AGAIN: list[Step] = [("give", 3), ("cut", 1, 4), ("give", 2), ("drop_oldest",), ("drop_oldest",)]


@given(st.lists(steps, max_size=60))
@example(AGAIN)
@example([("give", 6)] * 60 + [("drop_oldest",)] * 7)
@example([("give", 6), ("drop", 0)] + [("give", 1)] * 90)  # the line is shortened, some of it stays
@settings(max_examples=300, deadline=None)
def test_the_oldest_is_what_a_model_says_however_often_it_was_given_cut_and_dropped(
    story: list[Step],
) -> None:
    world = World()
    for what, *arguments in story:
        getattr(world, what)(*arguments)
        sent, model = world.given, world.model
        oldest = sent.oldest()
        assert set(sent.kept) == set(model)
        assert sent.tokens == sum(each.tokens for each in model)
        if oldest is None:
            assert not model
        else:
            assert oldest.stretch is min(model, key=lambda each: model[each])
            assert oldest.at == world.at(world.chain.index(oldest.stretch))


@given(st.lists(steps, max_size=60))
@settings(max_examples=100, deadline=None)
def test_the_line_is_not_much_longer_than_what_is_kept(story: list[Step]) -> None:
    world = World()
    for what, *arguments in story * 5:
        getattr(world, what)(*arguments)
        if what == "give":
            assert world.given.in_line <= 2 * len(world.given.kept) + LEAST_LINE
