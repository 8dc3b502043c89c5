"""A `kv_cache.BlockListener` that remembers what it was told, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gateway.kv_cache import (
    BlockEvent,
    BlockHash,
    BlocksRemoved,
    BlocksStored,
    Certainty,
    EngineFacts,
)
from gateway.vocabulary import ReplicaId


class Hearing:
    """What every replica was heard to hold, block by block."""

    def __init__(self) -> None:
        self.facts: dict[ReplicaId, EngineFacts] = {}
        self.said: dict[ReplicaId, list[Certainty]] = {}
        self.held: dict[ReplicaId, Counter[BlockHash]] = {}
        self.retold_times: Counter[ReplicaId] = Counter()

    def __repr__(self) -> str:
        return f"<Hearing of {', '.join(self.held)}>"

    def described(self, replica: ReplicaId, facts: EngineFacts) -> None:
        """Keep it."""
        self.facts[replica] = facts

    def apply(self, replica: ReplicaId, events: Sequence[BlockEvent]) -> None:
        """Count blocks up and down."""
        held = self.held.setdefault(replica, Counter())
        for event in events:
            if isinstance(event, BlocksStored):
                held.update(event.hashes)
            elif isinstance(event, BlocksRemoved):
                held.subtract(event.hashes)
            else:
                held.clear()

    def retold(self, replica: ReplicaId) -> None:
        """Forget its blocks."""
        self.held[replica] = Counter()
        self.retold_times[replica] += 1

    def certainty(self, replica: ReplicaId, certainty: Certainty) -> None:
        """Keep it."""
        self.said.setdefault(replica, []).append(certainty)

    def holds(self, replica: ReplicaId) -> set[BlockHash]:
        """The blocks there now."""
        return set(+self.held.get(replica, Counter()))

    def certain(self, replica: ReplicaId) -> Certainty | None:
        """What was said last."""
        said = self.said.get(replica)
        return said[-1] if said else None
