"""Telling watchers, where something goes wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.console.broadcast import Broadcast, Watcher
from gateway.console.recent import Recent
from gateway.settings import ConsoleSettings


class Broken:
    """Owners of state that cannot be asked for anything."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_a_bug_of_the_console_is_logged_and_takes_nothing_else_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def law() -> None:
        recent = Recent()
        broadcast = Broadcast(ConsoleSettings(every_s=0.05), Broken(), recent)
        telling = asyncio.create_task(broadcast.run())
        with Watcher(broadcast, sees_names=True):
            assert recent.is_wanted
            while len(caplog.records) < 2:
                await asyncio.sleep(0.01)
        assert not telling.done()
        assert (len(broadcast), recent.is_wanted) == (0, False)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)

    asyncio.run(law())
    assert {record.getMessage() for record in caplog.records} == {"the console has a bug"}
