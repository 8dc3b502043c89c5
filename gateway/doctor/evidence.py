"""What an examination of one replica saw; None throughout where it was not to be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.vocabulary import Seconds, Tokens


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompt that was sent twice, and what its two answers said."""

    status: int
    """Of the second answer, or of the first where that was a refusal."""
    prompt_tokens: Tokens | None = None
    cached_first: Tokens | None = None
    cached_second: Tokens | None = None
    fingerprint: str | None = None
    wrong: str | None = None
    """Why there was no answer to read."""


@dataclass(frozen=True, slots=True)
class Published:
    """The KV-cache events that came while the prompt was read."""

    batches: int = 0
    block_size: Tokens | None = None
    chain: Sequence[int] = ()
    """Names of the blocks stored, 64 bits each, in order."""
    has_groups: bool = False
    """More than one group of layers keeps blocks of its own."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """The answer to a request for past events."""

    batches: int = 0
    is_ended: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """Where a data-parallel rank of a replica says it publishes."""

    rank: int
    endpoint: str
    replay_endpoint: str | None
    topic: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    """The prompt as tokens: by the engine, and by us with the model's own files."""

    engine: Sequence[int] | None = None
    ours: Sequence[int] | None = None
    wrong: str | None = None
    """Why one of them is missing."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was seen of one replica."""

    url: str
    unreachable: str | None = None
    """Why nothing else could be asked."""
    version: str | None = None
    models: tuple[str, ...] = ()
    generates: bool = True
    clock_off_s: Seconds | None = None
    """The Date of its answers, less the clock here."""
    prefix_caching: bool | None = None
    hash_algorithm: str | None = None
    block_size: Tokens | None = None
    blocks: int | None = None
    sources: tuple[Source, ...] | None = None
    """None: it cannot be asked where its events are."""
    asked: Asked | None = None
    published: Published | None = None
    replayed: Replayed | None = None
    read: Read = field(default_factory=Read)
    chains: dict[str, Sequence[int]] = field(default_factory=dict)
    """What the blocks of the prompt should be called, by hash algorithm."""
