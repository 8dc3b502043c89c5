"""May we try again? Examples; the law of the budget is in tests/property/test_attempts_laws.py."""

from __future__ import annotations

import pytest

from gateway.errors import (
    ClosedBeforeReply,
    ConnectFailed,
    ConnectTimedOut,
    FirstByteTimedOut,
    GatewayError,
    NoReplica,
    ProtocolBroken,
    ReplicaUnavailable,
    StreamBroken,
    UnknownModel,
)
from gateway.relay.retries import Retries

NOW = 5.0


def plenty() -> Retries:
    return Retries(most=3, ratio=1.0, per_s=10.0)


@pytest.mark.parametrize(
    ("error", "first", "second"),
    [
        (ConnectFailed(), True, True),
        (ConnectTimedOut(), True, True),
        (ReplicaUnavailable(), True, True),
        (ClosedBeforeReply(), True, False),
        (FirstByteTimedOut(), False, False),
        (ProtocolBroken(), False, False),
        (StreamBroken(), False, False),
        (NoReplica(), False, False),
        (UnknownModel(), False, False),
    ],
    ids=lambda value: value.reason if isinstance(value, GatewayError) else "",
)
def test_the_error_says_whether_another_try_is_right(
    error: GatewayError, *, first: bool, second: bool
) -> None:
    assert plenty().allows(error, 1, NOW) is first
    assert plenty().allows(error, 2, NOW) is second


def test_the_last_try_is_the_last() -> None:
    assert not plenty().allows(ConnectFailed(), 3, NOW)
    assert not plenty().may_follow(3, NOW)
    assert not Retries(most=1, ratio=1.0, per_s=10.0).allows(ConnectFailed(), 1, NOW)


def test_an_error_that_is_not_tried_again_costs_no_budget() -> None:
    attempts = Retries(most=3, ratio=0.0, per_s=0.0)
    assert not attempts.allows(FirstByteTimedOut(), 1, NOW)
    assert attempts.allows(ConnectFailed(), 1, NOW)
    assert not attempts.allows(ConnectFailed(), 1, NOW)


def test_a_budget_used_up_comes_back_with_time_alone() -> None:
    attempts = Retries(most=3, ratio=0.0, per_s=0.5)
    while attempts.allows(ConnectFailed(), 1, NOW):
        pass
    assert not attempts.may_follow(1, NOW + 1.9)
    assert attempts.may_follow(1, NOW + 2.0)


def test_a_budget_used_up_comes_back_with_requests_alone() -> None:
    attempts = Retries(most=3, ratio=0.25, per_s=0.0)
    assert attempts.allows(ConnectFailed(), 1, NOW)
    for _ in range(3):
        attempts.earn()
        assert not attempts.may_follow(1, NOW)
    attempts.earn()
    assert attempts.may_follow(1, NOW)


def test_a_clock_read_out_of_order_takes_nothing_and_gives_nothing() -> None:
    attempts = Retries(most=3, ratio=0.0, per_s=0.1)
    assert attempts.allows(ConnectFailed(), 1, NOW)
    assert not attempts.may_follow(1, NOW - 4.0)
    assert not attempts.may_follow(1, NOW + 4.0)
    assert attempts.may_follow(1, NOW + 10.0)
