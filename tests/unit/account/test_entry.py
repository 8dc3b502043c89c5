"""One entry per request: times by hand, exactly one end."""

from __future__ import annotations

import weakref

import pytest

from gateway.account.accounts import Accounts, Ending
from gateway.account.entry import Entry
from gateway.account.usage import NOTHING
from gateway.errors import (
    Bug,
    ClientGone,
    FirstByteTimedOut,
    GatewayError,
    InvalidRequest,
    ReplicaFailed,
    StreamBroken,
    TooManyRequests,
)
from gateway.request import Usage
from gateway.vocabulary import ModelName, Outcome, ReplicaId
from tests.builders import a_replica, a_request
from tests.conftest import ManualClock

ROUTE = "/v1/chat/completions"
R1 = ReplicaId("r1:8000")


class Scribe:
    """Keeps what was closed."""

    def __init__(self) -> None:
        self.written: list[tuple[Entry, float]] = []

    def write(self, entry: Entry, ended_at: float) -> None:
        self.written.append((entry, ended_at))


class Owed:
    """A lease that counts how often its prompt was read."""

    def __init__(self) -> None:
        self.times = 0

    def prefilled(self) -> None:
        self.times += 1


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


@pytest.fixture
def accounts(clock: ManualClock, scribe: Scribe) -> Accounts:
    return Accounts(clock, lambda model: model == "m", scribe)


def endings(accounts: Accounts) -> dict[Ending, int]:
    return dict(accounts.endings)


def test_a_stream_is_measured_from_received_to_each_mark(
    accounts: Accounts, clock: ManualClock, scribe: Scribe
) -> None:
    owed = Owed()
    with accounts.open(b"id", ROUTE, 1000.0) as entry:
        entry.parsed(a_request(stream=True))
        entry.dispatched(R1, owed, 1000.25)
        entry.first_byte(1001.0)
        entry.chunk(1001.5)
        entry.chunk(1003.0)
        entry.answered(200, Usage(10, 5, 4), None)
        clock.now = 1003.5
    assert (entry.queue_s, entry.ttft_s, entry.time_per_output_token_s) == (0.25, 1.0, 0.5)
    assert (entry.chunks, entry.attempts, entry.outcome, entry.reason) == (3, 1, "finished", "")
    assert owed.times == 1
    meters = accounts.by_model[ModelName("m")]
    assert (meters.queue_s.total, meters.ttft_s.total, meters.duration_s.total) == (0.25, 1.0, 3.5)
    assert (meters.inter_token_s.total, sum(meters.inter_token_s.counts)) == (2.0, 2)
    assert meters.time_per_output_token_s.total == 0.5
    assert (meters.prompt_tokens, meters.output_tokens, meters.cached_tokens) == (10, 5, 4)
    assert scribe.written == [(entry, 1003.5)]


def test_a_unary_response_has_no_first_token_and_no_gaps(accounts: Accounts) -> None:
    with accounts.open(b"id", ROUTE, 1000.0) as entry:
        entry.parsed(a_request(stream=False))
        entry.dispatched(R1, Owed(), 1000.0)
        entry.first_byte(1001.0)
        entry.chunk(1002.0)
        entry.answered(200, Usage(10, 5, None), None)
    assert (entry.ttft_s, entry.time_per_output_token_s, entry.chunks) == (None, None, 2)
    meters = accounts.by_model[ModelName("m")]
    assert not sum(meters.ttft_s.counts)
    assert not sum(meters.inter_token_s.counts)
    assert sum(meters.duration_s.counts) == 1


@pytest.mark.parametrize("tokens", [None, 0, 1])
def test_time_per_output_token_needs_two_tokens(accounts: Accounts, tokens: int | None) -> None:
    with accounts.open(b"id", ROUTE, 1000.0) as entry:
        entry.parsed(a_request(stream=True))
        entry.dispatched(R1, Owed(), 1000.0)
        entry.first_byte(1001.0)
        entry.chunk(1002.0)
        entry.answered(200, Usage(10, tokens, None), None)
    assert (entry.ttft_s, entry.time_per_output_token_s) == (1.0, None)


@pytest.mark.parametrize(("status", "error"), [(429, None), (500, ReplicaFailed())])
def test_an_error_in_place_of_a_stream_is_not_a_first_token(
    accounts: Accounts, status: int, error: GatewayError | None
) -> None:
    with accounts.open(b"id", ROUTE, 1000.0) as entry:
        entry.parsed(a_request(stream=True))
        entry.dispatched(R1, Owed(), 1000.0)
        entry.first_byte(1000.1)
        entry.answered(status, NOTHING, error)
    assert entry.ttft_s is None
    assert entry.status == status
    assert not sum(accounts.by_model[ModelName("m")].ttft_s.counts)


def test_a_stream_that_broke_had_its_first_token(accounts: Accounts) -> None:
    with accounts.open(b"id", ROUTE, 1000.0) as entry:
        entry.parsed(a_request(stream=True))
        entry.dispatched(R1, Owed(), 1000.0)
        entry.first_byte(1001.0)
        entry.failed(StreamBroken())
    assert (entry.ttft_s, entry.status, entry.reason) == (1.0, 502, "stream_broken")


def test_queue_time_ends_at_the_first_dispatch_and_the_last_replica_is_named(
    accounts: Accounts,
) -> None:
    first, second = Owed(), Owed()
    with accounts.open(b"id", ROUTE, 1000.0) as entry:
        entry.parsed(a_request(stream=True))
        entry.dispatched(R1, first, 1001.0)
        entry.dispatched(ReplicaId("r2:8000"), second, 1005.0)
        entry.first_byte(1006.0)
        entry.answered(200, NOTHING, None)
    assert (entry.queue_s, entry.attempts, entry.replica) == (1.0, 2, "r2:8000")
    assert (first.times, second.times) == (0, 1)


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [
        (InvalidRequest(), Outcome.REJECTED, 400),
        (TooManyRequests(), Outcome.REJECTED, 503),
        (FirstByteTimedOut(), Outcome.FAILED, 504),
        (ClientGone(), Outcome.CLIENT_GONE, 499),
        (Bug(), Outcome.FAILED, 500),
    ],
    ids=lambda value: value.reason if isinstance(value, GatewayError) else "",
)
def test_an_error_ends_an_entry_in_its_own_way(
    accounts: Accounts, error: GatewayError, outcome: Outcome, status: int
) -> None:
    with accounts.open(b"id", ROUTE, 1000.0) as entry:
        entry.failed(error)
    assert (entry.outcome, entry.status, entry.reason) == (outcome, status, error.reason)
    assert endings(accounts) == {Ending(ROUTE, "", outcome.value, error.reason): 1}


def test_the_first_end_is_the_one_that_counts(accounts: Accounts) -> None:
    with accounts.open(b"id", ROUTE, 1000.0) as entry:
        entry.parsed(a_request())
        entry.answered(200, NOTHING, None)
        entry.failed(ClientGone())
    assert accounts.outcomes() == {Outcome.FINISHED: 1}
    assert (entry.status, entry.reason) == (200, "")


def test_a_block_left_by_an_exception_closes_its_entry(accounts: Accounts, scribe: Scribe) -> None:
    with pytest.raises(ZeroDivisionError), accounts.open(b"id", ROUTE, 1000.0):
        raise ZeroDivisionError
    with pytest.raises(StreamBroken), accounts.open(b"id", ROUTE, 1000.0):
        raise StreamBroken
    assert [entry.reason for entry, _ in scribe.written] == ["bug", "stream_broken"]
    assert (accounts.received, accounts.open_entries) == (2, 0)


def test_a_block_left_without_a_word_is_a_bug_of_ours(accounts: Accounts) -> None:
    with accounts.open(b"id", ROUTE, 1000.0):
        pass
    assert endings(accounts) == {Ending(ROUTE, "", "failed", "bug"): 1}


def test_a_model_that_nobody_serves_is_no_label(accounts: Accounts) -> None:
    for model in ("m", "made-up", "another"):
        with accounts.open(b"id", ROUTE, 1000.0) as entry:
            entry.parsed(a_request(model))
            entry.failed(InvalidRequest())
    assert {ending.model for ending in accounts.endings} == {"m", ""}
    assert not accounts.by_model


def test_a_replica_that_left_leaves_no_series(accounts: Accounts) -> None:
    accounts.attempted(R1, "ok")
    accounts.attempted(R1, "connect_failed")
    accounts.attempted(a_replica("r2").id, "ok")
    accounts.forget(R1)
    assert dict(accounts.attempts) == {("r2:8000", "ok"): 1}


def test_nobody_refers_to_what_is_on_the_way_weakly(accounts: Accounts) -> None:
    """Compiled, that is told apart from a crash by `setup.py` alone."""
    entry = accounts.open(b"id", ROUTE, 1000.0)
    for each in (entry, a_replica().lease(1)):
        with pytest.raises(TypeError, match="weak reference"):
            weakref.ref(each)
