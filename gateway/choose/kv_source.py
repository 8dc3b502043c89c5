"""The blocks of one replica, as its events tell them.

Asked: which names to look its blocks up by, and what to make of its events. How the engine names
blocks is found out by trying: where a prompt begins, the first block's name is worked out in every
way we know. If one of them gives the engine's own, the chain is *native*: its names go straight
into the index, no parent, tokens or order needed. If none does, it is *bridged*: named anew from
its tokens, by a map from the engine's names to ours. vLLM's default hash of salted blocks depends
on the identity of objects in the engine, so salted prompts are tried by themselves; of adapters the
engine hashes the path, which events do not tell, so their blocks are always bridged.

Invariants. A block whose parent is unknown is parked until the parent comes, never taken for a
beginning. A prompt's beginning that is told again (a report of what was reused) makes blocks
present and adds no copies. An engine with several cache groups is refused: what a prompt hits there
is the least over groups of different rules, and we do not guess.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Final

from gateway.choose.block_hash import ENGINES, OURS, EngineHasher, Hasher, low64, our_extra
from gateway.choose.block_index import GPU, BlockIndex, Changes
from gateway.choose.parked import Parked, ParkedBlock
from gateway.kv_cache import BlockEvent, BlockHash, BlocksRemoved, BlocksStored, Certainty
from gateway.vocabulary import Tokens

MOST_CHANGES: Final = 65_536
"""Kept for dispatches that wait to be settled; a few seconds of a fast engine."""

Instant = tuple[int, int]
"""An era, and how much had changed in it."""

ChainKey = tuple[Hasher, Tokens]
"""How blocks are named, and their size."""


class KvSource:
    """What one replica's events come to. O(1) per block."""

    __slots__ = (
        "_bridge", "_changes", "_copies", "_era", "_group", "_index", "_parked", "_salted",
        "_watching", "algorithm", "bit", "block_size", "certainty", "is_refused",
    )  # fmt: skip

    def __init__(self, index: BlockIndex) -> None:
        self._index = index
        self.bit = index.take()
        self.certainty = Certainty.SILENT
        self._changes: Changes | None = None  # kept only while somebody watches
        self._era = 0  # nobody can look back into another one
        self._watching = 0  # in this era
        self._forget_names()

    def __repr__(self) -> str:
        name = self.algorithm.name if self.algorithm else "bridged" if self._bridge else "unknown"
        return f"<KvSource {name}, {self.blocks} blocks, {self.certainty}>"

    @property
    def blocks(self) -> int:
        """Held, in all media."""
        return self._index.held(self.bit)

    @property
    def parked(self) -> int:
        """Blocks told of whose parents are not known yet."""
        return len(self._parked)

    @property
    def is_readable(self) -> bool:
        """Its blocks can be looked up: it publishes events, and we understand them."""
        is_told = self.certainty is not Certainty.SILENT and self.block_size is not None
        return is_told and not self.is_refused

    def key(self, salt: str | None, adapter: str | None) -> ChainKey | None:
        """How to name the blocks of such a prompt; None where it has told of no block yet."""
        if self.block_size is None:
            return None
        is_native = self.algorithm is not None and adapter is None
        if is_native and (salt is None or self._salted):
            assert self.algorithm is not None
            return self.algorithm, self.block_size
        return OURS, self.block_size

    def apply(self, events: Sequence[BlockEvent]) -> bool:
        """In the engine's order. True if its cache was cleared on the way."""
        was_cleared = False
        run: list[BlockHash] = []  # stored, and yet to be put into the index
        for event in events:
            if isinstance(event, BlocksStored):
                if self._goes_on(event):
                    run += event.hashes
                    continue
                self._put(run)
                self._stored(event)
            elif isinstance(event, BlocksRemoved):
                self._put(run)
                self._removed(event)
            else:
                run.clear()
                self._cleared()
                was_cleared = True
        self._put(run)
        if self._changes is not None and len(self._changes) > MOST_CHANGES:
            self._look_away()
        return was_cleared

    def watch(self) -> Instant:
        """This instant, to look back to with `since`. To be given back with `unwatch`."""
        if self._changes is None:
            self._changes = []
        self._watching += 1
        return self._era, len(self._changes)

    def unwatch(self, instant: Instant) -> None:
        """Nobody will look back to it any more."""
        if instant[0] == self._era:
            self._watching -= 1
            if not self._watching:
                self._look_away()

    def since(self, instant: Instant) -> dict[tuple[str, BlockHash], bool] | None:
        """What has changed since: was it there then? None where that was too long ago."""
        if self._changes is None or instant[0] != self._era:
            return None
        was: dict[tuple[str, BlockHash], bool] = {}
        for medium, block, was_there in self._changes[instant[1] :]:
            was.setdefault((medium, block), was_there)
        return was

    def prefix(self, blocks: Sequence[BlockHash], was: Mapping[tuple[str, BlockHash], bool]) -> int:
        """How many of the first `blocks` it held, one after another, before those changes."""
        media, holders = tuple(self._index.media), self._index.holders
        for at, block in enumerate(blocks):
            for medium in media:
                there = was.get((medium, block))
                if there or (there is None and holders(block, (medium,)) & self.bit):
                    break
            else:
                return at
        return len(blocks)

    def retold(self) -> None:
        """Everything will be told from the beginning, perhaps by another engine."""
        self._cleared()
        self._forget_names()

    def close(self) -> None:
        """The replica has left. Not to be used again."""
        self._look_away()
        self._index.leave(self.bit)

    def _forget_names(self) -> None:
        self.algorithm: EngineHasher | None = None
        self.block_size: Tokens | None = None
        self.is_refused = False
        self._salted = False  # the algorithm holds for salted blocks too
        self._group: int | None = None
        self._bridge: dict[BlockHash, BlockHash] = {}  # the engine's name: ours
        self._copies: dict[BlockHash, int] = {}  # of what is bridged, where above one
        self._parked = Parked()

    def _look_away(self) -> None:
        self._changes = None
        self._era += 1
        self._watching = 0

    def _cleared(self) -> None:
        self._index.leave(self.bit)
        self.bit = self._index.take()
        self._bridge.clear()
        self._copies.clear()
        self._parked.clear()
        self._look_away()

    def _stored(self, event: BlocksStored) -> None:
        if self.is_refused or not event.hashes:
            return
        if self._group is None:
            self._group = event.group
        elif event.group != self._group:
            self._cleared()
            self.is_refused = True
            return
        is_whole = len(event.tokens) == len(event.hashes) * event.block_size
        if is_whole and event.medium == GPU and self.block_size is None:
            self.block_size = event.block_size
        try:
            if self._is_native(event, is_whole):
                put = self._index.announce if event.parent is None else self._index.add
                put(self.bit, event.medium, event.hashes, self._changes)
            elif is_whole:
                self._bridged(event)
            elif not event.tokens:
                self._renamed(event)
        except (OverflowError, TypeError, ValueError):
            return  # these are no token ids

    def _goes_on(self, event: BlocksStored) -> bool:
        """Most events: there is nothing to them but native names in the GPU."""
        return (
            event.parent is not None
            and self.algorithm is not None
            and not self._bridge
            and not self.is_refused
            and event.group == self._group
            and event.medium == GPU
            and self.block_size is not None
        )

    def _put(self, run: list[BlockHash]) -> None:
        if run:
            self._index.add(self.bit, GPU, run, self._changes)
            run.clear()

    def _is_native(self, event: BlocksStored, is_whole: bool) -> bool:
        if event.parent is not None or not is_whole:
            return self.algorithm is not None and event.parent not in self._bridge
        extra = event.extra_keys[0] if event.extra_keys else None
        if event.adapter is not None:
            return False
        salt = None
        if extra:
            if not isinstance(extra, (list, tuple)) or len(extra) != 1:
                return False
            if not isinstance(extra[0], str):
                return False
            salt = extra[0]
        found = self._recognise(event, salt)
        if salt is not None:
            self._salted = found is not None
        elif found is not None and self.algorithm is None:
            self.algorithm = found
            for medium, blocks in self._parked.leave():
                self._index.add(self.bit, medium, blocks, self._changes)
        return found is not None and found is self.algorithm

    def _recognise(self, event: BlocksStored, salt: str | None) -> EngineHasher | None:
        first = event.tokens[: event.block_size]
        for each in (self.algorithm,) if self.algorithm else ENGINES:
            digest = each.digest(None, first, each.extra(salt, None, is_first=True))
            if low64(digest) == event.hashes[0]:
                return each
        return None

    def _bridged(self, event: BlocksStored) -> None:
        if event.parent is None:
            self._name(0, event)
        elif event.parent in self._bridge:
            self._name(self._bridge[event.parent], event)
        else:
            self._piecemeal(event)
        if self._parked:
            self._unpark(event.hashes)

    def _piecemeal(self, event: BlocksStored) -> None:
        """Its parent is not known; some of its blocks may be, from another copy."""
        parent, size = event.parent, event.block_size
        for at, engine_name in enumerate(event.hashes):
            tokens = event.tokens[at * size : (at + 1) * size]
            keys = event.extra_keys[at] if event.extra_keys else None
            name = self._bridge.get(engine_name)
            if name is None and parent in self._bridge:
                name = OURS.link(self._bridge[parent], tokens, _extra(event.adapter, keys))
            if name is not None:
                self._map(engine_name, name)
                self._index.add(self.bit, event.medium, (name,), self._changes)
            elif parent is not None:
                block = ParkedBlock(engine_name, parent, tokens, (event.adapter, keys))
                self._parked.put(block, event.medium)
            parent = engine_name

    def _name(self, above: BlockHash, event: BlocksStored) -> None:
        size, tokens, link = event.block_size, event.tokens, OURS.link
        is_plain = event.extra_keys is None and event.adapter is None
        told_again = self._known(event) if event.parent is None else ()
        names: list[BlockHash] = []
        for at, engine_name in enumerate(event.hashes):
            extra = None
            if not is_plain:
                keys = event.extra_keys[at] if event.extra_keys else None
                extra = _extra(event.adapter, keys)
            above = link(above, tokens[at * size : (at + 1) * size], extra)
            if engine_name not in told_again:
                self._map(engine_name, above)
                names.append(above)
        self._index.add(self.bit, event.medium, names, self._changes)

    def _known(self, event: BlocksStored) -> Container[BlockHash]:
        """Those that stand in that medium already."""
        bridge, holders, where = self._bridge, self._index.holders, (event.medium,)
        known = {
            each
            for each in event.hashes
            if each in bridge and holders(bridge[each], where) & self.bit
        }
        if self._parked:
            known |= {each for each in event.hashes if self._parked.holds(each, event.medium)}
        return known

    def _renamed(self, event: BlocksStored) -> None:
        """Another copy, told without tokens, of blocks whose names we know."""
        names: list[BlockHash] = []
        for engine_name in event.hashes:
            name = self._bridge.get(engine_name)
            if name is not None:
                self._map(engine_name, name)
                names.append(name)
        self._index.add(self.bit, event.medium, names, self._changes)

    def _map(self, engine_name: BlockHash, name: BlockHash) -> None:
        if engine_name in self._bridge:
            self._copies[engine_name] = self._copies.get(engine_name, 1) + 1
        else:
            self._bridge[engine_name] = name

    def _unpark(self, parents: Sequence[BlockHash]) -> None:
        known = [each for each in parents if each in self._bridge]
        while known:
            parent = known.pop()
            for block in self._parked.children(parent):
                name = OURS.link(self._bridge[parent], block.tokens, _extra(*block.keys))
                for medium in block.media:
                    self._map(block.name, name)
                    self._index.add(self.bit, medium, [name], self._changes)
                known.append(block.name)

    def _removed(self, event: BlocksRemoved) -> None:
        if self.is_refused:
            return
        if not self._bridge and not self._parked:
            self._index.remove(self.bit, event.medium, event.hashes, self._changes)
            return
        for engine_name in event.hashes:
            self._parked.remove(engine_name, event.medium)
            name = self._bridge.get(engine_name)
            if name is None:
                self._index.remove(self.bit, event.medium, (engine_name,), self._changes)
            elif self._index.holders(name, (event.medium,)) & self.bit:
                self._index.remove(self.bit, event.medium, (name,), self._changes)
                self._unmap(engine_name)

    def _unmap(self, engine_name: BlockHash) -> None:
        copies = self._copies.pop(engine_name, 1) - 1
        if not copies:
            del self._bridge[engine_name]
        elif copies > 1:
            self._copies[engine_name] = copies


def _extra(adapter: str | None, keys: object) -> object:
    """As `OURS` wants it: events list the adapter first among the keys, and by itself too."""
    rest = list(keys) if isinstance(keys, (list, tuple)) else []
    if adapter is not None and rest and rest[0] == adapter:
        del rest[0]
    return our_extra(adapter, rest)
