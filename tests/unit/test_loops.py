"""What goes on beside the requests goes on."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gateway import loops
from gateway.loops import every, kept
from tests.house import run


def test_a_loop_that_a_bug_ends_begins_again_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loops, "AGAIN_S", 0.001)
    runs: list[int] = []

    async def loop() -> None:
        runs.append(len(runs))
        async with asyncio.TaskGroup():
            if len(runs) < 3:
                raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        run(kept("counting", loop))
    assert runs == [0, 1, 2]
    assert [each.message for each in caplog.records] == ["counting has a bug, and begins again"] * 2


def test_a_loop_ends_when_it_is_cancelled() -> None:
    async def law() -> None:
        ticks: list[float] = []
        clock = asyncio.get_running_loop().time
        task = asyncio.create_task(
            kept("ticks", lambda: every(0.01, lambda: ticks.append(clock())))
        )
        while len(ticks) < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ticks[2] - ticks[0] > 0.015

    run(law())
