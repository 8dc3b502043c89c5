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

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final
from weakref import WeakKeyDictionary

from gateway.choose.audit import Answers, Curiosity
from gateway.choose.block_hash import Chain
from gateway.choose.block_index import GPU, BlockIndex
from gateway.choose.dispatch import PENDING_S, CacheState, Dispatch, Grade, Record
from gateway.choose.elsewhere import Elsewhere
from gateway.choose.kv_source import ChainKey, KvSource
from gateway.choose.names import Held, Names
from gateway.choose.ruler import Hits, Ruler
from gateway.choose.stretch import Lesson, each_bit
from gateway.choose.text_chain import MARKS, Hash, Prompt
from gateway.choose.text_index import TextIndex, Walk
from gateway.kv_cache import BlockEvent, Certainty, EngineFacts, Placement, Reading, Tokenised
from gateway.vocabulary import ReplicaId, Seconds, Tokens

UNTOLD_SHARE, UNTOLD_TOKENS = 1.5, 2048
"""A replica that holds so many times what we sent it, and some more, has it from others; what it
generated is not much."""

NEW: Final = 0.5
"""Prompts of which less than this share is known to us are new."""

_SILENT: Final = Certainty.SILENT  # found faster by a name of our own

TIDY_SHARDS, TIDY_STRETCHES, TIDY_DISPATCHES = 8, 1_000, 20  # per call: about 1 ms


Foreseen = tuple[Tokens, Ruler]
"""A hit, and what it was measured with."""


class Holdings:
    """Of all replicas. A `BlockListener`."""

    __slots__ = (
        "_answers", "_arrived", "_blocks", "_cache_tokens", "_curiosity", "_elsewhere",
        "_is_taught", "_load_per_s", "_named", "_records", "_texts", "catch_up", "untold",
    )  # fmt: skip

    def __init__(
        self, cache_tokens: Tokens, load_tokens_per_s: float, *, reads_all: bool = False
    ) -> None:
        """`cache_tokens`: of a replica that does not say. `load_tokens_per_s`: how fast offloaded
        blocks are brought in. `reads_all`: every prompt is worth reading as tokens."""
        self._cache_tokens = cache_tokens
        self._load_per_s = load_tokens_per_s
        self._records: dict[ReplicaId, Record] = {}
        self._blocks = BlockIndex()
        self._texts = TextIndex()
        self._elsewhere = Elsewhere(self._texts)
        self._arrived: deque[tuple[Seconds, Dispatch]] = deque()  # first bytes, oldest first
        self._curiosity = Curiosity(is_all=reads_all)
        self._answers = Answers()
        self._is_taught = False  # somebody tokenises prompts
        self._named: WeakKeyDictionary[Reading, Lesson] = WeakKeyDictionary()
        self.catch_up: Callable[[ReplicaId], object] | None = None
        """Has what a replica told by now applied, where events are heard with a delay."""
        self.untold: frozenset[ReplicaId] = frozenset()
        """Who holds noticeably more than we sent there, by its events; as of the last `tidy`."""

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
        ruler = Ruler(prompt, walk, keeps_answers=self._answers.are_kept(prompt.model))
        names = self._names_of(prompt, walk)
        if names is not None and names.is_whole:
            ruler.length = names.tokens
        elif not walk.depth:
            return Hits(ruler.length, tokens, load_s, ruler)
        sent, records = ruler.tokens_of(walk.believed), self._records
        if names is None:
            for at, replica in enumerate(replicas):
                record = records.get(replica)
                if record is not None and record.has_cache:
                    tokens[at] = ruler.cut(sent.get(record.sent.bit, 0), record.block_size)
            return Hits(ruler.length, tokens, load_s, ruler)
        pending = ruler.tokens_of(walk.pending)
        holders = self._first_holders(names)
        near = []  # those that may hold any of it: few of many
        for at, replica in enumerate(replicas):
            record = records.get(replica)
            if record is None or not record.has_cache:
                continue
            if record.sent.bit in sent or record.sent.bit in pending or record.source.bit & holders:
                near.append((at, record))
        held = self._look_up(names, [record for _, record in near])
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
        return Hits(ruler.length, tokens, load_s, ruler)

    def _names_of(self, prompt: Prompt, walk: Walk) -> Names | None:
        """As far as they are known: all, where it was read before."""
        reading = prompt.request.reading
        named = None if reading is None else self._named.get(reading)
        if named is not None and reading is not None and reading.tokenised is not None:
            return Names(named, len(reading.tokenised.tokens), is_whole=True)
        if walk.lesson is None:
            return None
        return Names(walk.lesson, walk.tokens, is_whole=False)

    def _first_holders(self, names: Names) -> int:
        """Bits of those that hold the first block: nobody else can hold any."""
        bits = 0
        for chain in names.lesson.chains.values():
            if len(chain):
                bits |= self._blocks.holders(chain.hashes[0], self._blocks.media)
        return bits

    def _look_up(self, names: Names, records: Sequence[Record]) -> dict[int, Held]:
        """By the names of its blocks, as far as they are known: bits of sources, what they hold."""
        held: dict[int, Held] = {}
        lesson, known = names.lesson, names.tokens
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
                held[bit] = Held(depth * size, on_gpu[bit] * size, is_all=depth == blocks)
        return held

    def dispatched(
        self, prompt: Prompt, replica: ReplicaId, now: Seconds, foreseen: Foreseen | None = None
    ) -> Dispatch:
        """It goes there: pending there from now on. To be told what becomes of it.

        `foreseen` is the hit to be judged, and how it was found; None: what it would hit now.
        """
        self._expire(now, 2)  # as many as can have come meanwhile, and one more
        record = self._record(replica)
        if foreseen is None:
            hits = self.hits(prompt, (replica,))
            foreseen = hits.tokens[0], hits.ruler
        if record.source.certainty is _SILENT:
            return Dispatch(self._texts, self._arrived, record, prompt, foreseen)
        reading = prompt.request.reading
        wants_tokens = reading is not None or self._curiosity.takes()
        is_watched = self._is_taught and wants_tokens and record.source.is_readable
        if is_watched and self.catch_up is not None:
            self.catch_up(replica)
        dispatch = Dispatch(self._texts, self._arrived, record, prompt, foreseen)
        dispatch.wants_tokens = wants_tokens
        if reading is not None:
            dispatch.named = self._named.get(reading)
        if is_watched:
            dispatch.watch()
            dispatch.wants_report, record.audit.misses = record.audit.misses, False
        return dispatch

    def placed(self, placement: Placement, now: Seconds) -> None:
        """Another gateway has sent a prompt, or one of its is on its way no longer."""
        self._elsewhere.told(self._record(ReplicaId(placement.replica)), placement, now)

    # What is learnt

    def learn(self, dispatch: Dispatch, tokenised: Tokenised) -> Iterator[None]:
        """The prompt of a dispatch has been tokenised. To be iterated to its end, off the critical
        path: it stops after every slice of hashing for others to have a turn.

        What an earlier prompt with the same beginning has learnt is not hashed again.
        """
        self._is_taught = True
        tokens, key_of = tokenised.tokens, (tokenised.salt, tokenised.adapter)
        known, known_tokens = self._texts.lesson(dispatch.hashes)
        lesson = Lesson(*key_of) if dispatch.named is None else dispatch.named
        for key in self._keys(key_of) - lesson.chains.keys():
            hasher, size = key
            chain = Chain()
            if known is not None and (known.salt, known.adapter) == key_of:
                chain = known.chains.get(key, chain).branch(known_tokens // size)
            yield from chain.grow(hasher, key_of, tokens, size)
            lesson.chains[key] = chain
        lesson.measured(tokenised.edges)
        self._texts.teach(dispatch.hashes, lesson)
        mine = dispatch.record.source.key(*key_of)
        dispatch.settle(lesson.chains.get(mine) if mine else None, len(tokens))

    # What is found out before a prompt is sent

    def is_new(self, prompt: Prompt) -> bool:
        """Is most of it unknown to us? O(marks that are known)."""
        known = self._texts.walk(prompt).depth
        return (MARKS[known - 1] if known else 0) < NEW * len(prompt)

    def name(self, reading: Reading) -> Iterator[None]:
        """A prompt has been read before it is sent: `hits` will look it up by the names of its own
        blocks. To be iterated to its end: stops after every slice of hashing."""
        tokenised = reading.tokenised
        if tokenised is None:
            return
        self._is_taught = True
        key_of = (tokenised.salt, tokenised.adapter)
        lesson = Lesson(*key_of)
        for hasher, size in self._keys(key_of):
            chain = Chain()
            yield from chain.grow(hasher, key_of, tokenised.tokens, size)
            lesson.chains[hasher, size] = chain
        self._named[reading] = lesson

    def _keys(self, key_of: tuple[str | None, str | None]) -> set[ChainKey]:
        """The ways in which replicas name the blocks of such a prompt."""
        keys = {record.source.key(*key_of) for record in self._records.values()}
        return {key for key in keys if key is not None}

    def _find_untold(self) -> None:
        media = len(self._blocks.media)
        self.untold = frozenset(
            name
            for name, record in self._records.items()
            if record.source.blocks * record.block_size // media
            > UNTOLD_SHARE * record.sent.tokens + UNTOLD_TOKENS
            and record.grade is not Grade.APPROXIMATE
        )

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

    def held_tokens(self, replica: ReplicaId) -> Tokens:
        """About how much its cache holds: as its engine tells, else as it was sent there."""
        record = self._records.get(replica)
        if record is None:
            return 0
        return record.source.blocks * record.block_size or int(record.sent.tokens)

    def spread(self, hashes: list[Hash]) -> dict[ReplicaId, Tokens]:
        """How much of a prompt with these beginnings each cache is believed to hold, about; who
        holds none is left out. O(stretches of the prompt + replicas)."""
        sent = self._texts.spread(hashes)
        lesson, known = self._texts.lesson(hashes)
        told: dict[int, Held] = {}
        if lesson is not None:
            told = self._look_up(Names(lesson, known, is_whole=False), list(self._records.values()))
        held: dict[ReplicaId, Tokens] = {}
        for replica, record in self._records.items():
            tokens = sum(each for bits, each in sent if bits & record.sent.bit)
            heard = told.get(record.source.bit)
            if heard is not None:
                tokens = max(heard.tokens, tokens if heard.is_all else 0)
            if tokens and record.has_cache:
                held[replica] = tokens
        return held

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
        self._texts.sweep(TIDY_STRETCHES)
        self._find_untold()

    def _expire(self, now: Seconds, most: int) -> None:
        self._elsewhere.expire(now)
        arrived = self._arrived
        while most and arrived and arrived[0][0] + PENDING_S <= now:
            arrived.popleft()[1].expired()
            most -= 1

    def _record(self, replica: ReplicaId) -> Record:
        found = self._records.get(replica)
        if found is None:
            source, sent = KvSource(self._blocks), self._texts.join(self._cache_tokens)
            found = self._records[replica] = Record(source, sent, self._curiosity, self._answers)
        return found

    def _forget_sent(self, record: Record) -> None:
        """Its cache is empty."""
        capacity, nominal = record.sent.capacity, record.sent.nominal
        self._texts.leave(record.sent)
        record.sent = self._texts.join(nominal)
        record.sent.capacity = capacity


def _by_bit(depths: Sequence[tuple[int, int]]) -> dict[int, int]:
    return {bit: depth for bits, depth in depths for bit in each_bit(bits)}
