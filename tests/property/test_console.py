"""What watchers of the console are told: sums are the owners', whatever they hold."""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.account.meters import ModelMeters
from gateway.console.recent import DECISIONS, FAMILIES, FAMILY_MARK, Recent
from gateway.console.snapshot import MOST_FAMILIES, MOST_TENANTS, Load, snapshot, without_names
from gateway.demand import Demand
from gateway.fleet.ledger import Replica
from gateway.hold.fair_queue import Ticket
from gateway.kv_cache import EngineFacts
from gateway.vocabulary import (
    Decision,
    Health,
    ModelName,
    Outcome,
    Prediction,
    ReplicaId,
    ServiceClass,
    Tenant,
)
from tests.builders import a_replica, a_request

NOW = 1000.0
counts = st.integers(0, 2**40)
times = st.floats(0, NOW)
tenants = st.builds(
    Tenant, st.sampled_from([f"tenant-{n}" for n in range(80)]), st.sampled_from(ServiceClass)
)
tickets = st.lists(st.builds(Ticket, tenants, times, counts), max_size=120)
costs = st.floats(allow_nan=True, allow_infinity=True)
predictions = st.builds(
    Prediction,
    st.sampled_from([ReplicaId(f"r{n}:8000") for n in range(70)]),
    costs,
    st.none() | counts,
    st.none() | costs,
    st.none() | costs,
    st.none() | st.just("exact"),
)
decisions = st.lists(
    st.builds(Decision, predictions, st.just("cost"), st.none() | predictions, counts),
    max_size=2 * DECISIONS,
)
prompts = st.lists(
    st.tuples(st.lists(st.integers(0, 5), max_size=8), st.floats(0, 10)), max_size=60
)


def replicas() -> st.SearchStrategy[list[Replica]]:
    one = st.builds(
        a_replica,
        health=st.sampled_from(Health),
        requests=counts,
        prompt_tokens=counts,
        models=st.lists(st.sampled_from("abc"), max_size=3),
    )
    return st.lists(one, max_size=64)


def meters_of(waits: list[float]) -> ModelMeters:
    made = ModelMeters()
    for wait in waits:
        made.ttft_s.observe(wait)
        made.inter_token_s.observe(wait / 10)
    made.output_tokens = len(waits)
    return made


class Held:
    """An `Owners` of what a test has drawn."""

    worker = None
    is_draining = False
    received = 7
    open_requests = 3

    def __init__(
        self, replicas: list[Replica], waiting: list[Ticket], meters: dict[ModelName, ModelMeters]
    ) -> None:
        self._replicas = replicas
        self._waiting = waiting
        self._meters = meters

    def now(self) -> float:
        return NOW

    def outcomes(self) -> dict[Outcome, int]:
        return {Outcome.FINISHED: 4}

    def replicas(self) -> list[Replica]:
        return self._replicas

    def load(self, replica: ReplicaId) -> Load:
        return Load(waiting=1)

    def waiting(self) -> list[Ticket]:
        return self._waiting

    def models(self) -> list[ModelName]:
        return list(self._meters)

    def demand(self, model: ModelName) -> Demand:
        return Demand(model)

    def meters(self) -> dict[ModelName, ModelMeters]:
        return self._meters

    def spread(self, hashes: list[int]) -> dict[ReplicaId, int]:
        return {self._replicas[0].id: len(hashes)} if self._replicas else {}


@given(
    replicas(),
    tickets,
    st.dictionaries(st.sampled_from([ModelName(n) for n in "abc"]), st.lists(st.floats(0, 900))),
    decisions,
    prompts,
)
def test_sums_are_the_owners_and_it_can_always_be_told(
    fleet: list[Replica],
    waiting: list[Ticket],
    waits: dict[ModelName, list[float]],
    made: list[Decision],
    sent: list[tuple[list[int], float]],
) -> None:
    fleet = list({each.id: each for each in fleet}.values())
    for each in fleet:
        each.facts = EngineFacts(tensor_parallel=2)
    recent = Recent()
    for decision in made:
        recent.chosen(a_request(), decision, NOW)
    for hashes, at in sent:
        recent.sent(a_request(), hashes, at)
    meters = {model: meters_of(each) for model, each in waits.items()}
    whole = snapshot(Held(fleet, waiting, meters), recent, 1)

    assert sum(row.inflight for row in whole.replicas) == sum(r.inflight_requests for r in fleet)
    by_class = Counter(ticket.tenant.service_class.value for ticket in waiting)
    shown = without_names(whole)
    for rows in (whole.waiting, shown.waiting):
        found: Counter[str] = Counter()
        for row in rows:
            found[row.service_class] += row.requests
        assert found == by_class
        assert sum(row.tokens for row in rows) == sum(ticket.uncached for ticket in waiting)
        oldest = max((NOW - ticket.since for ticket in waiting), default=0.0)
        assert max((row.oldest_s for row in rows), default=0.0) == oldest
    assert len(whole.waiting) <= MOST_TENANTS + len(ServiceClass)
    assert len(shown.waiting) <= len(ServiceClass)
    for told, (model, measured) in zip(whole.meters, meters.items(), strict=True):
        assert (told.model, told.ttft_s.counts) == (model, measured.ttft_s.counts)
        assert sum(told.inter_token_s.counts) == len(waits[model])
        assert len(told.ttft_s.counts) == len(told.ttft_s.bounds) + 1
    assert [row.decision for row in whole.decisions] == made[-DECISIONS:]
    assert all(len(row.held) == len(fleet) for row in whole.families)
    assert len(whole.families) <= MOST_FAMILIES
    for document in (msgspec.json.encode(whole), msgspec.json.encode(shown)):
        msgspec.json.decode(document)
    assert b"tenant-" not in msgspec.json.encode(shown)


@given(prompts)
def test_families_are_those_that_begin_alike(sent: list[tuple[list[int], float]]) -> None:
    recent = Recent()
    model: Counter[int] = Counter()
    for hashes, at in sent:
        recent.sent(a_request(), hashes, at)
        if hashes:
            model[hashes[min(FAMILY_MARK, len(hashes) - 1)]] += 1
    found = recent.hottest(FAMILIES, NOW)
    assert sorted(each.requests for each in found) == sorted(model.values())
    assert [each.number for each in found] == sorted(each.number for each in found)
    recent.clear()
    assert not recent.hottest(FAMILIES, NOW)


def test_what_is_remembered_is_bounded_and_what_is_asked_for_stays() -> None:
    recent = Recent()
    for mark in range(1, 3 * FAMILIES):
        recent.sent(a_request(), [mark], NOW)
        recent.sent(a_request(), [0], NOW)
    found = [family.hashes[0] for family in recent.hottest(10_000, NOW)]
    assert found == [0, *range(3 * FAMILIES - FAMILIES + 1, 3 * FAMILIES)]
    assert recent.hottest(1, NOW)[0].requests == 3 * FAMILIES - 1
