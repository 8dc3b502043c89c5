"""One JSON line per request, and never a request that waits for it."""

from __future__ import annotations

import io
import json
import threading
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.account import access_log
from gateway.account.access_log import BATCH, AccessLog, NoLog, line
from gateway.account.accounts import Accounts
from gateway.account.entry import Entry
from gateway.errors import InvalidRequest
from gateway.request import Usage
from tests.builders import a_replica, a_request
from tests.conftest import ManualClock


def an_entry(scribe: AccessLog | NoLog, *, finished: bool = True) -> Entry:
    accounts = Accounts(ManualClock(), lambda _: True, scribe)
    replica = a_replica()
    with accounts.open(b"req-1", "/v1/chat/completions", 999.0) as entry:
        if not finished:
            entry.parsed(a_request("made-up"))
            entry.failed(InvalidRequest("a prompt the client wrote"))
            return entry
        entry.parsed(a_request(stream=True))
        entry.dispatched(replica.id, replica.lease(1), 999.25)
        entry.first_byte(999.5)
        entry.answered(200, Usage(12, 5, None), None)
    return entry


class Blocked(io.BytesIO):
    """A file whose reader has stalled."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write = threading.Event()

    def write(self, data: Any) -> int:
        self.may_write.wait(10)
        return super().write(data)


class Broken(io.BytesIO):
    """A file that nobody reads any more."""

    def write(self, data: Any) -> int:
        raise BrokenPipeError


class Kept(io.BytesIO):
    """A file that can be read after it was closed."""


def written(file: io.BytesIO) -> list[dict[str, Any]]:
    return [json.loads(each) for each in file.getvalue().splitlines()]


def test_a_line_says_who_when_and_how_and_nothing_of_the_content() -> None:
    entry = an_entry(NoLog())
    found = json.loads(line(entry, 1000.0))
    assert found.pop("time") > 1_700_000_000
    assert found == {
        "request_id": "req-1",
        "route": "/v1/chat/completions",
        "model": "m",
        "replica": "r1:8000",
        "stream": True,
        "outcome": "finished",
        "reason": None,
        "status": 200,
        "attempts": 1,
        "tenant": None,
        "key": None,
        "queue_s": 0.25,
        "ttft_s": 0.5,
        "duration_s": 1.0,
        "chunks": 1,
        "prompt_tokens": 12,
        "cached_tokens": None,
        "output_tokens": 5,
    }


@given(st.floats(0.0, 1e5))
def test_durations_are_told_to_the_microsecond(duration_s: float) -> None:
    entry = an_entry(NoLog())
    told = line(entry, entry.received_at + duration_s)
    found = json.loads(told, parse_float=Decimal)["duration_s"]
    assert abs(float(found) - (entry.received_at + duration_s - entry.received_at)) < 0.51e-6
    assert found == found.quantize(Decimal("0.000001"))


def test_a_refused_request_leaves_a_line_without_what_the_client_wrote() -> None:
    found = json.loads(line(an_entry(NoLog(), finished=False), 1000.0))
    assert (found["outcome"], found["reason"], found["model"]) == (
        "rejected", "invalid_request", None,
    )  # fmt: skip
    assert "wrote" not in json.dumps(found)


def test_every_line_is_written_once_and_in_order() -> None:
    file = Kept()
    log = AccessLog(file)
    for _ in range(2 * BATCH + 3):
        an_entry(log)
    log.close()
    assert len(written(file)) == 2 * BATCH + 3
    assert log.dropped == 0


@pytest.mark.pure
def test_a_stalled_reader_costs_lines_not_requests_and_the_log_says_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access_log, "MOST_WAITING", BATCH)
    file = Blocked()
    log = AccessLog(file)
    for _ in range(4 * BATCH):
        an_entry(log)
    assert log.dropped == 2 * BATCH
    file.may_write.set()
    while log._written < log._waiting:  # the thread is behind by what it was handed
        threading.Event().wait(0.001)
    an_entry(log)
    log.close()
    lines = written(file)
    assert sum("request_id" in each for each in lines) == 2 * BATCH + 1
    assert [each for each in lines if "request_id" not in each] == [
        {"access_log_lines_dropped": 2 * BATCH}
    ]


def test_a_reader_that_has_gone_does_not_stop_requests() -> None:
    log = AccessLog(Broken())
    for _ in range(3):
        an_entry(log)
        log.flush()
    log.close()
    assert log.dropped == 3
