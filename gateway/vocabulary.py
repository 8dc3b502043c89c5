"""The nouns every room shares: ids, units, the parsed request, and what may be known of a replica.

Nothing here acts. A word used in code, metrics, settings and docs is defined once, here or in
docs/glossary.md, and means the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Final, NewType, Protocol

import msgspec

ReplicaId = NewType("ReplicaId", str)
Body = bytes | memoryview  # of a request: as it came, or where it lies in what was read
Buffer = bytes | memoryview | msgspec.Raw
ModelName = NewType("ModelName", str)
Seconds = float  # monotonic instants and durations; never wall time
Tokens = int


class Role(StrEnum):
    """What a replica does."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


class Outcome(StrEnum):
    """How a request ended. Exactly one per request."""

    FINISHED = "finished"
    REJECTED = "rejected"  # refused before it waited: the client's mistake, or no room
    EVICTED = "evicted"  # waited, and was removed unserved
    FAILED = "failed"
    CLIENT_GONE = "client_gone"


class Health(StrEnum):
    """What we believe about a replica; `gateway.fleet.health` holds the law."""

    JOINING = "joining"  # never yet seen healthy
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    EJECTED = "ejected"
    PROBING = "probing"  # its cool-down is over: one success brings it back
    ASLEEP = "asleep"  # its engine sleeps until it is woken
    DRAINING = "draining"  # finishes what it has, takes nothing new


class ServiceClass(StrEnum):
    """How urgent a tenant's work is: first come those who wait at a screen, last the batches."""

    INTERACTIVE = "interactive"
    DEFAULT = "default"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Tenant:
    """On whose account a request is served, and what is owed to it.

    Among those of its class it has service in proportion to `weight`. `ttft_objective_s` is when
    it hopes for the first byte, from a request's arrival; None: it has not said. `models` are those
    it may ask for; None: any.
    """

    name: str
    service_class: ServiceClass = ServiceClass.DEFAULT
    weight: float = 1.0
    ttft_objective_s: Seconds | None = None
    models: frozenset[ModelName] | None = None

    def may_use(self, model: ModelName) -> bool:
        """May it ask for this model?"""
        return self.models is None or model in self.models


TENANT: Final = "headrace.tenant"
"""Where a handler of the control app finds, in its scope, the Tenant whose request it has."""

ANYBODY: Final = Tenant("")
"""Whoever asks where nobody is asked who they are."""


class BodyKind(StrEnum):
    """How the body of a route is written."""

    JSON = "json"
    MULTIPART = "multipart"


@dataclass(frozen=True, slots=True)
class Route:
    """An inference route: its path, the field that carries the prompt, how its body is written."""

    path: str
    prompt_field: str
    body: BodyKind = BodyKind.JSON
    generates: bool = False  # may answer token by token


ROUTES: tuple[Route, ...] = (
    Route("/v1/chat/completions", "messages", generates=True),
    Route("/v1/completions", "prompt", generates=True),
    Route("/v1/responses", "input", generates=True),
    Route("/v1/messages", "messages", generates=True),
    Route("/v1/messages/count_tokens", "messages"),
    Route("/v1/embeddings", "input"),
    Route("/v1/rerank", "documents"),
    Route("/v2/rerank", "documents"),
    Route("/rerank", "documents"),
    Route("/v1/score", "text_2"),
    Route("/score", "text_2"),
    Route("/pooling", "input"),
    Route("/classify", "input"),
    Route("/tokenize", "prompt"),
    Route("/detokenize", "tokens"),
    Route("/v1/audio/transcriptions", "file", BodyKind.MULTIPART),
)


@dataclass(frozen=True, slots=True)
class EventSource:
    """Where an engine tells what its KV cache holds: ZeroMQ endpoints, `tcp://host:port`."""

    endpoint: str
    replay_endpoint: str | None = None
    topic: str = ""  # what it puts before its events begins with this

    def of_rank(self, rank: int) -> EventSource:
        """That of another rank, where this is rank 0's: ports count up."""
        replay = self.replay_endpoint
        return EventSource(
            _counted_up(self.endpoint, rank),
            None if replay is None else _counted_up(replay, rank),
            self.topic,
        )


def _counted_up(endpoint: str, by: int) -> str:
    before, _, port = endpoint.rpartition(":")
    return f"{before}:{int(port) + by}"


@dataclass(frozen=True)
class ReplicaAddress:
    """Where a replica answers, and what is known of it before it has been asked.

    `models` pins what it serves; empty means "ask it" (`GET /v1/models`), and `expected` is what it
    will serve once it can be asked, as far as is known. `kv_events` says where
    it tells of its cache; None means "ask it" (`GET /kv_event_sources`). `rank` is set where one
    URL is several replicas: data-parallel ranks, each with a cache and a load of its own.
    `is_awaited`: who runs it does not call it ready; it may answer, and is not sent anything yet.
    """

    url: str  # http://host:port or https://host:port, without a trailing slash
    models: tuple[ModelName, ...] = ()
    role: Role = Role.BOTH
    kv_events: EventSource | None = None
    rank: int | None = None
    expected: tuple[ModelName, ...] = ()
    is_awaited: bool = False

    @cached_property
    def fields(self) -> bytes:
        """The header lines that bring a request there: Host, and the rank where it is one."""
        host = b"host: %b\r\n" % self.url.split("://", 1)[1].encode()
        return host if self.rank is None else host + b"x-data-parallel-rank: %d\r\n" % self.rank

    @cached_property
    def id(self) -> ReplicaId:
        """Its name in metrics and logs: host:port, https://host:port where it speaks TLS, and
        host:port#rank where it is a rank.

        A port may pass from plain HTTP to TLS while leases on the old replica are still open: for
        that while the two are different replicas, and must not share a name.
        """
        name = self.url.removeprefix("http://")
        return ReplicaId(name if self.rank is None else f"{name}#{self.rank}")

    def ranks(self, size: int) -> tuple[ReplicaAddress, ...]:
        """The data-parallel ranks behind it, so many; itself where there is but one."""
        if size == 1:
            return (self,)
        events = self.kv_events
        return tuple(
            replace(self, rank=rank, kv_events=None if events is None else events.of_rank(rank))
            for rank in range(size)
        )


class ReplicaView(Protocol):
    """What a chooser may read of a replica. Read only: the fleet owns it and moves it by steps."""

    @property
    def id(self) -> ReplicaId: ...
    @property
    def address(self) -> ReplicaAddress: ...
    @property
    def role(self) -> Role: ...
    @property
    def health(self) -> Health: ...
    @property
    def inflight_requests(self) -> int:
        """Requests sent there that have not ended, by us and by the gateways we know of."""

    @property
    def inflight_prompt_tokens(self) -> Tokens:
        """Prompt tokens of those whose first byte has not come back: the prefill still owed."""


class Prediction(msgspec.Struct, frozen=True):
    """What a policy expects of one replica for one request; None where it does not think of it.

    `cost` is in the policy's own unit; `grade` says how it knows what the replica's cache holds.
    """

    replica: ReplicaId
    cost: float
    hit_tokens: Tokens | None = None
    wait_s: Seconds | None = None
    prefill_s: Seconds | None = None
    grade: str | None = None


class Decision(msgspec.Struct, frozen=True):
    """Why a request goes where it goes: what is expected there and of the next best, what decided
    between the two (a `choose.explain.Reason`), and out of how many it was chosen.

    `cost` is 0 where nothing was priced.
    """

    chosen: Prediction
    reason: str
    runner_up: Prediction | None
    candidates: int


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One served model, as its replica describes it: `parent` is set for a LoRA adapter."""

    id: ModelName
    parent: str | None = None
    root: str | None = None
    max_model_len: int | None = None
    created: int = 0
    owned_by: str = "vllm"
