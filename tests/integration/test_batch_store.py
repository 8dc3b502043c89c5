"""The laws of the store, on SQLite and on PostgreSQL, beside a model too simple to be wrong."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from gateway.batch.nouns import LIVE, Batch, BatchLine, Claim, File, Problem, Result, Status
from gateway.batch.store import Fenced, Page, Store
from gateway.errors import BatchEnded, FileInUse, UnknownBatch, UnknownFile
from tests.databases import emptied

LEASE_S = 10.0
BACK = st.sampled_from([0, 0, 0, 1, 2, 3])
"""Which claim acts: the last one mostly, or one that may be stale."""


def a_stored_file(store: Store, file_id: str = "file-in", at: float = 0.0) -> File:
    file = File(file_id, at, 10, "in.jsonl", "batch")
    store.add_file(file)
    return file


def a_batch(batch_id: str = "batch_1", at: float = 1.0, file_id: str = "file-in") -> Batch:
    return Batch(
        id=batch_id,
        endpoint="/v1/chat/completions",
        input_file_id=file_id,
        completion_window="24h",
        metadata=None,
        created_at=at,
        expires_at=at + 86400.0,
    )


def some_lines(count: int, model: str = "m") -> list[BatchLine]:
    return [BatchLine(n, f"id-{n}", model, n * 10, 9, bytes([n % 3])) for n in range(1, count + 1)]


@dataclass
class Known:
    """What the model knows of a batch."""

    id: str
    lines: int
    status: Status = Status.VALIDATING
    fence: int = 0
    lease_until: float = 0.0
    stored: int = 0  # lines taken down
    results: dict[int, Result] = field(default_factory=dict)


class StoreMachine(RuleBasedStateMachine):
    """Workers that stall, die and come back; clients that create and cancel."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(emptied(self.url))
        self.now = 100.0
        self.known: dict[str, Known] = {}
        self.claims: list[Claim] = []

    def teardown(self) -> None:
        self.store.close()

    @initialize()
    def begin(self) -> None:
        a_stored_file(self.store)
        self.a_client_creates(3)
        self.a_worker_claims(after_s=0.0, validates=True)

    @rule(lines=st.integers(1, 5))
    def a_client_creates(self, lines: int) -> None:
        self.now += 0.001
        batch = a_batch(f"batch_{len(self.known)}", self.now)
        self.store.add_batch(batch)
        self.known[batch.id] = Known(batch.id, lines)

    @rule(data=st.data())
    def a_client_cancels(self, data: st.DataObject) -> None:
        if not self.known:
            return
        known = self.known[data.draw(st.sampled_from(sorted(self.known)))]
        if known.status in (Status.VALIDATING, Status.IN_PROGRESS, Status.CANCELLING):
            assert self.store.cancel("", known.id, self.now).status is Status.CANCELLING
            known.status = Status.CANCELLING
        else:
            with pytest.raises(BatchEnded):
                self.store.cancel("", known.id, self.now)

    @rule(after_s=st.sampled_from([0.0, LEASE_S / 2, LEASE_S]), validates=st.booleans())
    def a_worker_claims(self, after_s: float, validates: bool) -> None:
        self.now += after_s
        free = [
            known
            for known in self.known.values()
            if known.status in LIVE and known.lease_until <= self.now
        ]
        claim = self.store.claim(self.now, LEASE_S)
        if not free:
            assert claim is None
            return
        assert claim is not None
        oldest = free[0]
        oldest.fence += 1
        oldest.lease_until = self.now + LEASE_S
        assert (claim.batch.id, claim.fence) == (oldest.id, oldest.fence)
        assert claim.batch.status is oldest.status
        self.claims.append(claim)
        if validates:
            self.it_validates(0, dies=False)

    def _ours(self, back: int) -> tuple[Claim, Known, bool]:
        claim = self.claims[-1 - back % len(self.claims)]
        known = self.known[claim.batch.id]
        return claim, known, known.fence == claim.fence

    @rule(back=BACK)
    def it_renews(self, back: int) -> None:
        match self._ours(back):
            case held, known, True:
                assert self.store.renew(held, self.now, LEASE_S) is known.status
                known.lease_until = self.now + LEASE_S
            case held, known, False:
                with pytest.raises(Fenced):
                    self.store.renew(held, self.now, LEASE_S)

    @rule(back=BACK)
    def it_releases(self, back: int) -> None:
        match self._ours(back):
            case held, known, True:
                self.store.release(held)
                known.lease_until = 0.0
            case held, known, False:
                with pytest.raises(Fenced):
                    self.store.release(held)

    @rule(back=BACK, dies=st.booleans())
    def it_validates(self, back: int, dies: bool) -> None:
        match self._ours(back):
            case held, known, True if known.status is Status.VALIDATING:
                lines = some_lines(known.lines)
                self.store.begin_validation(held)
                self.store.add_lines(held, lines[:2])
                if not dies:
                    self.store.add_lines(held, lines[2:])
                    status = self.store.validated(held, known.lines, self.now)
                    assert status is Status.IN_PROGRESS
                    known.status = Status.IN_PROGRESS
            case held, known, False:
                for write in (
                    lambda: self.store.begin_validation(held),
                    lambda: self.store.add_lines(held, some_lines(9)),
                    lambda: self.store.validated(held, 9, self.now),
                    lambda: self.store.refused(held, [Problem("x", "y.")], self.now),
                ):
                    with pytest.raises(Fenced):
                        write()

    @rule(back=BACK, numbers=st.sets(st.integers(1, 5)), good=st.booleans())
    def it_commits(self, back: int, numbers: set[int], good: bool) -> None:
        match self._ours(back):
            case held, known, True if known.status is Status.IN_PROGRESS:
                pending = {line.number for line in self.store.pending(held)}
                assert pending == set(range(1, known.lines + 1)) - set(known.results)
                document = f"by {held.fence} at {self.now}".encode()
                results = [Result(number, good, document) for number in numbers]
                status = self.store.commit(held, results, self.now, LEASE_S)
                assert status is Status.IN_PROGRESS
                for result in results:
                    if result.number <= known.lines:
                        known.results.setdefault(result.number, result)
                known.lease_until = self.now + LEASE_S
            case held, known, False:
                with pytest.raises(Fenced):
                    self.store.commit(held, [Result(1, good, b"stale")], self.now, LEASE_S)
                with pytest.raises(Fenced):
                    self.store.pending(held)

    @rule(back=BACK, dies=st.booleans())
    def it_finalizes(self, back: int, dies: bool) -> None:
        match self._ours(back):
            case held, known, True if known.status in (Status.IN_PROGRESS, Status.FINALIZING):
                assert self.store.finalize(held, self.now) is Status.FINALIZING
                known.status = Status.FINALIZING
                self._read_back(held, known)
                if not dies:
                    done = File(f"file-{known.id}", self.now, 1, "out", "batch_output")
                    self.store.finish(held, Status.COMPLETED, done, None, self.now)
                    known.status, known.lease_until = Status.COMPLETED, 0.0
                    assert self.store.outcomes(held, 0, 9) == []
                    assert self.store.file("", done.id) == done
            case held, known, False:
                with pytest.raises(Fenced):
                    self.store.finalize(held, self.now)
                file = File("file-stale", self.now, 1, "out", "batch_output")
                with pytest.raises(Fenced):
                    self.store.finish(held, Status.COMPLETED, file, None, self.now)
                with pytest.raises(UnknownFile):
                    self.store.file("", "file-stale")

    def _read_back(self, claim: Claim, known: Known) -> None:
        rows = [row for n in range(0, known.lines, 2) for row in self.store.outcomes(claim, n, 2)]
        expected = []
        for number in range(1, known.lines + 1):
            result = known.results.get(number)
            document = (result.succeeded, result.document) if result else (None, None)
            expected.append((number, f"id-{number}", *document))
        assert rows == expected

    @invariant()
    def what_is_counted_is_what_is_stored(self) -> None:
        for known in self.known.values():
            batch = self.store.batch("", known.id)
            good = [result.succeeded for result in known.results.values()]
            assert batch.status is known.status
            assert (batch.completed, batch.failed) == (good.count(True), good.count(False))

    @invariant()
    def the_census_counts_all(self) -> None:
        assert sum(self.store.census().values()) == len(self.known)


def test_the_store_keeps_its_laws(database_url: str) -> None:
    machine = type("Machine", (StoreMachine,), {"url": database_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def store(database_url: str) -> Store:
    return Store(database_url)


def test_of_many_who_claim_at_once_one_gets_it(database_url: str, store: Store) -> None:
    a_stored_file(store)
    for number in range(5):
        store.add_batch(a_batch(f"batch_{number}", number))
    claims: list[Claim] = []
    gate = threading.Barrier(4)

    def claim() -> None:
        own = Store(database_url)
        gate.wait()
        while (found := own.claim(50.0, LEASE_S)) is not None:
            claims.append(found)
        own.close()

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A claimer may come away with nothing while another holds the row; the rest is there to find.
    while (found := store.claim(50.0, LEASE_S)) is not None:
        claims.append(found)
    assert sorted(each.batch.id for each in claims) == [f"batch_{number}" for number in range(5)]
    assert {each.fence for each in claims} == {1}
    store.close()


def test_results_written_at_once_by_two_who_think_it_is_theirs_count_once(
    database_url: str, store: Store
) -> None:
    a_stored_file(store)
    store.add_batch(a_batch())
    first = store.claim(0.0, LEASE_S)
    assert first is not None
    store.add_lines(first, some_lines(60))
    store.validated(first, 60, 1.0)
    second = store.claim(LEASE_S, LEASE_S)
    assert second is not None
    fenced = []

    def commit(claim: Claim, document: bytes) -> None:
        own = Store(database_url)
        for number in range(1, 61):
            try:
                own.commit(claim, [Result(number, True, document)], LEASE_S + 1, LEASE_S)
            except Fenced:
                fenced.append(document)
        own.close()

    threads = [
        threading.Thread(target=commit, args=each)
        for each in ((first, b"first"), (second, b"second"), (second, b"again"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fenced == [b"first"] * 60
    assert store.batch("", "batch_1").completed == 60
    assert store.pending(second) == []
    store.close()


def test_lines_that_begin_alike_stand_together_in_the_order_of_work(store: Store) -> None:
    a_stored_file(store)
    store.add_batch(a_batch())
    claim = store.claim(0.0, LEASE_S)
    assert claim is not None
    lines = [
        BatchLine(n, f"id-{n}", "ab"[n % 2], 0, 1, bytes([n % 3, n % 5])) for n in range(1, 31)
    ]
    store.add_lines(claim, lines)
    expected = sorted(lines, key=lambda line: (line.model, line.prefix, line.number))
    assert [line.number for line in store.pending(claim)] == [line.number for line in expected]
    store.close()


def test_lists_page_from_one_to_the_next_without_a_gap(store: Store) -> None:
    files = [a_stored_file(store, f"file-{n}", float(n // 3)).id for n in range(10)]
    for ascending in (True, False):
        seen: list[str] = []
        while page := store.files("", None, Page(seen[-1] if seen else None, 3, ascending)):
            seen += [file.id for file in page]
        assert seen == sorted(files, reverse=not ascending)
    assert store.files("", "other", Page(None, 3)) == []
    for number in range(5):
        store.add_batch(a_batch(f"batch_{number}", float(number), "file-1"))
    assert [each.id for each in store.batches("", Page("batch_3", 2))] == ["batch_2", "batch_1"]
    store.close()


def test_a_tenant_sees_what_is_its_own_and_nothing_else(store: Store) -> None:
    for name in ("red", "blue"):
        store.add_file(File(f"file-{name}", 0.0, 1, "in", "batch", name))
        store.add_batch(replace(a_batch(f"batch_{name}", file_id=f"file-{name}"), tenant=name))
    assert [each.id for each in store.files("red", None, Page(None, 9))] == ["file-red"]
    assert [each.id for each in store.batches("blue", Page(None, 9))] == ["batch_blue"]
    assert store.batches("", Page(None, 9)) == []
    for file_of in (store.file, store.remove_file):
        with pytest.raises(UnknownFile):
            file_of("red", "file-blue")
    with pytest.raises(UnknownFile):
        store.files("red", None, Page("file-blue", 9))
    with pytest.raises(UnknownFile):
        store.add_batch(replace(a_batch("batch_x", file_id="file-blue"), tenant="red"))
    with pytest.raises(UnknownBatch):
        store.batch("red", "batch_blue")
    with pytest.raises(UnknownBatch):
        store.cancel("red", "batch_blue", 1.0)
    assert store.batch("blue", "batch_blue").status is Status.VALIDATING
    store.close()


def test_a_file_that_a_batch_needs_stays_until_it_has_ended(store: Store) -> None:
    a_stored_file(store)
    with pytest.raises(UnknownFile):
        store.add_batch(a_batch(file_id="file-none"))
    store.add_batch(a_batch())
    with pytest.raises(FileInUse):
        store.remove_file("", "file-in")
    claim = store.claim(0.0, LEASE_S)
    assert claim is not None
    problems = [Problem("empty_file", "The file has no lines.", None, 3)]
    store.refused(claim, problems, 5.0)
    ended = store.batch("", "batch_1")
    assert (ended.status, ended.failed_at, list(ended.problems)) == (Status.FAILED, 5.0, problems)
    store.remove_file("", "file-in")
    with pytest.raises(UnknownFile):
        store.remove_file("", "file-in")
    with pytest.raises(UnknownBatch):
        store.batch("", "batch_none")
    store.close()
