"""The door: open, full, or closed."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from gateway.admit.admission import Admission
from gateway.errors import Draining, TooManyRequests
from gateway.settings import AdmitSettings


def admission(most: int = 2) -> Admission:
    return Admission(AdmitSettings(max_open_requests=most, retry_after_s=3.0))


def test_who_comes_beyond_the_limit_is_refused_and_told_when_to_come_back() -> None:
    door = admission(most=2)
    with door, door:
        with pytest.raises(TooManyRequests) as refused, door:
            pass
        assert refused.value.retry_after_s == 3.0
        assert door.open_requests == 2
    with door:
        assert door.open_requests == 1


def test_whoever_leaves_by_an_exception_has_left() -> None:
    door = admission()
    with pytest.raises(ZeroDivisionError), door:
        raise ZeroDivisionError
    assert door.open_requests == 0


def test_while_draining_nobody_enters_and_those_inside_may_finish() -> None:
    door = admission()
    with ExitStack() as inside:
        inside.enter_context(door)
        door.drain()
        with pytest.raises(Draining) as refused, door:
            pass
        assert refused.value.retry_after_s == 3.0
        assert repr(door) == "<Admission draining, 1 in>"
    assert door.open_requests == 0
