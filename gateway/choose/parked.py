"""Blocks whose parents are not known yet, and so what they are the blocks of.

Invariants. Never more than `MOST_PARKED`; what is beyond is dropped, which makes a hit look shorter
than it is until it is told again. Each block waits under its own parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.kv_cache import BlockHash

MOST_PARKED: Final = 65_536


class ParkedBlock:
    """One of them: its engine's name for it, and what is needed to name it anew."""

    __slots__ = ("keys", "media", "name", "parent", "tokens")

    def __init__(
        self,
        name: BlockHash,
        parent: BlockHash,
        tokens: Sequence[int],
        keys: tuple[str | None, object],
    ) -> None:
        self.name = name
        self.parent = parent
        self.tokens = tokens
        self.keys = keys  # adapter, extra keys
        self.media: list[str] = []  # one for each copy

    def __repr__(self) -> str:
        return f"<ParkedBlock {self.name:x} in {self.media}>"


class Parked:
    """Those of one replica. O(1) per block."""

    __slots__ = ("_blocks", "_waiting")

    def __init__(self) -> None:
        self._blocks: dict[BlockHash, ParkedBlock] = {}
        self._waiting: dict[BlockHash, list[BlockHash]] = {}  # parent: its children

    def __repr__(self) -> str:
        return f"<Parked {len(self)} blocks>"

    def __len__(self) -> int:
        return len(self._blocks)

    def put(self, block: ParkedBlock, medium: str) -> None:
        """One copy of a block."""
        known = self._blocks.get(block.name)
        if known is None:
            if len(self._blocks) >= MOST_PARKED:
                return
            known = self._blocks[block.name] = block
            self._waiting.setdefault(block.parent, []).append(block.name)
        known.media.append(medium)

    def holds(self, name: BlockHash, medium: str) -> bool:
        """Is there a copy of it in that medium?"""
        block = self._blocks.get(name)
        return block is not None and medium in block.media

    def remove(self, name: BlockHash, medium: str) -> None:
        """One copy less; a block that is not here is ignored."""
        block = self._blocks.get(name)
        if block is None or medium not in block.media:
            return
        block.media.remove(medium)
        if not block.media:
            del self._blocks[name]
            siblings = self._waiting[block.parent]
            siblings.remove(name)
            if not siblings:
                del self._waiting[block.parent]

    def children(self, parent: BlockHash) -> list[ParkedBlock]:
        """Take out those that waited for this parent."""
        return [self._blocks.pop(name) for name in self._waiting.pop(parent, ())]

    def leave(self) -> list[tuple[str, list[BlockHash]]]:
        """Take all out: their names turn out to be enough. One pair of medium and names a copy."""
        found = [
            (medium, [block.name]) for block in self._blocks.values() for medium in block.media
        ]
        self.clear()
        return found

    def clear(self) -> None:
        """Forget them."""
        self._blocks.clear()
        self._waiting.clear()
