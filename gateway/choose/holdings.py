"""What every replica's KV cache holds of a prompt, in tokens.

Two sources, joined per replica and prompt. *Events*: the blocks an engine says it holds, by name.
To look a prompt up there its blocks' names must be known; the beginnings of prompts learn them when
a prompt has been tokenised, so that the next one alike is looked up without a tokeniser. *What we
sent* (`TextIndex`): the beginnings of prompts, believed to be kept as an engine keeps them. As far
as the names are known and the events can be read, events decide; beyond, and for prompts on their
way, what we sent does.

How well a replica is known is its *grade*, found at run time: exact, partial (events were missed,
or it was not there from the beginning) or approximate (no events, or the audit doubts them).

Invariants. A hit is less than the prompt, and where blocks are known a multiple of their size.
Prompts that differ in scope, salt or adapter share nothing. Nothing is hashed twice for one
request, nor further than somebody holds. When all replicas have been forgotten and swept, nothing
is left.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from gateway.choose.audit import Audit
from gateway.choose.block_hash import Chain
from gateway.choose.block_index import GPU, BlockIndex
from gateway.choose.dispatch import Dispatch, Grade, Record
from gateway.choose.kv_source import ChainKey, KvSource
from gateway.choose.text_chain import MARKS, Prompt
from gateway.choose.text_index import Lesson, TextIndex, Walk
from gateway.kv_cache import BlockEvent, Certainty, EngineFacts, Tokenised
from gateway.vocabulary import ReplicaId, Seconds, Tokens

PENDING_S: Final = 2.0
"""After the first byte, events of what was stored before it have come."""

TIDY_SHARDS, TIDY_BEGINNINGS, TIDY_DISPATCHES = 8, 1_000, 20  # per call: about 1 ms


class Hits(msgspec.Struct, frozen=True):
    """What replicas hold of one prompt, in their order.

    `load_s` is how long it takes to bring in what of it is not in GPU memory. `prompt_tokens` is
    how long the prompt is, as well as is known.
    """

    prompt_tokens: Tokens
    tokens: list[Tokens]
    load_s: list[Seconds]

    def uncached(self, index: int) -> Tokens:
        """To be prefilled there; at least one."""
        return max(self.prompt_tokens - self.tokens[index], 1)


class CacheState(msgspec.Struct, frozen=True):
    """For metrics: what is known of one replica's cache."""

    blocks: int
    believed_tokens: Tokens
    grade: Grade
    audit: Audit


class Holdings:
    """Of all replicas. A `BlockListener`."""

    __slots__ = (
        "_arrived", "_blocks", "_cache_tokens", "_is_taught", "_load_per_s", "_records", "_texts",
    )  # fmt: skip

    def __init__(self, cache_tokens: Tokens, load_tokens_per_s: float) -> None:
        """`cache_tokens`: of a replica that does not say. `load_tokens_per_s`: how fast offloaded
        blocks are brought in."""
        self._cache_tokens = cache_tokens
        self._load_per_s = load_tokens_per_s
        self._records: dict[ReplicaId, Record] = {}
        self._blocks = BlockIndex()
        self._texts = TextIndex()
        self._arrived: deque[tuple[Seconds, Dispatch]] = deque()  # first bytes, oldest first
        self._is_taught = False  # somebody tokenises prompts

    def __repr__(self) -> str:
        return f"<Holdings of {len(self._records)} replicas, {self._blocks!r}, {self._texts!r}>"

    def __len__(self) -> int:
        """Different blocks and beginnings remembered, those still to be swept included."""
        return len(self._blocks) + len(self._texts)

    # What engines say. A `BlockListener`

    def described(self, replica: ReplicaId, facts: EngineFacts) -> None:
        """What is not said stays as it was believed."""
        record = self._record(replica)
        record.has_cache = facts.prefix_caching is not False
        if facts.block_size is not None:
            record.described(facts.block_size)
        if facts.cache_tokens is not None and facts.cache_tokens != record.sent.nominal:
            record.sent.resize(facts.cache_tokens)
            self._texts.trim(record.sent)

    def apply(self, replica: ReplicaId, events: Sequence[BlockEvent]) -> None:
        """O(blocks told of)."""
        record = self._record(replica)
        if record.source.apply(events):
            self._forget_sent(record)

    def retold(self, replica: ReplicaId) -> None:
        """Its blocks are forgotten until they are told again."""
        record = self._record(replica)
        record.source.retold()
        self._forget_sent(record)

    def certainty(self, replica: ReplicaId, certainty: Certainty) -> None:
        """Decides its grade."""
        self._record(replica).source.certainty = certainty

    # What a prompt would hit

    def hits(self, prompt: Prompt, replicas: Sequence[ReplicaId]) -> Hits:
        """O(marks of the prompt that are known + replicas that hold any of it)."""
        tokens, load_s = [0] * len(replicas), [0.0] * len(replicas)
        walk = self._texts.walk(prompt)
        ruler = Ruler(prompt, walk)
        if not walk.path:
            return Hits(ruler.length, tokens, load_s)
        sent, pending = ruler.tokens_of(walk.believed), ruler.tokens_of(walk.pending)
        holders = self._first_holders(walk)
        get = self._records.get
        near = []  # those that may hold any of it: few of many
        for at, replica in enumerate(replicas):
            record = get(replica)
            if record is None or not record.has_cache:
                continue
            if record.sent.bit in sent or record.sent.bit in pending or record.source.bit & holders:
                near.append((at, record))
        held = self._look_up(walk, [record for _, record in near])
        for at, record in near:
            hit = sent.get(record.sent.bit, 0)
            told = held.get(record.source.bit)
            if told is not None:
                coming = pending.get(record.sent.bit, 0)
                # Where the names of its blocks end, so does what events can say.
                hit = max(told.tokens, coming, hit if told.is_all else 0)
                if told.tokens > told.on_gpu:
                    load = told.tokens - max(told.on_gpu, coming)
                    load_s[at] = max(load, 0) / self._load_per_s
            tokens[at] = ruler.cut(hit, record.block_size)
        return Hits(ruler.length, tokens, load_s)

    def _first_holders(self, walk: Walk) -> int:
        """Bits of those that hold the first block: nobody else can hold any."""
        lesson = walk.path[walk.learnt - 1].lesson if walk.learnt else None
        bits = 0
        for chain in lesson.chains.values() if lesson is not None else ():
            if len(chain):
                bits |= self._blocks.holders(chain.hashes[0], self._blocks.media)
        return bits

    def _look_up(self, walk: Walk, records: Sequence[Record]) -> dict[int, Held]:
        """By the names of its blocks, as far as they are known: bits of sources, what they hold."""
        held: dict[int, Held] = {}
        if not walk.learnt:
            return held
        beginning = walk.path[walk.learnt - 1]
        lesson, known = beginning.lesson, beginning.tokens
        assert lesson is not None
        alike: dict[ChainKey, int] = {}
        for record in records:
            if record.grade is not Grade.APPROXIMATE:
                key = record.source.key(lesson.salt, lesson.adapter)
                if key is not None:
                    alike[key] = alike.get(key, 0) | record.source.bit
        media = tuple(self._blocks.media)
        for key, bits in alike.items():
            chain, size = lesson.chains.get(key), key[1]
            if chain is None:
                continue
            blocks = min(known // size, len(chain))
            on_gpu = _by_bit(self._blocks.depths(chain.hashes, blocks, bits, (GPU,)))
            depths = on_gpu
            if len(media) > 1:
                depths = _by_bit(self._blocks.depths(chain.hashes, blocks, bits, media))
            for bit, depth in depths.items():
                held[bit] = Held(depth * size, on_gpu[bit] * size, depth == blocks)
        return held

    def dispatched(self, prompt: Prompt, replica: ReplicaId, now: Seconds) -> Dispatch:
        """It goes there: pending there from now on. To be told what becomes of it."""
        self._expire(now, 2)  # as many as can have come meanwhile, and one more
        record = self._record(replica)
        predicted = self.hits(prompt, (replica,)).tokens[0]
        hashes = prompt.whole()
        request = prompt.request
        self._texts.send(record.sent, hashes, request.prompt_tokens / max(len(prompt), 1))
        dispatch = Dispatch(self._texts, self._arrived, record, hashes, predicted)
        if self._is_taught and record.source.is_readable:
            dispatch.watch()
            dispatch.wants_report, record.audit.misses = record.audit.misses, False
        return dispatch

    # What is learnt

    def learn(self, dispatch: Dispatch, tokenised: Tokenised) -> Iterator[None]:
        """The prompt of a dispatch has been tokenised. To be iterated to its end, off the critical
        path: it stops after every slice of hashing for others to have a turn.

        What an earlier prompt with the same beginning has learnt is not hashed again.
        """
        self._is_taught = True
        tokens, key_of = tokenised.tokens, (tokenised.salt, tokenised.adapter)
        known, known_tokens = self._texts.lesson(dispatch.hashes)
        lesson = Lesson(*key_of)
        for key in {record.source.key(*key_of) for record in self._records.values()}:
            if key is None:
                continue
            hasher, size = key
            chain = Chain()
            if known is not None and (known.salt, known.adapter) == key_of:
                chain = known.chains.get(key, chain).branch(known_tokens // size)
            yield from chain.grow(hasher, key_of, tokens, size)
            lesson.chains[key] = chain
        marks = MARKS[: len(dispatch.hashes)]
        ends = [bytes_ for bytes_, _ in tokenised.edges]
        counts = [0, *[count for _, count in tokenised.edges]]
        known_at = [bisect_right(ends, mark) for mark in marks]
        self._texts.teach(
            dispatch.hashes,
            lesson,
            [counts[at] for at in known_at],
            [mark - ends[at - 1] if at else 0 for mark, at in zip(marks, known_at, strict=True)],
        )
        mine = dispatch.record.source.key(*key_of)
        dispatch.settle(lesson.chains.get(mine) if mine else None, len(tokens))

    def repairs(self) -> list[ReplicaId]:
        """Replicas whose events do not match what they answer: all is to be told again."""
        found = [name for name, record in self._records.items() if record.audit.wants_repair]
        for name in found:
            self._records[name].audit.wants_repair = False
        return found

    def grade(self, replica: ReplicaId) -> Grade:
        """How its hits are found now; approximate where nobody tokenises prompts."""
        record = self._records.get(replica)
        return record.grade if record is not None and self._is_taught else Grade.APPROXIMATE

    def cache(self, replica: ReplicaId) -> CacheState:
        """For metrics."""
        record = self._record(replica)
        believed = int(record.sent.tokens)
        return CacheState(record.source.blocks, believed, self.grade(replica), record.audit)

    # What is forgotten

    def forget(self, replica: ReplicaId) -> None:
        """It has left, or is out. O(1): the rest is swept."""
        record = self._records.pop(replica, None)
        if record is not None:
            record.source.close()
            self._texts.leave(record.sent)

    def tidy(self, now: Seconds) -> None:
        """To be called some times a second; about 1 ms at most."""
        self._expire(now, TIDY_DISPATCHES)
        self._blocks.sweep(TIDY_SHARDS)
        self._texts.sweep(TIDY_BEGINNINGS)

    def _expire(self, now: Seconds, most: int) -> None:
        arrived = self._arrived
        while most and arrived and arrived[0][0] + PENDING_S <= now:
            arrived.popleft()[1].expired()
            most -= 1

    def _record(self, replica: ReplicaId) -> Record:
        found = self._records.get(replica)
        if found is None:
            source, sent = KvSource(self._blocks), self._texts.join(self._cache_tokens)
            found = self._records[replica] = Record(source, sent)
        return found

    def _forget_sent(self, record: Record) -> None:
        """Its cache is empty."""
        capacity, nominal = record.sent.capacity, record.sent.nominal
        self._texts.leave(record.sent)
        record.sent = self._texts.join(nominal)
        record.sent.capacity = capacity


class Held(msgspec.Struct, frozen=True):
    """What a replica's events tell of a prompt; `is_all`: all that could be looked up."""

    tokens: Tokens
    on_gpu: Tokens
    is_all: bool


class Ruler:
    """Beginnings of a prompt measured in tokens: learnt where they are, in proportion beyond."""

    __slots__ = ("_per_byte", "_walk", "length")

    def __init__(self, prompt: Prompt, walk: Walk) -> None:
        self._walk = walk
        self._per_byte = prompt.request.prompt_tokens / max(len(prompt), 1)
        self.length: Tokens = prompt.request.prompt_tokens
        if walk.learnt:
            last = walk.path[walk.learnt - 1]
            rest = len(prompt) - MARKS[walk.learnt - 1] + last.beyond
            self.length = last.tokens + int(rest * self._per_byte)

    def __repr__(self) -> str:
        return f"<Ruler of {self.length} tokens>"

    def tokens_of(self, depths: Sequence[tuple[int, int]]) -> dict[int, Tokens]:
        """(bits, beginnings) to tokens by bit."""
        return {bit: self._at(depth) for bits, depth in depths for bit in each_bit(bits)}

    def cut(self, tokens: Tokens, block_size: Tokens) -> Tokens:
        """To whole blocks, and to less than the prompt: its last token is always computed."""
        return max(min(tokens, self.length - 1), 0) // block_size * block_size

    def _at(self, depth: int) -> Tokens:
        walk = self._walk
        beginning = walk.path[depth - 1]
        if beginning.lesson is not None:
            return beginning.tokens + int(beginning.beyond * self._per_byte)
        plain = int(MARKS[depth - 1] * self._per_byte)
        if not walk.learnt:
            return plain
        if depth < walk.learnt:
            return min(plain, walk.path[walk.learnt - 1].tokens)
        last = walk.path[walk.learnt - 1]
        beyond = MARKS[depth - 1] - MARKS[walk.learnt - 1] + last.beyond
        return last.tokens + int(beyond * self._per_byte)


def each_bit(bits: int) -> Iterator[int]:
    """The bits of a mask, one by one."""
    while bits:
        bit = bits & -bits
        yield bit
        bits ^= bit


def _by_bit(depths: Sequence[tuple[int, int]]) -> dict[int, int]:
    return {bit: depth for bits, depth in depths for bit in each_bit(bits)}
