"""The KV cache as one request sees it: the blocks it holds, their hashes, and what became of them.

Asked to find how much of a prompt is cached, to hold blocks for a request as it is computed, and to
let go of them. Writes down every block stored, removed or cleared, in the form vLLM 0.32 publishes;
whoever steps the engine takes those events away with `take_events`.

Invariants: a request holds exactly the blocks its computed tokens need; a full block carries its
hash from the moment it is scheduled (before it is computed, as in vLLM), so that a request with the
same prefix in the same step already shares it; a request is never given its last token from the
cache, because the model must run once to say what comes next.

Source: vLLM 0.32, v1/core/kv_cache_manager.py, distributed/kv_events.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from serving.sim.block_hash import BlockHasher, ExtraKey, wire_hash
from serving.sim.blocks import BlockPool

MEDIUM = "GPU"
FULL_ATTENTION = "full_attention"


class KvEvent(msgspec.Struct, omit_defaults=True, tag=True, gc=False):
    """One change of the cache; on the wire a map with its class name under `type`."""


class BlockStored(KvEvent):
    """Blocks that carry a hash from now on. Field order and names are the wire's."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[str, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None


class BlockRemoved(KvEvent):
    """One physical block that no longer carries this hash; another may still."""

    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None


class AllBlocksCleared(KvEvent):
    """No block carries any hash."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: `number` is the engine's id for it, from 1."""

    name: str
    path: str
    number: int


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What beside the tokens decides whether cached blocks may be shared."""

    adapter: Adapter | None = None
    salt: str | None = None
    session: str | None = None

    def extra(self, is_first_block: bool) -> tuple[ExtraKey, ...]:
        """Tagged keys of one block; the salt is in the first block only."""
        keys: list[ExtraKey] = []
        if self.adapter is not None:
            keys.append(("lora", self.adapter.name, self.adapter.path))
        if is_first_block and self.salt:
            keys.append(("cache_salt", self.salt))
        return tuple(keys)


@dataclass(slots=True, eq=False)
class Holding:
    """What one request knows and holds: its tokens, block hashes and blocks, in order."""

    key: CacheKey
    tokens: list[int]
    digests: list[bytes] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    remembered: int = 0
    """Leading blocks that carry their hash, because this request stored or shared them."""


class KvCache:
    """The pool, cut into blocks of `block_size` tokens, with prefix reuse on or off."""

    __slots__ = ("_events", "_hasher", "block_size", "pool", "reuses_prefixes")

    def __init__(
        self, pool: BlockPool, block_size: int, hasher: BlockHasher, reuses_prefixes: bool = True
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self.reuses_prefixes = reuses_prefixes
        self._hasher = hasher
        self._events: list[KvEvent] = []

    def __repr__(self) -> str:
        return f"<KvCache {self.pool!r} of {self.block_size} tokens>"

    def open(self, prompt: Sequence[int], key: CacheKey) -> Holding:
        """A holding of no blocks yet, its full prompt blocks hashed."""
        holding = Holding(key, list(prompt))
        self._hash_full_blocks(holding)
        return holding

    def append(self, holding: Holding, token: int) -> None:
        """One more known token; O(1), plus one hash when it fills a block."""
        holding.tokens.append(token)
        if len(holding.tokens) % self.block_size == 0:
            self._hash_full_blocks(holding)

    def cached_blocks(self, holding: Holding) -> list[int]:
        """The blocks that hold the longest cached prefix, at most all tokens but the last."""
        if not self.reuses_prefixes:
            return []
        most = (len(holding.tokens) - 1) // self.block_size
        found = []
        for digest in holding.digests[:most]:
            block = self.pool.find(digest)
            if block is None:
                break
            found.append(block)
        return found

    def could_hold(self, holding: Holding, cached: Sequence[int], tokens: int) -> bool:
        """True if `tokens` fit beside everyone else, when the cached blocks are shared."""
        idle = sum(self.pool.is_free(block) for block in cached)
        return self._blocks_for(tokens) - len(cached) <= self.pool.free - idle

    def share(self, holding: Holding, cached: Sequence[int], announce: bool = False) -> None:
        """Hold cached blocks as the head of an empty holding; `announce` them as stored again.

        The announcement is `kv_cache_report_mode = "full"`: it repairs an index that missed them.
        """
        self.pool.share(cached)
        holding.blocks.extend(cached)
        holding.remembered = len(cached)
        if announce and cached:
            self._events.append(self._stored(holding, 0, len(cached)))

    def hold(self, holding: Holding, tokens: int) -> bool:
        """Hold blocks enough for the first `tokens`, and remember those that are full.

        False, with nothing changed, when too few are free.
        """
        missing = self._blocks_for(tokens) - len(holding.blocks)
        if missing > self.pool.free:
            return False
        if missing > 0:
            taken, forgotten = self.pool.take(missing)
            holding.blocks.extend(taken)
            self._events.extend(
                BlockRemoved([wire_hash(digest)], MEDIUM, group_idx=0) for digest in forgotten
            )
        self._remember(holding, tokens // self.block_size)
        return True

    def let_go(self, holding: Holding) -> None:
        """Give every block back, the tail first, so that prefixes die from their end."""
        self.pool.give_back(reversed(holding.blocks))
        holding.blocks.clear()
        holding.remembered = 0

    def clear(self) -> bool:
        """Forget all cached content; False when some of it is in use."""
        if not self.pool.forget_all():
            return False
        self._events.append(AllBlocksCleared())
        return True

    def take_events(self) -> list[KvEvent]:
        """Every event since the last call, oldest first."""
        events, self._events = self._events, []
        return events

    def _remember(self, holding: Holding, full: int) -> None:
        first = holding.remembered
        if full <= first or not self.reuses_prefixes:
            return
        for index in range(first, full):
            self.pool.remember(holding.blocks[index], holding.digests[index])
        holding.remembered = full
        self._events.append(self._stored(holding, first, full))

    def _stored(self, holding: Holding, first: int, end: int) -> BlockStored:
        """One event for blocks first..end-1 of a holding; extra keys go untagged on the wire."""
        key, size = holding.key, self.block_size
        extras = [
            tuple(tagged[1] for tagged in key.extra(index == 0)) or None
            for index in range(first, end)
        ]
        return BlockStored(
            block_hashes=[wire_hash(digest) for digest in holding.digests[first:end]],
            parent_block_hash=wire_hash(holding.digests[first - 1]) if first else None,
            token_ids=holding.tokens[first * size : end * size],
            block_size=size,
            lora_id=key.adapter.number if key.adapter else None,
            medium=MEDIUM,
            lora_name=key.adapter.name if key.adapter else None,
            extra_keys=extras,
            group_idx=0,
            kv_cache_spec_kind=FULL_ATTENTION,
            session_id=key.session,
        )

    def _hash_full_blocks(self, holding: Holding) -> None:
        if not self.reuses_prefixes:
            return
        size, digests = self.block_size, holding.digests
        for index in range(len(digests), len(holding.tokens) // size):
            parent = digests[-1] if digests else None
            block = holding.tokens[index * size : (index + 1) * size]
            digests.append(self._hasher.digest(parent, block, holding.key.extra(index == 0)))

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)
