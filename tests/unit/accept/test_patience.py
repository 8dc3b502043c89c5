"""How long a client may take, as a table."""

from __future__ import annotations

import pytest

from gateway.accept.patience import LINGER_S, Outflow, Phase, is_overdue
from gateway.settings import AcceptSettings

SETTINGS = AcceptSettings(
    header_timeout_s=10, body_timeout_s=30, keep_alive_s=75, min_body_bytes_per_s=1000
)


@pytest.mark.parametrize(
    ("phase", "body_bytes", "limit_s"),
    [
        (Phase.IDLE, 0, 75.0),
        (Phase.HEAD, 0, 10.0),
        (Phase.BODY, 0, 30.0),
        (Phase.BODY, 5000, 35.0),
        (Phase.LINGERING, 0, LINGER_S),
    ],
)
def test_a_phase_is_overdue_just_after_its_time(
    phase: Phase, body_bytes: int, limit_s: float
) -> None:
    assert not is_overdue(phase, limit_s, body_bytes, SETTINGS)
    assert is_overdue(phase, limit_s + 0.01, body_bytes, SETTINGS)


def test_a_client_that_waits_for_us_is_never_overdue() -> None:
    assert not is_overdue(Phase.SERVED, 1e9, 0, SETTINGS)


def test_what_waits_to_be_sent_is_stalled_only_while_it_does_not_change() -> None:
    outflow = Outflow()
    looks = [(0, 0.0), (100, 1.0), (100, 3.0), (90, 4.0), (90, 9.0), (0, 10.0), (90, 11.0)]
    stalled = [outflow.stalled_s(unsent, now) for unsent, now in looks]
    assert stalled == [0.0, 0.0, 2.0, 0.0, 5.0, 0.0, 0.0]
