"""Conservation: received = finished + rejected + evicted + failed + client gone + open."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.account.accounts import Accounts
from gateway.account.entry import Entry
from gateway.errors import (
    Bug,
    ClientGone,
    CutShort,
    GatewayError,
    InvalidRequest,
    ReplicaFailed,
    StreamBroken,
    TooManyRequests,
)
from gateway.request import Usage
from gateway.vocabulary import Outcome, ReplicaId
from tests.builders import a_replica, a_request
from tests.conftest import ManualClock

ERRORS = (
    InvalidRequest, TooManyRequests, StreamBroken, ClientGone, CutShort, Bug,
)  # fmt: skip


class Lines:
    """Counts what is written down."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, entry: Entry, ended_at: float) -> None:
        assert entry.outcome is not None
        assert ended_at >= entry.received_at
        self.count += 1


class Book(RuleBasedStateMachine):
    """Entries in every state, ended in every way, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.lines = Lines()
        self.accounts = Accounts(self.clock, lambda model: model == "m", self.lines)
        self.open: list[Entry] = []
        self.expected = dict.fromkeys(Outcome, 0)

    @rule()
    def receive(self) -> None:
        self.open.append(self.accounts.open(b"id", "/v1/completions", self.clock()))

    @rule(by_s=st.floats(0, 5))
    def time_passes(self, by_s: float) -> None:
        self.clock.advance(by_s)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), model=st.sampled_from(("m", "x")), stream=st.booleans())
    def parse_and_dispatch(self, data: st.DataObject, model: str, *, stream: bool) -> None:
        entry = data.draw(st.sampled_from(self.open))
        entry.parsed(a_request(model, stream=stream))
        if model == "m":
            replica = a_replica()
            entry.dispatched(ReplicaId(replica.id), replica.lease(3), self.clock())

    @precondition(lambda self: self.open)
    @rule(data=st.data(), chunks=st.integers(0, 3))
    def relay(self, data: st.DataObject, chunks: int) -> None:
        entry = data.draw(st.sampled_from(self.open))
        entry.first_byte(self.clock())
        for _ in range(chunks):
            entry.chunk(self.clock.advance(0.01))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), error=st.sampled_from(ERRORS), is_raised=st.booleans())
    def fail(self, data: st.DataObject, error: type[GatewayError], *, is_raised: bool) -> None:
        entry = self._ending(data)
        made = error()
        if not is_raised:
            entry.failed(made)
        entry.__exit__(error, made, None) if is_raised else entry.__exit__(None, None, None)
        self.expected[error.outcome] += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=st.integers(0, 9), is_failure=st.booleans(), late=st.booleans())
    def answer(self, data: st.DataObject, tokens: int, *, is_failure: bool, late: bool) -> None:
        entry = self._ending(data)
        error = ReplicaFailed() if is_failure else None
        entry.answered(500 if is_failure else 200, Usage(tokens, tokens, None), error)
        if late:
            entry.failed(ClientGone())
        entry.__exit__(None, None, None)
        self.expected[Outcome.FAILED if is_failure else Outcome.FINISHED] += 1

    def _ending(self, data: st.DataObject) -> Entry:
        entry = data.draw(st.sampled_from(self.open))
        self.open.remove(entry)
        return entry

    @invariant()
    def sums_balance(self) -> None:
        accounts = self.accounts
        outcomes = accounts.outcomes()
        assert {key: value for key, value in self.expected.items() if value} == outcomes
        assert accounts.open_entries == len(self.open)
        assert accounts.received == sum(outcomes.values()) + accounts.open_entries
        assert self.lines.count == sum(outcomes.values())


TestBook = Book.TestCase
TestBook.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
