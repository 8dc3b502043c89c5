"""Which replicas hold a block? Names of blocks to bit masks of replicas.

One look-up answers for the whole pool. A replica may hold a block more than once, and lets go of
each copy by an event of its own: counts are kept on the side, where they are above one.

Invariants. A bit is set while its replica holds at least one copy. Masks are never zero. A bit that
was given up is given away again only when no mask has it any more. No operation walks over all
blocks: names are spread over many small dicts, which are swept one by one, and which grow without
stopping the world.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from gateway.kv_cache import BlockHash

SHARDS: Final = 1024
SHIFT: Final = 54  # the high bits of 64: a dict finds its slots by the low ones
GPU: Final = "GPU"
MOST_MEDIA: Final = 8  # names of media come from engines; what is told of further ones is ignored

Shards = list[dict[BlockHash, int]]
Changes = list[tuple[str, BlockHash, bool]]
"""(medium, block, was it there before?): what appeared and what vanished, in order."""


class BlockIndex:
    """Blocks of all replicas in all media. O(1) per block."""

    __slots__ = ("_copies", "_dirty", "_free", "_held", "_next", "_sweeping", "media")

    def __init__(self) -> None:
        self.media: dict[str, Shards] = {GPU: _shards()}
        self._copies: dict[tuple[int, str], dict[BlockHash, int]] = {}  # where above one
        self._held: dict[int, int] = {}  # blocks per bit
        self._free: list[int] = []
        self._dirty = 0  # bits given up and not yet swept
        self._sweeping = 0  # those of them this round of sweeping clears
        self._next = 0  # the shard to be swept next

    def __repr__(self) -> str:
        return f"<BlockIndex {len(self)} names, {len(self._held)} replicas>"

    def __len__(self) -> int:
        """Different blocks, those of replicas that left included until they are swept."""
        return sum([len(shard) for shards in self.media.values() for shard in shards])

    def take(self) -> int:
        """A bit (1 << n) for one more replica; nothing has it."""
        if self._free:
            bit = self._free.pop()
        else:
            bit = 1 << (len(self._held) + (self._dirty | self._sweeping).bit_count())
        self._held[bit] = 0
        return bit

    def leave(self, bit: int) -> None:
        """Its replica holds nothing any more; `bit` must not be used again by who had it."""
        del self._held[bit]
        for key in [key for key in self._copies if key[0] == bit]:
            del self._copies[key]
        self._dirty |= bit

    def held(self, bit: int) -> int:
        """Blocks held by one replica; one in two media counts twice."""
        return self._held[bit]

    def add(
        self, bit: int, medium: str, blocks: Iterable[BlockHash], changes: Changes | None = None
    ) -> None:
        """One more copy of each."""
        shards = self._medium(medium)
        if shards is None:
            return
        held = 0
        for block in blocks:
            shard = shards[block >> SHIFT]
            mask = shard.get(block)
            if mask is None:
                shard[block] = bit
            elif mask & bit:
                copies = self._copies.setdefault((bit, medium), {})
                copies[block] = copies.get(block, 1) + 1
                continue
            else:
                shard[block] = mask | bit
            held += 1
            if changes is not None:
                changes.append((medium, block, False))
        self._held[bit] += held

    def announce(
        self, bit: int, medium: str, blocks: Iterable[BlockHash], changes: Changes | None = None
    ) -> None:
        """Each is there, in at least one copy: those that were known stay as they are."""
        shards = self._medium(medium)
        if shards is None:
            return
        missing = [block for block in blocks if not shards[block >> SHIFT].get(block, 0) & bit]
        self.add(bit, medium, dict.fromkeys(missing), changes)

    def remove(
        self, bit: int, medium: str, blocks: Iterable[BlockHash], changes: Changes | None = None
    ) -> None:
        """One copy less of each; what is not known to be there is ignored."""
        shards = self.media.get(medium)
        if shards is None:
            return
        copies = self._copies.get((bit, medium))
        for block in blocks:
            shard = shards[block >> SHIFT]
            mask = shard.get(block, 0)
            if not mask & bit:
                continue
            if copies and block in copies:
                copies[block] -= 1
                if copies[block] == 1:
                    del copies[block]
                continue
            if mask == bit:
                del shard[block]
            else:
                shard[block] = mask ^ bit
            self._held[bit] -= 1
            if changes is not None:
                changes.append((medium, block, True))

    def holders(self, block: BlockHash, media: Iterable[str]) -> int:
        """The bits of those that hold it in any of `media`; bits nobody has may be among them."""
        mask = 0
        for medium in media:
            if medium in self.media:
                mask |= self.media[medium][block >> SHIFT].get(block, 0)
        return mask

    def depths(
        self, chain: Sequence[BlockHash], blocks: int, bits: int, media: Sequence[str]
    ) -> list[tuple[int, int]]:
        """How many of the first `blocks` of a chain are held, as (bits, depth) pairs.

        A prefix cache is evicted from the tail, so what holds a block holds those before it: found
        by halving, for all replicas at once. Where events were lost and that is not so, the answer
        is one of the ends of what is held. O(log blocks) probes per different depth.
        """
        found: list[tuple[int, int]] = []
        todo = [(bits, 0, blocks)]
        where = [self.media[medium] for medium in media]
        while todo:
            mask, low, high = todo.pop()  # held up to `low`, not held beyond `high`
            while low < high and mask:
                middle = (low + high + 1) // 2
                block = chain[middle - 1]
                there = 0
                for shards in where:
                    there |= shards[block >> SHIFT].get(block, 0)
                there &= mask
                if not there:
                    high = middle - 1
                    continue
                if there != mask:
                    todo.append((mask ^ there, low, middle - 1))
                mask, low = there, middle
            if mask:
                found.append((mask, low))
        return found

    def sweep(self, shards: int) -> None:
        """Clear bits that were given up out of so many of the shards; does nothing if none were."""
        for _ in range(shards):
            if not self._sweeping:
                if not self._dirty:
                    return
                self._sweeping, self._dirty, self._next = self._dirty, 0, 0
            for medium in self.media.values():
                _clear(medium, self._next, self._sweeping)
            self._next += 1
            if self._next == SHARDS:
                while self._sweeping:
                    bit = self._sweeping & -self._sweeping
                    self._sweeping ^= bit
                    self._free.append(bit)

    def _medium(self, medium: str) -> Shards | None:
        found = self.media.get(medium)
        if found is None and len(self.media) < MOST_MEDIA:
            found = self.media[medium] = _shards()
        return found


def _shards() -> Shards:
    return [{} for _ in range(SHARDS)]


def _clear(shards: Shards, at: int, bits: int) -> None:
    shard = shards[at]
    stale = [(block, mask & ~bits) for block, mask in shard.items() if mask & bits]
    for block, mask in stale:
        if mask:
            shard[block] = mask
        else:
            del shard[block]
    if len(stale) > len(shard):  # a dict gives no memory back by itself
        shards[at] = dict(shard.items())
