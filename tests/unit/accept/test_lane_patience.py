"""What the sweep does to a connection, on a transport in memory and a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gateway.accept.lane import Lane
from tests.fuzz.client_laws import Fixture, Pipe, settle

POST = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"


class Slow(Pipe):
    """A transport whose client has taken nothing of the last `unsent` bytes."""

    unsent = 0

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def close(self) -> None:
        if not self.unsent:
            super().close()

    def abort(self) -> None:
        super().close()


def a_lane(fixture: Fixture) -> tuple[Lane, Slow]:
    lane = Lane(fixture.door, fixture.config, fixture.state, {}, asyncio.get_running_loop())
    pipe = Slow(lane)
    lane.connection_made(pipe)
    return lane, pipe


def run(law: Callable[[Fixture], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(5):
            await law(Fixture())

    asyncio.run(bounded())


def sweep(fixture: Fixture, lane: Lane, now: float) -> None:
    fixture.now = fixture.door.now = now
    lane.check(now)


@pytest.mark.parametrize("last", [b"", POST.replace(b"Host: a", b"Host: a\r\nConnection: close")])
def test_what_a_client_leaves_unread_keeps_its_connection_only_for_so_long(last: bytes) -> None:
    async def law(fixture: Fixture) -> None:
        lane, pipe = a_lane(fixture)
        pipe.unsent = 5000
        lane.data_received(last or POST)
        await settle(fixture)
        for now in (1.0, 30.0, 60.0):
            sweep(fixture, lane, now)
            assert not pipe.is_closed
        pipe.unsent = 4000  # it reads after all
        for now in (70.0, 120.0):
            sweep(fixture, lane, now)
            assert not pipe.is_closed
        sweep(fixture, lane, 131.0)
        assert pipe.is_closed

    run(law)


def test_a_refused_client_may_read_its_refusal_slowly() -> None:
    async def law(fixture: Fixture) -> None:
        lane, pipe = a_lane(fixture)
        lane.data_received(b"\0")
        for now in (1.0, 5.0, 9.0):
            pipe.unsent = 100 - int(now)
            sweep(fixture, lane, now)
            assert not pipe.is_closed
        pipe.unsent = 0
        sweep(fixture, lane, 10.0)
        assert not pipe.is_closed
        sweep(fixture, lane, 12.0)
        assert pipe.is_closed

    run(law)


def test_a_refused_client_that_goes_on_talking_is_not_listened_to() -> None:
    async def law(fixture: Fixture) -> None:
        lane, pipe = a_lane(fixture)
        lane.data_received(b"\0")
        said = bytes(pipe.written)
        for _ in range(100):
            lane.data_received(POST)
        await settle(fixture)
        assert bytes(pipe.written) == said
        assert fixture.received == 0
        assert fixture.door.malformed == 1

    run(law)


def test_a_refused_client_is_let_go_in_time_whatever_followed_in_the_same_read() -> None:
    async def law(fixture: Fixture) -> None:
        lane, pipe = a_lane(fixture)
        lane.data_received(b"GET /x HTTP/1.1\r\n\r\n" + POST[:-2])
        await settle(fixture)
        sweep(fixture, lane, 1.9)
        assert not pipe.is_closed
        sweep(fixture, lane, 2.1)
        assert pipe.is_closed

    run(law)


def a_bug() -> int:
    raise AssertionError


@pytest.mark.pure
def test_a_sweep_that_fails_over_one_connection_goes_on_with_the_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def law(fixture: Fixture) -> None:
        monkeypatch.setattr("gateway.accept.door.SWEEP_EVERY_S", 0.0)
        (_, its_pipe), (_, pipe) = a_lane(fixture), a_lane(fixture)
        monkeypatch.setattr(its_pipe, "get_write_buffer_size", a_bug)
        sweeping = asyncio.create_task(fixture.door.sweep())
        await asyncio.sleep(0.01)
        assert its_pipe.is_closed
        fixture.now = 100.0
        await asyncio.sleep(0.01)
        assert pipe.is_closed
        sweeping.cancel()
        await asyncio.wait([sweeping])
        assert sweeping.cancelled()

    run(law)
    assert "could not be looked after" in caplog.text
