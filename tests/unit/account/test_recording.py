"""Recordings: what was shared can be seen, what was said cannot."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.account.access_log import AccessLog, NoLog
from gateway.account.accounts import Accounts
from gateway.account.recording import HEAD, MARKS, Recorder, Several, logs_of
from gateway.errors import ClientGone
from gateway.request import Usage
from gateway.section import SettingsError
from gateway.settings import AccountSettings, Settings
from loadtest.traces import read_trace
from tests.builders import a_replica, a_request, altered
from tests.conftest import ManualClock

SECRET = b"Tell nobody that the treasure is under the old oak behind the mill. "


class Recorded:
    """A recording in memory, and the gateway's accounts that write it."""

    def __init__(self, key: bytes = b"k" * 32) -> None:
        self._file = io.BytesIO()
        self._log = AccessLog(self._file, Recorder(key).line)
        self._accounts = Accounts(ManualClock(), lambda _: True, self._log)

    def ask(
        self, prompt: bytes, at_s: float = 999.0, *, usage: Usage | None = None, **context: bytes
    ) -> None:
        request = a_request(stream=True, prompt_bytes=len(prompt))
        request = altered(request, prompt=prompt, context=tuple(context.items()))
        replica = a_replica()
        with self._accounts.open(b"req-1", "/v1/chat/completions", at_s) as entry:
            entry.tenant = "acme"
            entry.parsed(request)
            entry.dispatched(replica.id, replica.lease(1), at_s)
            entry.first_byte(at_s)
            entry.chunk(at_s + 0.1)
            entry.answered(200, usage or Usage(12, 5, None), None)

    def bytes(self) -> bytes:
        self._log.close()
        return self._file.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.bytes().splitlines()]


def shared(first: dict[str, Any], second: dict[str, Any]) -> int:
    """Bytes of the longest beginning whose hashes are equal."""
    pairs = zip(first["marks"], second["marks"], strict=False)
    return max((a[0] for a, b in pairs if a == b), default=0)


def test_not_a_word_is_written() -> None:
    recorded = Recorded()
    recorded.ask(SECRET * 40, tools=SECRET)
    text = recorded.bytes()
    for word in SECRET.split():
        assert len(word) < 4 or word not in text
    assert b"acme" not in text


def test_equal_beginnings_have_equal_hashes_up_to_where_they_part() -> None:
    recorded = Recorded()
    recorded.ask(b"a" * 5000)
    recorded.ask(b"a" * 3000 + b"b" * 2000)
    recorded.ask(b"a" * 5000)
    recorded.ask(b"a" * 5000, tools=b"[]")
    first, second, third, with_tools = recorded.lines()
    assert shared(first, second) == max(mark for mark in MARKS if mark <= 3000)
    assert shared(first, third) == 5000
    assert shared(first, with_tools) == 0


def test_two_recordings_have_nothing_in_common() -> None:
    one, other = Recorded(b"k" * 32), Recorded(b"l" * 32)
    one.ask(b"a" * 5000)
    other.ask(b"a" * 5000)
    assert shared(one.lines()[0], other.lines()[0]) == 0


def test_a_recording_can_be_played_again() -> None:
    recorded = Recorded()
    recorded.ask(b"a" * 4000, 1000.0, usage=Usage(1000, 50, 200))
    recorded.ask(b"a" * 2048, 1001.5, usage=Usage(512, 7, None))
    first, second = read_trace([HEAD.decode(), *recorded.bytes().decode().splitlines()])
    assert (second.at_s - first.at_s, first.output_tokens, second.output_tokens) == (1.5, 50, 7)
    assert (first.prompt_tokens, sum(tokens for _, tokens in first.named())) == (1000, 1000)
    assert next(first.named()) == next(second.named())


def test_a_request_that_could_not_be_read_leaves_no_line() -> None:
    recorded = Recorded()
    accounts = recorded._accounts
    with accounts.open(b"req-1", "/v1/chat/completions", 1.0) as entry:
        entry.failed(ClientGone())
    assert recorded.bytes() == b""


def test_off_by_default_and_beside_the_access_log_where_it_is_on(tmp_path: Path) -> None:
    assert isinstance(logs_of(AccountSettings(access_log="off")), NoLog)
    path = tmp_path / "traffic.jsonl"
    logs = logs_of(AccountSettings(access_log="off", recording=str(path)))
    assert isinstance(logs, Several)
    accounts = Accounts(ManualClock(), lambda _: True, logs)
    with accounts.open(b"req-1", "/v1/chat/completions", 1.0) as entry:
        entry.parsed(a_request())
        entry.failed(ClientGone())
    logs.flush()
    logs.close()
    head, line = path.read_bytes().splitlines()
    assert orjson.loads(head)["format"] == "headrace-recording"
    assert orjson.loads(line)["route"] == "/v1/chat/completions"


def test_several_processes_would_write_over_each_other() -> None:
    with pytest.raises(SettingsError, match="written by one process"):
        Settings.load("{account: {recording: f.jsonl}, peers: {workers: 2}}", {})
    assert Settings.load("account: {recording: f.jsonl}", {}).account.recording == "f.jsonl"
