"""The nouns of KV caches: what an engine is, what it reads, and what it tells of its blocks.

Asked by the rooms that listen to engines (`fleet`), that remember what caches hold (`choose`) and
that turn prompts into tokens (`tokens`): they share these words and no code. Blocks are named by 64
bits, however long an engine's own digest is: the low bits, as engines publish them by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from gateway.vocabulary import ReplicaId, Tokens

BlockHash = int  # 64 bits


class Certainty(StrEnum):
    """How far the events heard from a replica tell its whole cache."""

    EXACT = "exact"  # every event since its start, or since its cache was cleared
    PARTIAL = "partial"  # all that is still told, but the oldest events are no longer kept
    DEGRADED = "degraded"  # some were missed and cannot be had again
    SILENT = "silent"  # it publishes none, or they cannot be read


class EngineFacts(msgspec.Struct, frozen=True):
    """What a replica says of its engine; None where it does not say.

    `cache_tokens` is the size of its KV cache, `block_size` that of the blocks its prefix cache is
    kept in, both in tokens. Degrees of parallelism are those of `system_fingerprint`.
    """

    version: str | None = None
    block_size: Tokens | None = None
    cache_tokens: Tokens | None = None
    prefix_caching: bool | None = None
    hash_algorithm: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None


class Tokenised(msgspec.Struct, frozen=True):
    """A prompt as an engine will read it.

    `edges` are pairs (bytes of `GenerationRequest.prompt`, tokens), both ascending: a prompt of the
    same model and context that begins with these bytes begins with this many of these tokens,
    whatever comes after. `salt` and `adapter` go into the names of its blocks.
    """

    tokens: Sequence[int]
    edges: Sequence[tuple[int, Tokens]]
    salt: str | None = None
    adapter: str | None = None


class Reading:
    """A prompt that is read before it is sent: what is known of its tokens by now.

    Invariant: whoever waits is told once, when no more will be known.
    """

    __slots__ = ("__weakref__", "_is_over", "_waiting", "tokenised")

    def __init__(self) -> None:
        self.tokenised: Tokenised | None = None
        """Perhaps still without the edges inside the prompt."""
        self._is_over = False
        self._waiting: list[Callable[[Tokenised | None], None]] = []

    def __repr__(self) -> str:
        return f"<Reading {'over' if self._is_over else 'on its way'}>"

    def early(self, tokenised: Tokenised) -> None:
        """These are its tokens; more will be known of them."""
        self.tokenised = tokenised

    def end(self, tokenised: Tokenised | None) -> None:
        """This is all that will be known; None where it cannot be read."""
        self.tokenised = tokenised
        self._is_over = True
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then(tokenised)

    def when_over(self, then: Callable[[Tokenised | None], None]) -> None:
        """At once, if it is over."""
        if self._is_over:
            then(self.tokenised)
        else:
            self._waiting.append(then)


class Placement(msgspec.Struct, frozen=True, array_like=True):
    """A prompt has been sent to a replica, as gateways tell each other before its engine does.

    `marks` are the hashes of its beginnings, 8 bytes each, of a kind that all gateways share. It is
    told again once it `is_over`, and whether it `was_read` there, and then named by its last mark.
    `fresh_from` is the first of its marks that its gateway took to be new to the replica, `gateway`
    the number of that among all.
    """

    replica: str
    tokens_per_byte: float
    marks: bytes
    is_over: bool = False
    was_read: bool = True
    fresh_from: int = 0
    gateway: int = 0


class BlocksStored(msgspec.Struct, frozen=True):
    """These blocks are now in the cache, one after another in a prompt.

    `parent` is the block before the first, None at the beginning of a prompt. `tokens` are all
    their token ids, or empty where the engine does not tell them. `extra_keys` has an entry for
    each block, or is None where no block has any: what its hash depends on beside tokens (salt,
    adapter, images). `session` is that of the request they were told for, where it is known.
    """

    hashes: Sequence[BlockHash]
    parent: BlockHash | None
    tokens: Sequence[int]
    block_size: Tokens
    medium: str = "GPU"
    group: int = 0
    adapter: str | None = None
    extra_keys: Sequence[object] | None = None
    session: str | None = None


class BlocksRemoved(msgspec.Struct, frozen=True):
    """These blocks are no longer in that medium; each stood there once less."""

    hashes: Sequence[BlockHash]
    medium: str = "GPU"
    group: int = 0


class BlocksCleared(msgspec.Struct, frozen=True):
    """Nothing is in the cache any more, in any medium."""


BlockEvent = BlocksStored | BlocksRemoved | BlocksCleared


class BlockListener(Protocol):
    """Is told what the caches hold, synchronously and in the order of the engine's events.

    A data-parallel rank with a cache of its own is a replica of its own.
    """

    def described(self, replica: ReplicaId, facts: EngineFacts) -> None:
        """What its engine is; told again whenever that changes."""

    def apply(self, replica: ReplicaId, events: Sequence[BlockEvent]) -> None:
        """The events of one or more batches."""

    def retold(self, replica: ReplicaId) -> None:
        """It has started anew, or everything will be told from the beginning: forget its blocks."""

    def certainty(self, replica: ReplicaId, certainty: Certainty) -> None:
        """How far what was told can be trusted from now on."""
