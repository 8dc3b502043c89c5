"""What the owners of state know, as one struct: what the page is told. Pure.

Invariants. Nothing of a prompt, an answer or a key is in it. Sums are the owners' own: in flight by
replica, waiting by class and tenant, histograms by model. Reading changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from gateway.console.recent import Decided, Recent
from gateway.demand import Demand
from gateway.kv_cache import EngineFacts
from gateway.vocabulary import (
    Decision,
    ModelName,
    Outcome,
    ReplicaId,
    ReplicaView,
    Seconds,
    Tenant,
    Tokens,
)

if TYPE_CHECKING:
    pass


MOST_FAMILIES: Final = 16
MOST_TENANTS: Final = 50
"""Rows of those who wait; the rest are added up in one without a name."""

UNNAMED: Final = ""


class Load(msgspec.Struct, frozen=True):
    """What is known of one replica beside its ledger: who waits for it, the room in its KV cache
    that running requests are believed to take, what that cache holds, how well that is known, and
    the prompt tokens it reads a second; None: unknown."""

    waiting: int = 0
    used_tokens: Tokens = 0
    held_tokens: Tokens = 0
    grade: str | None = None
    tokens_per_s: float | None = None


class Member(ReplicaView, Protocol):
    """A replica of the fleet."""

    @property
    def models(self) -> Collection[ModelName]: ...
    @property
    def facts(self) -> EngineFacts: ...
    @property
    def own_requests(self) -> int: ...


class Waiting(Protocol):
    """A request that waits for its turn."""

    @property
    def tenant(self) -> Tenant: ...
    @property
    def since(self) -> Seconds: ...
    @property
    def uncached(self) -> Tokens: ...


class Histogram(Protocol):
    """Observations by upper bound, and above all bounds."""

    @property
    def bounds(self) -> Sequence[float]: ...
    @property
    def counts(self) -> Sequence[int]: ...


class Meters(Protocol):
    """What is measured of a model."""

    @property
    def ttft_s(self) -> Histogram: ...
    @property
    def inter_token_s(self) -> Histogram: ...
    @property
    def prompt_tokens(self) -> Tokens: ...
    @property
    def cached_tokens(self) -> Tokens: ...
    @property
    def output_tokens(self) -> Tokens: ...


class Owners(Protocol):
    """Who is asked."""

    def now(self) -> Seconds: ...
    @property
    def worker(self) -> tuple[int, int] | None:
        """Which worker of how many we are, from 1; None: there is one process."""

    @property
    def is_draining(self) -> bool: ...
    @property
    def received(self) -> int: ...
    @property
    def open_requests(self) -> int: ...
    def outcomes(self) -> Mapping[Outcome, int]: ...
    def replicas(self) -> Sequence[Member]: ...
    def load(self, replica: ReplicaId) -> Load: ...
    def waiting(self) -> Iterable[Waiting]: ...
    def models(self) -> Collection[ModelName]: ...
    def demand(self, model: ModelName) -> Demand: ...
    def meters(self) -> Mapping[ModelName, Meters]: ...
    def spread(self, hashes: list[int]) -> Mapping[ReplicaId, Tokens]:
        """How much of a prompt with these beginnings each cache holds; who holds none is left out,
        and all are where the policy does not think of caches."""


# What is told. Times are durations in seconds, `_ago_s` before the snapshot.


class ReplicaRow(msgspec.Struct, frozen=True):
    """One replica; `inflight` is of all gateways, `own` of them ours."""

    id: ReplicaId
    models: list[ModelName]
    role: str
    health: str
    engine: EngineFacts
    inflight: int
    own: int
    prompt_tokens: Tokens
    load: Load


class WaitingRow(msgspec.Struct, frozen=True):
    """Those of one class and tenant who wait for their turn."""

    service_class: str
    tenant: str
    requests: int
    tokens: Tokens
    oldest_s: Seconds


class Distribution(msgspec.Struct, frozen=True):
    """A histogram since the start: `counts` has one more than `bounds`."""

    bounds: Sequence[float]
    counts: list[int]


class MetersRow(msgspec.Struct, frozen=True):
    """What was measured of a model since the start."""

    model: ModelName
    ttft_s: Distribution
    inter_token_s: Distribution
    prompt_tokens: Tokens
    cached_tokens: Tokens
    output_tokens: Tokens


class FamilyRow(msgspec.Struct, frozen=True):
    """Prompts that begin alike: how much of the last one each replica holds, in their order."""

    number: int
    model: ModelName
    prompt_tokens: Tokens
    requests: int
    last_ago_s: Seconds
    held: list[Tokens]


class DecisionRow(msgspec.Struct, frozen=True):
    """Where a request was sent, and why there (a `vocabulary.Decision`)."""

    number: int
    ago_s: Seconds
    model: ModelName
    tenant: str
    prompt_tokens: Tokens
    decision: Decision


class Snapshot(msgspec.Struct, frozen=True):
    """One second of a gateway, or of one worker of it."""

    number: int
    at: Seconds
    worker: tuple[int, int] | None
    is_draining: bool
    names_tenants: bool
    received: int
    open_requests: int
    outcomes: Mapping[Outcome, int]
    replicas: list[ReplicaRow]
    waiting: list[WaitingRow]
    demand: list[Demand]
    meters: list[MetersRow]
    families: list[FamilyRow]
    decisions: list[DecisionRow]


def snapshot(owners: Owners, recent: Recent, number: int) -> Snapshot:
    """All of it, tenants named. O(replicas x (1 + MOST_FAMILIES) + waiting + models)."""
    now = owners.now()
    replicas = owners.replicas()
    return Snapshot(
        number=number,
        at=now,
        worker=owners.worker,
        is_draining=owners.is_draining,
        names_tenants=True,
        received=owners.received,
        open_requests=owners.open_requests,
        outcomes=owners.outcomes(),
        replicas=[_replica(each, owners) for each in replicas],
        waiting=_waiting(owners.waiting(), now),
        demand=[owners.demand(model) for model in owners.models()],
        meters=[_meters(model, meters) for model, meters in owners.meters().items()],
        families=_families(owners, recent, [each.id for each in replicas], now),
        decisions=[_decision(each, now) for each in recent.decisions],
    )


def without_names(whole: Snapshot) -> Snapshot:
    """The same for those who are not to know tenants: the rows of a class are one."""
    by_class: dict[str, WaitingRow] = {}
    for row in whole.waiting:
        sums = by_class.get(row.service_class)
        by_class[row.service_class] = _together(row, sums)
    return msgspec.structs.replace(
        whole,
        names_tenants=False,
        waiting=list(by_class.values()),
        decisions=[msgspec.structs.replace(each, tenant=UNNAMED) for each in whole.decisions],
    )


def _replica(replica: Member, owners: Owners) -> ReplicaRow:
    return ReplicaRow(
        id=replica.id,
        models=sorted(replica.models),
        role=replica.role,
        health=replica.health,
        engine=replica.facts,
        inflight=replica.inflight_requests,
        own=replica.own_requests,
        prompt_tokens=replica.inflight_prompt_tokens,
        load=owners.load(replica.id),
    )


def _waiting(waiting: Iterable[Waiting], now: Seconds) -> list[WaitingRow]:
    """By class and tenant, most first."""
    sums: dict[tuple[str, str], list[float]] = {}
    for each in waiting:
        of = sums.setdefault((each.tenant.service_class, each.tenant.name), [0, 0, now])
        of[0] += 1
        of[1] += each.uncached
        of[2] = min(of[2], each.since)
    made = [
        WaitingRow(service_class, tenant, int(requests), int(tokens), now - since)
        for (service_class, tenant), (requests, tokens, since) in sums.items()
    ]
    made.sort(key=lambda row: row.requests, reverse=True)
    others: dict[str, WaitingRow] = {}
    for row in made[MOST_TENANTS:]:
        others[row.service_class] = _together(row, others.get(row.service_class))
    return [*made[:MOST_TENANTS], *others.values()]


def _together(row: WaitingRow, sums: WaitingRow | None) -> WaitingRow:
    """One more of a class, under no name."""
    return WaitingRow(
        row.service_class,
        UNNAMED,
        row.requests + (sums.requests if sums else 0),
        row.tokens + (sums.tokens if sums else 0),
        max(row.oldest_s, sums.oldest_s if sums else 0.0),
    )


def _meters(model: ModelName, meters: Meters) -> MetersRow:
    ttft_s, inter_token_s = meters.ttft_s, meters.inter_token_s
    return MetersRow(
        model,
        Distribution(ttft_s.bounds, list(ttft_s.counts)),
        Distribution(inter_token_s.bounds, list(inter_token_s.counts)),
        meters.prompt_tokens,
        meters.cached_tokens,
        meters.output_tokens,
    )


def _families(
    owners: Owners, recent: Recent, replicas: Sequence[ReplicaId], now: Seconds
) -> list[FamilyRow]:
    rows = []
    for family in recent.hottest(MOST_FAMILIES, now):
        spread = owners.spread(family.hashes)
        rows.append(
            FamilyRow(
                family.number,
                family.model,
                family.prompt_tokens,
                family.requests,
                now - family.last_at,
                [spread.get(each, 0) for each in replicas],
            )
        )
    return rows


def _decision(made: Decided, now: Seconds) -> DecisionRow:
    return DecisionRow(
        made.number, now - made.at, made.model, made.tenant, made.prompt_tokens, made.decision
    )
