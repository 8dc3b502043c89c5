"""What we believe a replica's KV cache holds, going by what we sent it.

An engine keeps the blocks of what it has prefilled and evicts the least recently used from the
tail; so do we, block by block, up to the size we believe it has.

Invariants. Never more than `capacity` blocks. The longest known prefix of a chain equals a scan of
all that was ever stored and not evicted. Of one chain, later blocks go before earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence


class PrefixCache:
    """The block hashes of one replica, oldest use first (a dict keeps its order)."""

    __slots__ = ("_blocks", "_capacity")

    def __init__(self, capacity: int) -> None:
        """`capacity` in blocks, at least one."""
        self._capacity = capacity
        self._blocks: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def __repr__(self) -> str:
        return f"<PrefixCache {len(self._blocks)} of {self._capacity} blocks>"

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def store(self, chain: Sequence[int]) -> None:
        """A prompt with this chain goes there: its blocks are in use now. O(len(chain))."""
        blocks = self._blocks
        for block in reversed(chain):  # so that the first block of the chain is the newest
            blocks.pop(block, None)
            blocks[block] = None
        excess = len(blocks) - self._capacity
        if excess > 0:
            for block in [block for block, _ in zip(blocks, range(excess), strict=False)]:
                del blocks[block]
