"""What caches hold, as told by events: the index is a brute-force count of copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.choose.block_hash import OURS, SHA256, SHA256_CBOR, Chain, Hasher, low64
from gateway.choose.block_index import MOST_MEDIA, SHARDS, BlockIndex
from gateway.choose.kv_source import KvSource
from gateway.kv_cache import (
    BlockEvent,
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    Certainty,
)

SIZE = 2
MEDIA = ("GPU", "CPU")
PROMPTS = ((1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 9, 9, 9, 9), (7, 7, 7, 7), (1, 2, 8, 8, 5, 6))


class Strange:
    """An engine that hashes as nobody else does."""

    name = "strange"

    def digest(self, parent: bytes | None, tokens: Sequence[int], extra: object) -> bytes:
        return blake2b(repr((parent, tuple(tokens), extra)).encode()).digest()

    def extra(self, salt: str | None, adapter: str | None, *, is_first: bool) -> object:
        return None


def names(hasher: Hasher, prompt: tuple[int, ...]) -> list[int]:
    chain = Chain()
    for _ in chain.grow(hasher, (None, None), prompt, SIZE):
        pass
    return list(chain.hashes)


@dataclass
class Replica:
    """A source, and what it should know: copies by (medium, engine's name)."""

    source: KvSource
    hasher: Hasher
    copies: Counter[tuple[str, int]] = field(default_factory=Counter)
    parked: Counter[tuple[str, int]] = field(default_factory=Counter)
    parent: dict[int, int | None] = field(default_factory=dict)
    is_native: bool = False
    untold: list[BlockEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        for prompt in PROMPTS:
            chain = names(self.hasher, prompt)
            self.parent.update(zip(chain, [None, *chain], strict=False))

    def knows(self, name: int | None) -> bool:
        return name is None or any(self.copies[medium, name] for medium in MEDIA)

    def store(self, prompt: int, start: int, stop: int, medium: str) -> None:
        chain = names(self.hasher, PROMPTS[prompt])
        start, stop = min(start, len(chain) - 1), min(max(start + 1, stop), len(chain))
        tokens = PROMPTS[prompt][start * SIZE : stop * SIZE]
        parent = chain[start - 1] if start else None
        self.untold.append(BlocksStored(chain[start:stop], parent, tokens, SIZE, medium))
        if parent is None and not isinstance(self.hasher, Strange):
            self.is_native = True
        for name in chain[start:stop]:
            here = (medium, name)
            if parent is None:
                if not self.copies[here] and not self.parked[here]:
                    self.copies[here] = 1
            elif self.is_native or self.knows(self.parent[name]) or self.knows(name):
                self.copies[here] += 1
            else:
                self.parked[here] += 1
        self.unpark()

    def unpark(self) -> None:
        moved = True
        while moved:
            moved = False
            for here, count in list(self.parked.items()):
                if count and (self.is_native or self.knows(self.parent[here[1]])):
                    self.copies[here] += count
                    del self.parked[here]
                    moved = True

    def remove(self, prompt: int, at: int, medium: str) -> None:
        chain = names(self.hasher, PROMPTS[prompt])
        here = (medium, chain[min(at, len(chain) - 1)])
        self.untold.append(BlocksRemoved([here[1]], medium))
        for where in (self.copies, self.parked):
            where[here] = max(where[here] - 1, 0)

    def clear(self) -> None:
        self.untold.append(BlocksCleared())
        self.copies.clear()
        self.parked.clear()

    def tell(self) -> None:
        """All that has happened since the last time, at once."""
        events, self.untold = self.untold, []
        has_cleared = any(isinstance(each, BlocksCleared) for each in events)
        assert self.source.apply(events) == has_cleared

    def restart(self) -> None:
        self.tell()
        self.source.retold()
        self.copies.clear()
        self.parked.clear()
        self.is_native = False

    def check(self, index: BlockIndex) -> None:
        assert len([count for count in self.copies.values() if count]) == self.source.blocks
        assert self.source.parked == len({name for (_, name), n in self.parked.items() if n})
        key = self.source.key(None, None)
        if key is None:
            return
        for prompt in PROMPTS:
            chain = names(self.hasher, prompt)
            for name, ours in zip(chain, names(key[0], prompt), strict=True):
                for medium in MEDIA:
                    if medium in index.media:
                        held = bool(index.holders(ours, (medium,)) & self.source.bit)
                        assert held == bool(self.copies[medium, name]), (medium, prompt)


prompts = st.integers(0, len(PROMPTS) - 1)
blocks = st.integers(0, 3)
media = st.sampled_from(MEDIA)
steps = st.one_of(
    st.tuples(st.just("store"), prompts, st.just(0), st.integers(1, 4), media),
    st.tuples(st.just("store"), prompts, blocks, st.integers(1, 4), media),
    st.tuples(st.just("remove"), prompts, blocks, media),
    st.tuples(st.just("clear")),
    st.tuples(st.just("restart")),
)
hashers = st.sampled_from([SHA256, SHA256_CBOR, Strange()])


@given(
    st.lists(hashers, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), steps, st.integers(0, 300)), max_size=30),
)
@settings(max_examples=300, deadline=None)
def test_the_index_counts_copies_and_leaves_nothing_behind(
    kinds: list[Hasher], story: list[tuple[int, tuple[str, ...], int]]
) -> None:
    """Any store may have been lost before, so any may come with a parent nobody knows."""
    index = BlockIndex()
    fleet = [Replica(KvSource(index), kind) for kind in kinds]
    for one in fleet:
        one.source.certainty = Certainty.EXACT
    for who, (what, *arguments), swept in story:
        replica = fleet[who % len(fleet)]
        getattr(replica, what)(*arguments)
        index.sweep(swept)
        if swept % 3:
            replica.tell()
            replica.check(index)
    for each in fleet:
        each.tell()
    for each in fleet:
        each.check(index)
        each.source.close()
    index.sweep(2 * SHARDS)
    assert len(index) == 0
    bits = [index.take() for _ in range(2)]
    assert len(set(bits)) == 2


@st.composite
def told(draw: st.DrawFn) -> BlockEvent:
    """Blocks of an engine whose plain names are known and whose adapter's are not."""
    what = draw(st.sampled_from(["store", "store", "go on", "go on", "go on", "remove", "clear"]))
    if what == "clear" and draw(st.integers(0, 4)) == 0:
        return BlocksCleared()
    prompt, adapter = draw(st.sampled_from(PROMPTS[:2])), draw(st.sampled_from([None, None, "a"]))
    chain = names(SHA256 if adapter is None else Strange(), prompt)
    medium = draw(st.sampled_from(["GPU", "GPU", "GPU", "CPU"]))
    start = draw(st.integers(1, 3)) if what == "go on" else 0
    if what == "remove":
        return BlocksRemoved([draw(st.sampled_from(chain))], medium)
    tokens, parent = prompt[start * SIZE :], chain[start - 1] if start else None
    if draw(st.booleans()):
        tokens = ()
    return BlocksStored(chain[start:], parent, tokens, SIZE, medium, adapter=adapter)


@given(st.lists(told(), max_size=12))
@settings(max_examples=300, deadline=None)
def test_events_told_together_come_to_the_same_as_one_by_one(events: list[BlockEvent]) -> None:
    first = BlocksStored(names(SHA256, PROMPTS[2]), None, PROMPTS[2], SIZE)
    found: list[tuple[object, ...]] = []
    for portions in ([[first, *events]], [[each] for each in (first, *events)]):
        source = KvSource(index := BlockIndex())
        for portion in portions:
            source.apply(portion)
        held = {
            (medium, block)
            for medium, shards in index.media.items()
            for shard in shards
            for block, bits in shard.items()
            if bits & source.bit
        }
        found.append((held, source.blocks, source.parked, source.key(None, None)))
        for prompt in PROMPTS[:2]:  # one removal of each: what is left had copies
            source.apply([BlocksRemoved(names(SHA256, prompt))])
        found[-1] = (*found[-1], source.blocks)
    assert found[0] == found[1]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), max_size=8), st.integers(1, 12))
def test_the_longest_prefix_is_found_by_halving(held: list[tuple[int, int]], blocks: int) -> None:
    index = BlockIndex()
    bits = [index.take() for _ in range(4)]
    depth = dict.fromkeys(bits, 0)
    for who, until in held:
        index.announce(bits[who], "GPU", range(1, until + 1))
        depth[bits[who]] = max(depth[bits[who]], until)
    found = index.depths(range(1, 13), blocks, sum(bits), ("GPU",))
    assert {
        bit: count for mask, count in found for bit in bits if mask & bit
    } == {bit: min(until, blocks) for bit, until in depth.items()}  # fmt: skip


def test_our_names_depend_on_all_that_came_before_and_on_salt_and_adapter() -> None:
    tokens = list(range(8))
    keys = [(None, None), ("s", None), (None, "s"), ("s", "a"), ("a", "s")]
    chains = []
    for key in keys:
        chain = Chain()
        for _ in chain.grow(OURS, key, tokens, SIZE):
            pass
        chains.append(chain.hashes)
    assert len({name for chain in chains for name in chain}) == len(keys) * 4
    assert low64(OURS.digest(None, tokens[:SIZE], None)) == chains[0][0]


def test_an_engine_cannot_fill_the_index_with_names_of_media() -> None:
    source = KvSource(index := BlockIndex())
    for at in range(100):
        source.apply(
            [BlocksStored(names(SHA256, PROMPTS[0]), None, PROMPTS[0], SIZE, f"disk {at}")]
        )
        source.apply([BlocksRemoved([1], f"tape {at}")])
    assert len(index.media) == MOST_MEDIA
