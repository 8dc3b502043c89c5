"""What replicas hold of prompts, under any history: laws that hold whatever is known how."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.choose.block_hash import OURS, SHA256, Chain, Hasher
from gateway.choose.dispatch import Dispatch
from gateway.choose.holdings import Holdings
from gateway.choose.policies import policy
from gateway.choose.text_chain import Prompt
from gateway.fleet.ledger import Replica
from gateway.kv_cache import BlocksCleared, BlocksRemoved, BlocksStored, Certainty, Tokenised
from gateway.request import GenerationRequest, Usage
from gateway.settings import ChooseSettings
from gateway.vocabulary import ModelName, ReplicaId
from tests.builders import a_replica, a_route

Step = tuple[Any, ...]  # a method of World, and its arguments

SIZE = 4
NAMES = [ReplicaId(f"{name}:1") for name in "abc"]
HASHERS: list[Hasher] = [SHA256, OURS, SHA256]
TEXTS = [b"a" * 1024, b"a" * 512 + b"b" * 704, b"c" * 320, b"a" * 192 + b"d" * 64]
CONTEXTS: list[tuple[str | None, str | None]] = [(None, None), ("s", None), (None, "s")]


def request(text: bytes, context: int = 0) -> GenerationRequest:
    salt, adapter = CONTEXTS[context]
    return GenerationRequest(
        route=a_route(),
        model=ModelName(adapter or "m"),
        stream=True,
        prompt_bytes=len(text),
        prompt_tokens=len(text) // 16,
        max_tokens=None,
        prompt=text + b"]",
        context=(("cache_salt", salt.encode()),) if salt else (),
    )


def tokens_of(text: bytes) -> list[int]:
    """A token for every sixteen bytes."""
    return [sum(text[at : at + 16]) for at in range(0, len(text) // 16 * 16, 16)]


def names(hasher: Hasher, text: bytes, context: int) -> list[int]:
    chain = Chain()
    for _ in chain.grow(hasher, CONTEXTS[context], tokens_of(text), SIZE):
        pass
    return list(chain.hashes)


@dataclass
class World:
    """Holdings, and all that may happen to them."""

    holdings: Holdings = field(default_factory=lambda: Holdings(64, 1000.0))
    open: list[Dispatch] = field(default_factory=list)
    texts: list[tuple[int, int]] = field(default_factory=list)
    now: float = 0.0

    def send(self, who: int, text: int, context: int) -> None:
        prompt = Prompt(request(TEXTS[text], context))
        self.open.append(self.holdings.dispatched(prompt, NAMES[who], self.now))
        self.texts.append((text, context))

    def learn(self, which: int) -> None:
        if self.open:
            text, context = self.texts[which % len(self.open)]
            edges = [(at, at // 16) for at in range(16, len(TEXTS[text]) + 1, 16)]
            lesson = Tokenised(tokens_of(TEXTS[text]), edges, *CONTEXTS[context])
            for _ in self.holdings.learn(self.open[which % len(self.open)], lesson):
                pass

    def first_byte(self, which: int) -> None:
        if self.open:
            self.open[which % len(self.open)].first_byte(self.now)

    def answer(self, which: int, cached: int | None) -> None:
        if self.open:
            self.open[which % len(self.open)].answered(Usage(cached_tokens=cached), self.now)

    def end(self, which: int) -> None:
        if self.open:
            self.open.pop(which % len(self.open)).ended()
            self.texts.pop(which % (len(self.open) + 1))

    def store(self, who: int, text: int, context: int, blocks: int, medium: str) -> None:
        chain = names(HASHERS[who], TEXTS[text], context)[:blocks]
        salt, adapter = CONTEXTS[context]
        keys = [[each for each in (adapter, salt) if each]] + [[adapter]] * (len(chain) - 1)
        tokens = tokens_of(TEXTS[text])[: len(chain) * SIZE]
        extra = keys if adapter else [keys[0], *[None] * (len(chain) - 1)] if salt else None
        event = BlocksStored(chain, None, tokens, SIZE, medium, adapter=adapter, extra_keys=extra)
        self.holdings.apply(NAMES[who], [event])

    def remove(self, who: int, text: int, context: int, at: int) -> None:
        chain = names(HASHERS[who], TEXTS[text], context)
        self.holdings.apply(NAMES[who], [BlocksRemoved(chain[at : at + 2])])

    def clear(self, who: int) -> None:
        self.holdings.apply(NAMES[who], [BlocksCleared()])

    def restart(self, who: int) -> None:
        self.holdings.retold(NAMES[who])

    def say(self, who: int, certainty: Certainty) -> None:
        self.holdings.certainty(NAMES[who], certainty)

    def forget(self, who: int) -> None:
        self.holdings.forget(NAMES[who])

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.holdings.tidy(self.now)


who, which = st.integers(0, 2), st.integers(0, 9)
texts, contexts = st.integers(0, 3), st.integers(0, 2)
steps = st.one_of(
    st.tuples(st.just("send"), who, texts, contexts),
    st.tuples(st.just("learn"), which),
    st.tuples(st.just("first_byte"), which),
    st.tuples(st.just("answer"), which, st.none() | st.integers(0, 80)),
    st.tuples(st.just("end"), which),
    st.tuples(st.just("store"), who, texts, contexts, st.integers(1, 20),
              st.sampled_from(["GPU", "CPU"])),
    st.tuples(st.just("remove"), who, texts, contexts, st.integers(0, 15)),
    st.tuples(st.just("clear"), who),
    st.tuples(st.just("restart"), who),
    st.tuples(st.just("say"), who, st.sampled_from(list(Certainty))),
    st.tuples(st.just("forget"), who),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 3.0])),
)  # fmt: skip
stories = st.lists(steps, max_size=40)


def told(story: list[Step]) -> World:
    world = World()
    for name in NAMES:
        world.holdings.certainty(name, Certainty.EXACT)
    for what, *arguments in story:
        getattr(world, what)(*arguments)
    return world


@given(stories, texts, contexts, st.permutations(NAMES))
@settings(max_examples=150, deadline=None)
def test_a_hit_is_less_than_the_prompt_whole_blocks_and_the_same_in_any_order(
    story: list[Step], text: int, context: int, order: list[ReplicaId]
) -> None:
    holdings = told(story).holdings
    found = holdings.hits(Prompt(request(TEXTS[text], context)), NAMES)
    again = holdings.hits(Prompt(request(TEXTS[text], context)), order)
    assert dict(zip(NAMES, found.tokens, strict=True)) == dict(
        zip(order, again.tokens, strict=True)
    )
    for tokens, load_s in zip(found.tokens, found.load_s, strict=True):
        assert 0 <= tokens < found.prompt_tokens
        assert tokens % SIZE == 0
        assert 0.0 <= load_s <= tokens / 1000.0


@given(stories, texts, contexts, st.integers(1, 16))
@settings(max_examples=150, deadline=None)
def test_a_longer_prompt_hits_no_less(
    story: list[Step], text: int, context: int, sixteenths: int
) -> None:
    holdings = told(story).holdings
    whole = TEXTS[text]
    part = whole[: len(whole) * sixteenths // 16 // 64 * 64]
    short = holdings.hits(Prompt(request(part, context)), NAMES).tokens
    long = holdings.hits(Prompt(request(whole, context)), NAMES).tokens
    assert all(one <= two for one, two in zip(short, long, strict=True))


@given(stories, texts, contexts)
@settings(max_examples=150, deadline=None)
def test_what_happens_in_other_contexts_is_nothing_to_this_one(
    story: list[Step], text: int, context: int
) -> None:
    """Nothing of another salt, adapter or model is ever a hit."""
    others = [step for step in story if step[0] != "send" or step[3] != context]
    others = [step for step in others if step[0] != "store" or step[3] != context]
    holdings = told(others).holdings
    assert holdings.hits(Prompt(request(TEXTS[text], context)), NAMES).tokens == [0] * 3


@given(stories)
@settings(max_examples=150, deadline=None)
def test_when_all_replicas_have_left_and_been_swept_nothing_is_left(
    story: list[Step],
) -> None:
    world = told(story)
    for each in range(3):
        world.forget(each)
    for _ in range(600):
        world.wait(3.0)
    for dispatch in world.open:
        dispatch.ended()
    assert len(world.holdings) == 0


@given(st.lists(st.tuples(who, texts), max_size=12), texts, st.permutations(range(3)))
@settings(deadline=None)
def test_permuting_replicas_permutes_costs(
    sent: list[tuple[int, int]], text: int, order: list[int]
) -> None:
    chooser = policy(ChooseSettings(policy="cache-aware"), Random(1))
    fleet: list[Replica] = [a_replica(name) for name in "abc"]
    for at, each in sent:
        asked = request(TEXTS[each])
        choice = chooser.choose(asked, [fleet[at]], 1.0)
        chooser.dispatched(asked, choice, 1.0).__enter__()
    asked = request(TEXTS[text])
    costs = chooser.quote(asked, fleet, 2.0)[0].costs
    permuted = chooser.quote(asked, [fleet[at] for at in order], 2.0)[0].costs
    assert [costs[at] for at in order] == [*permuted]
