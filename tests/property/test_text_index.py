"""What was sent where, against a model that keeps every mark of every prompt by itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from gateway.choose.given import Given
from gateway.choose.text_chain import MARKS, Prompt
from gateway.choose.text_index import TextIndex, Walk
from gateway.request import GenerationRequest
from gateway.vocabulary import ModelName
from tests.builders import a_route

Step = tuple[Any, ...]  # a method of World, and its arguments

REPLICAS = 3
TREE = [
    b"a" * 20_000,  # over several stops
    b"a" * 300 + b"b" * 900,
    b"a" * 5000 + b"c" * 1000,
    b"a" * 5000 + b"c" * 500 + b"d" * 900,
    b"a" * 700,
    b"e" * 1500,
    b"e" * 100,  # shorter than the first mark
    b"a" * 50_000,
    b"a" * 24_000 + b"g" * 14_000,  # parts where marks are far apart
]
PLENTY = 1_000_000


def prompt(which: int) -> Prompt:
    text = TREE[which] + b"]"
    return Prompt(
        GenerationRequest(
            route=a_route(),
            model=ModelName("m"),
            stream=True,
            prompt_bytes=len(text),
            prompt_tokens=len(text) // 4,
            max_tokens=None,
            prompt=text,
        )
    )


def marks(which: int) -> list[int]:
    return list(prompt(which).whole())


@dataclass
class Sent:
    """One prompt on its way, as the index and the model know it."""

    given: Given
    which: int
    unread_from: int
    is_pending: bool
    has_arrived: bool = False


@dataclass
class Model:
    """Of one replica: each mark by its hash."""

    believed: set[int] = field(default_factory=set)
    unread: Counter[int] = field(default_factory=Counter)
    pending: Counter[int] = field(default_factory=Counter)


class World:
    """An index and its model, and all that may happen to both."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.index = TextIndex()
        self.given = [self.index.join(capacity) for _ in range(REPLICAS)]
        self.models = {each.bit: Model() for each in self.given}
        self.open: list[Sent] = []
        self.walks: dict[int, Walk] = {}  # along prompts that are not sent yet

    def look(self, which: int) -> None:
        self.walks[which] = self.index.walk(prompt(which))

    def send(self, who: int, which: int, is_pending: bool) -> None:
        hashes, given = prompt(which).whole(), self.given[who]
        walk = self.walks.pop(which, None) or self.index.walk(prompt(which))
        unread_from, _ = self.index.send(given, hashes, 0.25, is_pending=is_pending, walk=walk)
        self.open.append(Sent(given, which, unread_from, is_pending))
        model = self.models[given.bit]
        for each in hashes:
            if each not in model.believed or model.unread[each]:
                model.unread[each] += 1
            model.believed.add(each)
            model.pending[each] += is_pending

    def arrive(self, at: int) -> None:
        for sent in self.open[at : at + 1]:
            if not sent.has_arrived:
                sent.has_arrived = True
                self.index.arrived(sent.given, prompt(sent.which).whole(), sent.unread_from)
                for each in marks(sent.which) if not sent.given.has_left else ():
                    self.models[sent.given.bit].unread[each] = 0

    def end(self, at: int) -> None:
        for sent in self.open[at : at + 1]:
            self.open.remove(sent)
            hashes = prompt(sent.which).whole()
            if not sent.has_arrived:
                self.index.failed(sent.given, hashes, sent.unread_from)
            if sent.is_pending:
                self.index.settle(sent.given, hashes)
            if sent.given.has_left:
                continue
            model = self.models[sent.given.bit]
            for each in hashes:
                if not sent.has_arrived and model.unread[each]:
                    model.unread[each] -= 1
                    if not model.unread[each]:
                        model.believed.discard(each)
                model.pending[each] -= sent.is_pending

    def leave(self, who: int) -> None:
        self.index.leave(self.given[who])
        self.given[who] = self.index.join(self.capacity)
        self.models[self.given[who].bit] = Model()

    def sweep(self, most: int) -> None:
        self.index.sweep(most)


who, which, at = st.integers(0, REPLICAS - 1), st.integers(0, len(TREE) - 1), st.integers(0, 5)
steps = st.one_of(
    st.tuples(st.just("look"), which),
    st.tuples(st.just("send"), who, which, st.booleans()),
    st.tuples(st.just("arrive"), at),
    st.tuples(st.just("end"), at),
    st.tuples(st.just("leave"), who),
    st.tuples(st.just("sweep"), st.integers(1, 9)),
)
stories = st.lists(steps, max_size=30)


def told(story: list[Step], capacity: int = PLENTY) -> World:
    world = World(capacity)
    for what, *arguments in story:
        getattr(world, what)(*arguments)
        for each in world.given:
            assert each.tokens <= each.capacity
            assert each.tokens == sum(stretch.tokens for stretch in each.kept)
    return world


def depths(found: list[tuple[int, int]], bit: int) -> int:
    return sum(depth for bits, depth in found if bits & bit)


def leading(hashes: list[int], known: set[int]) -> int:
    return next((at for at, each in enumerate(hashes) if each not in known), len(hashes))


@given(st.integers(0, 9000), st.lists(st.integers(0, 30), max_size=4))
@settings(max_examples=200, deadline=None)
def test_hashes_are_a_chain_over_what_lies_between_marks_however_far_one_is_asked_for(
    size: int, steps: list[int]
) -> None:
    text = Random(size).randbytes(size)
    request = GenerationRequest(a_route(), ModelName("m"), True, 0, 0, None, text + b"]")
    asked, above, begin = Prompt(request), xxh3_64_intdigest(b"m\x00/v1/chat/completions"), 0
    law = []
    for mark in MARKS[: asked.marks]:
        above = xxh3_64_intdigest(text[begin:mark], above)
        law.append(above)
        begin = mark
    for marks in steps:
        asked.hash_to(marks)
        assert list(asked.hashes) == law[: len(asked.hashes)]
        assert len(asked.hashes) >= min(marks, asked.marks)
    assert list(asked.whole()) == law
    assert asked.marks == sum(mark <= len(asked) for mark in MARKS)


SPLIT = [("send", 0, 3, True), ("look", 3), ("send", 1, 4, True), ("send", 2, 3, True)]
REPEATED = [("send", 0, 7, True), ("look", 7), ("look", 8), ("send", 1, 8, True), ("look", 7)]
GONE = [("send", 0, 3, True), ("look", 3), ("leave", 0), ("sweep", 9), ("send", 0, 3, True)]


@given(stories, which)
@example(SPLIT, 3)
@example(GONE, 3)
@example(REPEATED, 7)
@example(REPEATED, 8)
@settings(max_examples=300, deadline=None)
def test_who_was_given_how_much_is_what_a_model_of_single_marks_says(
    story: list[Step], which: int
) -> None:
    world, asked = told(story), prompt(which)
    walk = world.index.walk(asked)
    assert list(asked.hashes) == marks(which)[: len(asked.hashes)]
    for one in world.given:
        model = world.models[one.bit]
        assert depths(walk.believed, one.bit) == leading(marks(which), model.believed)
        pending = {each for each, count in model.pending.items() if count}
        assert depths(walk.pending, one.bit) == leading(marks(which), pending)


@given(stories)
@settings(max_examples=200, deadline=None)
def test_how_much_of_a_prompt_on_its_way_each_was_given_is_told_in_tokens(
    story: list[Step],
) -> None:
    world = told(story)
    for sent in world.open:
        hashes = prompt(sent.which).whole()
        spread = world.index.spread(hashes)
        for one in world.given:
            depth = leading(marks(sent.which), world.models[one.bit].believed)
            tokens = MARKS[depth - 1] / 4 if depth else 0
            assert tokens - len(hashes) <= depths(spread, one.bit) <= tokens


@given(stories, st.integers(1, 3000))
@settings(max_examples=200, deadline=None)
def test_of_a_full_cache_the_last_prompt_is_kept_and_later_parts_go_before_earlier_ones(
    story: list[Step], capacity: int
) -> None:
    """`told` compares sizes after every step."""
    world = told([step for step in story if step[0] in ("look", "send", "arrive")], capacity)
    for one in world.given:
        for text in range(len(TREE)):
            held = [stretch in one.kept for stretch in world.index._along(prompt(text).whole(), 0)]
            assert held == sorted(held, reverse=True)
    if world.open:
        last = world.open[-1]
        walk = world.index.walk(prompt(last.which))
        depth = depths(walk.believed, last.given.bit)
        total = marks(last.which)
        more = MARKS[depth] // 4 if depth < len(total) else 0
        assert depth == len(total) or more > capacity * 62 // 64 - len(TREE)


@given(stories, st.integers(1, 3000))
@settings(max_examples=200, deadline=None)
def test_nothing_is_left_when_all_have_left_and_been_swept(
    story: list[Step], capacity: int
) -> None:
    world = told(story, capacity)
    for each in range(REPLICAS):
        world.leave(each)
    for _ in range(400):
        world.sweep(5)
    while world.open:
        world.end(0)
    assert len(world.index) == 0
    assert not world.index._leaving
