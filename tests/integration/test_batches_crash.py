"""A gateway that is lost at any step of a batch's work: whoever takes it up ends it, exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.batch.store import Store
from tests.house import a_sim, run, running_house
from tests.integration.test_batches import a_batch, a_client, a_file, a_line, ended, lines_of

STEPS = (
    "begin_validation", "add_lines", "validated", "pending", "commit", "finalize", "outcomes",
    "finish",
)  # fmt: skip
"""What only a batch's work calls, one after another."""


class Crash(Exception):
    """The power went."""


class CrashingStore(Store):
    """Loses the worker at its n-th transaction: just before it, or just after."""

    is_after = False
    left = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return self.counted(found) if name in STEPS else found

    def counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.is_after:
                raise Crash
            result = step(*args)
            if self.left == 0:
                raise Crash
            return result

        return wrapped


@pytest.mark.parametrize("after", [False, True])
def test_wherever_it_is_lost_each_line_is_answered_once(
    database_url: str, tmp_path: Path, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.batch.service.LOOK_EVERY_S", 0.05)

    async def law() -> None:
        knobs = {"store": database_url, "files": f"{tmp_path}/files", "lease_s": 0.2}
        async with (
            running_house({"batch": knobs}, [a_sim()]) as house,
            a_client(house) as client,
        ):
            keeper = house.house.batches
            assert keeper is not None
            keeper.store.close()
            keeper.store = store = CrashingStore(database_url)
            ids = [f"{number}" for number in range(12)]
            step = 0
            store.is_after = after
            while store.left <= 0:  # the step before was reached
                step += 1
                store.left = step
                batch = await a_batch(
                    client, a_file([a_line("bad", max_tokens=-1), *map(a_line, ids)])
                )
                batch = await ended(client, batch)
                output = await lines_of(client, batch.output_file_id)
                errors = await lines_of(client, batch.error_file_id)
                assert [line["custom_id"] for line in output] == ids
                assert [line["custom_id"] for line in errors] == ["bad"]
                assert batch.request_counts is not None
                assert batch.request_counts.completed == 12
                assert batch.request_counts.failed == 1
            assert step > 8  # every step has been the last once

    run(law())
