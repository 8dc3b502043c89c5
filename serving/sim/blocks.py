"""The pool of physical KV-cache blocks: who holds which, and what a free one still remembers.

Asked to take blocks, give them back, and find a block by the hash of its content. A block given
back keeps its content (and hash) until it is taken again, so the free blocks are the prefix cache.

Invariants (`check` tests them all):
- free + used = total; a block is free exactly when nobody refers to it;
- a block is found by a hash exactly while it carries that hash;
- two blocks may carry one hash (no deduplication, as in vLLM), one block never carries two.

Eviction order is least recently given back first; within one `give_back` the first named goes
first, so callers name the tail of a request before its head. Blocks that carry no hash are taken
again before any that do (vLLM 0.32, v1/core/block_pool.py).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """`total` blocks, numbered from 0. Every operation is O(1) per block it names."""

    __slots__ = ("_by_digest", "_digests", "_free", "_holders", "total")

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError("a pool needs at least one block")
        self.total = total
        self._holders = [0] * total
        self._digests: list[bytes | None] = [None] * total
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(total))
        self._by_digest: dict[bytes, dict[int, None]] = {}

    def __repr__(self) -> str:
        return f"<BlockPool {self.used} used of {self.total}, {len(self._by_digest)} hashes>"

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0..1."""
        return self.used / self.total

    def is_free(self, block: int) -> bool:
        return self._holders[block] == 0

    def find(self, digest: bytes) -> int | None:
        """A block that carries this hash, or None."""
        for block in self._by_digest.get(digest, ()):
            return block
        return None

    def carries(self, block: int) -> bytes | None:
        """The hash this block is found by, if any."""
        return self._digests[block]

    def take(self, count: int) -> tuple[list[int], list[bytes]]:
        """`count` blocks for one new holder, and the hashes forgotten to make room.

        Raises ValueError when fewer are free; then nothing has changed.
        """
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked, {len(self._free)} free")
        taken, forgotten = [], []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            digest = self._forget(block)
            if digest is not None:
                forgotten.append(digest)
            self._holders[block] = 1
            taken.append(block)
        return taken, forgotten

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each of these blocks, free or not."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._free[block]
            self._holders[block] += 1

    def give_back(self, blocks: Iterable[int]) -> None:
        """One holder fewer for each; name first what may be evicted first.

        Raises ValueError for a block nobody holds.
        """
        unhashed = []
        for block in blocks:
            if self._holders[block] == 0:
                raise ValueError(f"block {block} is free already")
            self._holders[block] -= 1
            if self._holders[block] > 0:
                continue
            self._free[block] = None
            if self._digests[block] is None:
                unhashed.append(block)
        for block in reversed(unhashed):
            self._free.move_to_end(block, last=False)

    def remember(self, block: int, digest: bytes) -> None:
        """From now on a held block is found by this hash. Raises ValueError if it has one."""
        if self._holders[block] == 0 or self._digests[block] is not None:
            raise ValueError(f"block {block} cannot take a hash now")
        self._digests[block] = digest
        self._by_digest.setdefault(digest, {})[block] = None

    def forget_all(self) -> bool:
        """Drop every hash, if no block is held; False (and no change) otherwise."""
        if self.used:
            return False
        self._by_digest.clear()
        self._digests = [None] * self.total
        return True

    def check(self) -> None:
        """Raise AssertionError where an invariant of this module is broken. O(total)."""
        for block, holders in enumerate(self._holders):
            _hold(holders >= 0, f"block {block} has {holders} holders")
            _hold((holders == 0) == (block in self._free), f"block {block}: free or held?")
            digest = self._digests[block]
            if digest is not None:
                _hold(block in self._by_digest.get(digest, {}), f"block {block} is lost")
        carried = sum(len(blocks) for blocks in self._by_digest.values())
        hashed = sum(digest is not None for digest in self._digests)
        _hold(carried == hashed, f"{carried} blocks found by hash, {hashed} carry one")
        _hold(all(self._by_digest.values()), "a hash that finds nothing is kept")

    def held(self, blocks: Sequence[int]) -> bool:
        """True when each of these blocks has a holder."""
        return all(self._holders[block] > 0 for block in blocks)

    def _forget(self, block: int) -> bytes | None:
        digest = self._digests[block]
        if digest is None:
            return None
        self._digests[block] = None
        twins = self._by_digest[digest]
        del twins[block]
        if not twins:
            del self._by_digest[digest]
        return digest


def _hold(truth: bool, otherwise: str) -> None:
    if not truth:
        raise AssertionError(otherwise)
