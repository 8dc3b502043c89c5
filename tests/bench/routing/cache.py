"""What one replica's prefix cache holds: blocks, the least recently used dropped first.

Asked how much of a prompt is held (`match`), and told what has been computed (`keep`). A block's id
stands for the whole prefix that ends with it, as in the published traces.

Invariants. Never more than `capacity` blocks. Of one prompt the tail is dropped before the head, so
what is held of it is a prefix, as long as no more than its own blocks were dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

BLOCK_TOKENS: Final = 512


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request. In an open loop it comes at `at_s`, whatever became of those before it.

    In a closed loop it comes `think_s` after the end of number `after`; `at_s` is then only when it
    would come if nothing were ever late. `session` is what its client calls its conversation.
    """

    number: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    session: int | None = None
    after: int | None = None
    think_s: float = 0.0


def leading(blocks: Iterable[int], *held: Container[int]) -> int:
    """How many of the leading blocks stand in at least one of `held`. Stops at the first gap."""
    count = 0
    for block in blocks:
        if not any(block in each for each in held):
            break
        count += 1
    return count


def hit_tokens(blocks: int, prompt_tokens: int) -> int:
    """Tokens that need no prefill; an engine always computes the last token of a prompt."""
    return min(blocks * BLOCK_TOKENS, prompt_tokens - 1)


Heard = Callable[[Sequence[int], Sequence[int], Sequence[int]], None]
"""A prompt's blocks, which of them (by place) were not there, and the blocks that were dropped."""


class BlockCache:
    """The blocks one replica holds, least recently used first."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a cache holds at least one block")
        self.capacity = capacity
        self.listener: Heard | None = None
        self.held: OrderedDict[int, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<BlockCache {len(self.held)} of {self.capacity} blocks>"

    def match(self, blocks: Sequence[int]) -> int:
        """Leading blocks held; uses none of them."""
        return leading(blocks, self.held)

    def keep(self, blocks: Sequence[int]) -> None:
        """Use or store every block, head most recent; drop what no longer fits. O(blocks)."""
        held, listener = self.held, self.listener
        fresh = [at for at, block in enumerate(blocks) if block not in held] if listener else []
        for block in reversed(blocks):
            held[block] = None
            held.move_to_end(block)
        dropped = []
        while len(held) > self.capacity:
            dropped.append(held.popitem(last=False)[0])
        if listener is not None and (fresh or dropped):
            listener(blocks, fresh, dropped)


def ideal_hit_tokens(arrivals: Iterable[Arrival]) -> list[int]:
    """Hits, request by request, of one cache without bound that all replicas share."""
    seen: set[int] = set()
    hits = []
    for each in arrivals:
        hits.append(hit_tokens(leading(each.blocks, seen), each.prompt_tokens))
        seen.update(each.blocks)
    return hits
