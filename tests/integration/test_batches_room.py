"""Lines take what interactive requests leave over, and make way at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.builders import a_chat, a_post
from tests.house import RunningHouse, a_sim, run, running_house, until
from tests.integration.test_batches import a_batch, a_client, a_file, a_line, ended

SLOW: dict[str, Any] = {"profile": "cpu-tiny", "speed": 10.0, "mean_output_tokens": None}


def asked(house: RunningHouse) -> dict[str, int]:
    """Attempts that ended, per replica."""
    counts: dict[str, int] = {}
    for (replica, _), count in house.house.accounts.attempts.items():
        counts[replica] = counts.get(replica, 0) + count
    return counts


def test_lines_go_where_they_are_in_nobodys_way(tmp_path: Path) -> None:
    async def law() -> None:
        knobs = {"batch": {"folder": str(tmp_path), "lines_per_replica": 4}}
        async with (
            running_house(knobs, [a_sim() for _ in range(4)]) as house,
            a_client(house) as client,
            house.wire() as wire,
        ):
            await wire.send(a_post(a_chat(stream=True, max_tokens=30_000, ignore_eos=True)))
            assert (await wire.head()).status == 200
            (busy,) = [each for each in house.replicas if each.inflight_requests]
            batch = await ended(
                client, await a_batch(client, a_file(a_line(f"{n}") for n in range(60)))
            )
            assert batch.status == "completed"
            served = asked(house)
            assert sum(served.values()) == 60
            assert busy.id not in served
            assert len(served) == 2  # the other two are kept free
            wire.abort()
            await house.until_quiet()

    run(law())


def test_lines_make_way_at_once_and_are_answered_all_the_same(tmp_path: Path) -> None:
    async def law() -> None:
        knobs = {"batch": {"folder": str(tmp_path), "lines_per_replica": 8}}
        async with (
            running_house(knobs, [a_sim(**SLOW)]) as house,
            a_client(house) as client,
        ):
            keeper = house.house.batches
            assert keeper is not None
            lines = (a_line(f"{n}", max_tokens=40, ignore_eos=True) for n in range(40))
            batch = await a_batch(client, a_file(lines))
            await until(lambda: keeper.dispatcher.inflight == 8, within_s=20.0)
            async with house.wire() as wire:
                await wire.send(a_post(a_chat(max_tokens=60, ignore_eos=True)))
                await until(lambda: keeper.dispatcher.inflight == 1, within_s=0.5)
                assert (await wire.reply()).status == 200
            gone = keeper.dispatcher.outcomes
            # Lines that had not been sent yet found no room where others were taken back from.
            assert gone["displaced"] + gone["no_room"] == 7, gone
            assert gone["displaced"] >= 1
            await asyncio.sleep(0.2)
            assert keeper.dispatcher.inflight <= 1  # it stays calm for a while
            batch = await client.batches.cancel(batch.id)
            batch = await ended(client, batch)
            assert batch.request_counts is not None
            assert batch.request_counts.completed >= 1

    run(law())
