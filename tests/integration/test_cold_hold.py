"""A model at zero: listed, waited for, served the moment there is a replica; never 404."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from gateway.vocabulary import ModelName, Outcome
from serving.sim.server import Sim, running_sim
from tests.builders import MODEL, a_chat, a_get, a_post
from tests.house import RunningHouse, Wire, a_sim, run, running_house, until
from tests.integration.test_batches import a_batch, a_client, a_file, a_line, ended

NAME = ModelName(MODEL)
COMMENT = b": waiting\n\n"
A_STREAM = a_post(a_chat(stream=True))


@asynccontextmanager
async def a_house_at_zero(
    folder: Path, *, batch: dict[str, Any] | None = None, **model: Any
) -> AsyncIterator[tuple[RunningHouse, Fleet]]:
    """A gateway that knows a model, and a file of replicas that names none."""
    fleet = Fleet(folder / "fleet.yaml")
    fleet.write()
    fleet_settings = {
        "replicas": [], "file": str(fleet.path), "watch_every_s": 0.02, "probe_every_s": 0.1,
        "kv_events": {"listen": "off"}, "models": [{"name": MODEL, **model}],
    }  # fmt: skip
    settings: dict[str, dict[str, Any]] = {
        "fleet": fleet_settings, "hold": {"comment_every_s": 0.01}, "batch": batch or {}
    }  # fmt: skip
    async with running_house(settings, []) as running:
        yield running, fleet


class Fleet:
    """The file that names the replicas."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *sims: Sim) -> None:
        self.path.write_bytes(orjson.dumps({"replicas": [sim.url for sim in sims]}))


async def a_waiter(running: RunningHouse, post: bytes) -> Wire:
    wire = await running.connect()
    before = running.house.cold.held
    await wire.send(post)
    await until(lambda: running.house.cold.held == before + 1)
    return wire


async def the_rest(wire: Wire) -> bytes:
    return b"".join([chunk async for chunk in wire.chunks()])


def test_a_model_at_zero_is_listed_and_the_gateway_is_ready(tmp_path: Path) -> None:
    async def law() -> None:
        async with a_house_at_zero(tmp_path) as (running, _):
            listed = (await running.ask(a_get("/v1/models"), method="GET")).json()["data"]
            assert [model["id"] for model in listed] == [MODEL]
            assert (await running.ask(a_get(f"/v1/models/{MODEL}"), method="GET")).status == 200
            assert (await running.ask(a_get("/readyz"), method="GET")).status == 200

    run(law())


def test_requests_are_held_told_so_and_answered_when_a_replica_is_ready(tmp_path: Path) -> None:
    async def law() -> None:
        async with a_house_at_zero(tmp_path) as (running, fleet):
            stream = await a_waiter(running, A_STREAM)
            unary = await a_waiter(running, a_post())
            head = await stream.head()
            assert head.status == 200
            assert (head.header("content-type") or "").startswith("text/event-stream")
            async with running_sim(a_sim()) as sim:
                fleet.write(sim)
                body = await the_rest(stream)
                assert body.startswith(COMMENT)
                assert body.endswith(b"data: [DONE]\n\n")
                assert (await unary.reply()).status == 200
                await stream.close()
                await unary.close()
                await running.until_quiet()
            assert running.outcomes == {Outcome.FINISHED: 2}
            assert running.house.cold.starts(NAME).count == 1

    run(law())


def test_it_goes_on_in_the_tick_in_which_its_replica_takes_work(tmp_path: Path) -> None:
    async def law() -> None:
        async with a_house_at_zero(tmp_path) as (running, fleet), running_sim(a_sim()) as sim:
            unary = await a_waiter(running, a_post())
            fleet.write(sim)
            await until(lambda: running.house.roster.serving(NAME))
            ready_at = time.monotonic()
            await until(lambda: running.house.relay.busy or sim.engine.running)
            assert time.monotonic() - ready_at < 0.05
            assert (await unary.reply()).status == 200
            await unary.close()

    run(law())


def test_beyond_the_bound_it_is_503_with_a_learnt_retry_after(tmp_path: Path) -> None:
    async def law() -> None:
        held = {"requests": 1, "tokens": 10_000, "size_bytes": 10_000}
        async with a_house_at_zero(tmp_path, held=held) as (running, _):
            running.house.cold.starts(NAME).took(77.0)
            waiter = await a_waiter(running, a_post())
            refused = await running.ask(a_post())
            assert (refused.status, refused.code) == (503, "queue_full")
            assert int(refused.header("retry-after") or 0) in (76, 77)
            scrape = (await running.ask(a_get("/metrics"), method="GET")).body
            assert b'gateway_held_requests{model="m"} 1.0' in scrape
            assert b'gateway_cold_starts_total{model="m"} 1.0' in scrape
            assert b'gateway_cold_start_seconds_total{model="m"} 77.0' in scrape
            waiter.abort()
            await running.until_quiet()
            assert running.outcomes == {Outcome.CLIENT_GONE: 1, Outcome.REJECTED: 1}

    run(law())


@pytest.mark.parametrize("stream", [False, True])
def test_whom_nobody_comes_for_is_sent_away_in_time(tmp_path: Path, stream: bool) -> None:
    async def law() -> None:
        async with a_house_at_zero(tmp_path, max_hold_s=0.3) as (running, _):
            began_at = time.monotonic()
            if stream:
                wire = await a_waiter(running, A_STREAM)
                await wire.head()
                assert b"waited_too_long" in await the_rest(wire)
                await wire.close()
            else:
                answer = await running.ask(a_post())
                assert (answer.status, answer.code) == (503, "waited_too_long")
                assert answer.header("retry-after")
            assert 0.3 <= time.monotonic() - began_at < 2.0
            await running.until_quiet()
            assert running.outcomes == {Outcome.EVICTED: 1}

    run(law())


def test_a_deadline_holds_while_it_waits(tmp_path: Path) -> None:
    async def law() -> None:
        async with a_house_at_zero(tmp_path) as (running, _):
            late = await running.ask(a_post(headers=[("X-Headrace-Deadline-Ms", "200")]))
            assert (late.status, late.code) == (504, "deadline_missed")

    run(law())


def test_a_batch_wakes_its_model_with_one_line(tmp_path: Path) -> None:
    async def law() -> None:
        kept = {"batch": {"folder": str(tmp_path / "kept")}}
        async with (
            a_house_at_zero(tmp_path, **kept) as (running, fleet),
            a_client(running) as client,
        ):
            batch = await a_batch(client, a_file(a_line(f"{n}") for n in range(20)))
            await until(lambda: running.house.cold.held, within_s=10.0)
            await asyncio.sleep(0.2)
            assert running.house.cold.held == 1
            assert running.house.demands.demand(NAME).is_active
            async with running_sim(a_sim()) as sim:
                fleet.write(sim)
                batch = await ended(client, batch)
            assert batch.status == "completed"
            assert batch.request_counts is not None
            assert batch.request_counts.completed == 20

    run(law())


def test_other_names_are_not_found_once_a_replica_says_what_it_serves(tmp_path: Path) -> None:
    async def law() -> None:
        async with a_house_at_zero(tmp_path) as (running, fleet), running_sim(a_sim("o")) as sim:
            fleet.write(sim)
            await until(lambda: running.house.roster.serving(ModelName("o")))
            unknown = await running.ask(a_post(a_chat(model="nobody")))
            assert unknown.status == 404
            waiter = await a_waiter(running, a_post())
            waiter.abort()
            await running.until_quiet()

    run(law())


def test_clients_come_and_go_while_replicas_do_and_each_has_one_outcome(tmp_path: Path) -> None:
    """A hundred clients, half of whom leave at any time, and a fleet that flickers."""
    rng = Random(5)

    async def client(running: RunningHouse) -> int:
        await asyncio.sleep(rng.uniform(0.0, 1.5))
        wire = await running.connect()
        await wire.send(rng.choice((A_STREAM, a_post())))
        try:
            async with asyncio.timeout(rng.choice((rng.uniform(0.0, 1.0), 20.0))):
                return (await wire.reply(within_s=20.0)).status
        except TimeoutError:
            wire.abort()
            return 0
        finally:
            await wire.close()

    async def flicker(fleet: Fleet, sim: Sim) -> None:
        while True:
            fleet.write(sim)
            await asyncio.sleep(rng.uniform(0.1, 0.4))
            fleet.write()
            await asyncio.sleep(rng.uniform(0.1, 0.4))

    async def law() -> None:
        async with a_house_at_zero(tmp_path) as (running, fleet), running_sim(a_sim()) as sim:
            flickering = asyncio.create_task(flicker(fleet, sim))
            statuses = await asyncio.gather(*(client(running) for _ in range(100)))
            flickering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await flickering
            fleet.write(sim)
            await running.until_quiet()
            assert set(statuses) <= {0, 200}, statuses
            assert statuses.count(200) >= 40
            assert set(running.outcomes) <= {Outcome.FINISHED, Outcome.CLIENT_GONE}

    run(law())
