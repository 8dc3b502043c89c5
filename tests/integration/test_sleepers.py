"""Engines that sleep: found out, not sent work, woken when somebody waits for them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from gateway.fleet.health import Sign
from gateway.fleet.roster import Roster
from gateway.fleet.sleepers import Sleepers
from gateway.settings import FleetSettings
from gateway.vocabulary import Health, ModelName, Outcome, ReplicaAddress
from serving.sim.server import Sim
from tests.builders import MODEL, a_chat, a_get, a_post
from tests.house import RunningHouse, a_sim, run, running_house, until
from tests.scripted import Scripted, a_reply

NAME = ModelName(MODEL)
SLEEPY = {"fleet": {"sleep_mode": True}}
SLOW = {"profile": "cpu-tiny", "mean_output_tokens": None}


async def ask(sim: Sim, path: str, method: str = "POST") -> Any:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.request(method, f"{sim.url}{path}")).json()


async def to_sleep(running: RunningHouse, *numbers: int) -> None:
    for number in numbers:
        await ask(running.sims[number], "/sleep?level=1")
    await until(
        lambda: [one.health for one in running.replicas].count(Health.ASLEEP) == len(numbers)
    )


def a_sleeper(**fields: Any) -> Any:
    return a_sim(sleep_mode=True, **fields)


def test_one_that_sleeps_is_known_and_woken_by_the_first_request() -> None:
    async def law() -> None:
        async with running_house(SLEEPY, [a_sleeper(wake_s=0.3)]) as running:
            await to_sleep(running, 0)
            assert (await running.ask(a_get("/readyz"), method="GET")).status == 200
            assert (await running.ask(a_get(f"/v1/models/{MODEL}"), method="GET")).status == 200
            began_at = time.monotonic()
            assert (await running.ask(a_post())).status == 200
            assert 0.3 <= time.monotonic() - began_at < 1.5
            assert running.replicas[0].health is Health.HEALTHY
            await running.until_quiet()
            assert running.outcomes == {Outcome.FINISHED: 1}

    run(law())


def test_while_another_is_awake_a_sleeper_is_let_alone() -> None:
    async def law() -> None:
        async with running_house(SLEEPY, [a_sleeper(), a_sleeper()]) as running:
            await to_sleep(running, 0)
            for _ in range(5):
                assert (await running.ask(a_post())).status == 200
            assert running.replicas[0].health is Health.ASLEEP

    run(law())


def test_one_is_woken_of_several() -> None:
    async def law() -> None:
        async with running_house(SLEEPY, [a_sleeper(wake_s=0.1), a_sleeper(wake_s=0.1)]) as running:
            await to_sleep(running, 0, 1)
            assert (await running.ask(a_post())).status == 200
            states = sorted(one.health for one in running.replicas)
            assert states == [Health.ASLEEP, Health.HEALTHY]

    run(law())


def test_where_the_first_does_not_wake_another_is_woken() -> None:
    async def law() -> None:
        async with running_house(SLEEPY, [a_sleeper(), a_sleeper()]) as running:
            await to_sleep(running, 0, 1)
            first = next(sim for sim in running.sims if sim.url == running.replicas[0].address.url)
            first.crash("exit")
            assert (await running.ask(a_post())).status == 200
            await first.revive()

    run(law())


def test_one_that_comes_back_asleep_takes_no_work_until_it_is_woken() -> None:
    async def law() -> None:
        async with running_house(SLEEPY, [a_sleeper()]) as running:
            (sim,) = running.sims
            sim.crash("exit")
            await until(lambda: running.replicas[0].health is Health.EJECTED)
            sim.runner.sleep(1)
            await sim.revive()
            await until(lambda: running.replicas[0].health is Health.ASLEEP)
            assert running.house.roster.known_at_zero(NAME) is not None
            assert (await running.ask(a_post())).status == 200

    run(law())


def test_one_that_is_found_asleep_while_its_model_is_waited_for_is_woken() -> None:
    async def law() -> None:
        settings = {"fleet": {"sleep_mode": True, "models": [MODEL]}}
        async with running_house(settings, [a_sleeper()]) as running:
            (sim,) = running.sims
            sim.crash("exit")
            await until(lambda: running.replicas[0].health is Health.EJECTED)
            asked = asyncio.create_task(running.ask(a_post()))
            await until(lambda: running.house.cold.held)
            sim.runner.sleep(1)
            await sim.revive()
            assert (await asked).status == 200

    run(law())


@pytest.mark.parametrize(
    "answer",
    [b'{"status": "\xff"}', b'{"x":' + b"[" * 100_000, b"[]", b"<html>"],
    ids=["not text", "too deep", "of another kind", "not JSON"],
)
def test_whatever_it_answers_is_a_waking_that_failed_and_is_tried_again(answer: bytes) -> None:
    async def law() -> None:
        async with Scripted(a_reply(answer)).running() as engine:
            roster = Roster(FleetSettings())
            roster.apply([ReplicaAddress(engine.url, (NAME,))], "static")
            (replica,) = roster.replicas
            roster.sign(replica, Sign.ASLEEP, 0.0)
            sleepers = Sleepers(roster, lambda _: not replica.takes_work, time.monotonic, None)
            waking = asyncio.create_task(sleepers.run())
            await asyncio.sleep(0)
            sleepers.wanted(NAME)
            await until(lambda: engine.received)
            engine.answer = a_reply(b'{"status": "awake", "tags": null}')
            await until(lambda: replica.takes_work)
            assert not waking.done()
            waking.cancel()

    run(law())


def test_what_is_wanted_of_one_that_has_ended_is_left_to_the_next() -> None:
    """As requests may still be held when the loops are over, and whoever listens must not raise."""

    async def law() -> None:
        async with Scripted(a_reply(b'{"status": "awake"}')).running() as engine:
            roster = Roster(FleetSettings())
            roster.apply([ReplicaAddress(engine.url, (NAME,))], "static")
            (replica,) = roster.replicas
            roster.sign(replica, Sign.ASLEEP, 0.0)
            sleepers = Sleepers(roster, lambda _: not replica.takes_work, time.monotonic, None)
            for _ in range(2):  # the second is cancelled before what is wanted of it has begun
                ended = asyncio.create_task(sleepers.run())
                await asyncio.sleep(0)
                sleepers.wanted(NAME)
                ended.cancel()
                await asyncio.wait([ended])
                sleepers.wanted(NAME)
            assert not engine.received
            waking = asyncio.create_task(sleepers.run())
            await asyncio.sleep(0)
            sleepers.wanted(NAME)
            await until(lambda: replica.takes_work)
            waking.cancel()

    run(law())


def test_what_another_gateway_has_woken_is_found_awake() -> None:
    async def law() -> None:
        async with running_house(SLEEPY, [a_sleeper()]) as running:
            await to_sleep(running, 0)
            await ask(running.sims[0], "/wake_up")
            await until(lambda: running.replicas[0].health is Health.HEALTHY)

    run(law())


def test_a_request_that_came_to_an_engine_asleep_is_not_left_there() -> None:
    """The gateway does not know yet that it sleeps."""

    async def law() -> None:
        async with running_house(SLEEPY, [a_sleeper()]) as running:
            running.sims[0].runner.sleep(1)
            assert running.replicas[0].takes_work
            assert (await running.ask(a_post(a_chat(stream=True)))).status == 200
            await running.until_quiet()
            assert running.outcomes == {Outcome.FINISHED: 1}

    run(law())


def test_engines_without_sleep_mode_are_taken_as_awake() -> None:
    async def law() -> None:
        async with running_house(SLEEPY, [a_sim()]) as running:
            assert (await running.ask(a_post())).status == 200

    run(law())


def test_the_simulator_sleeps_as_vllm_does() -> None:
    async def law() -> None:
        async with running_house({}, [a_sleeper(**SLOW), a_sim()]) as running:
            asleep, plain = running.sims
            assert (await ask(asleep, "/is_sleeping", "GET")) == {"is_sleeping": False}
            assert (await ask(asleep, "/sleep")) == {"status": "sleeping", "level": 1}
            assert (await ask(asleep, "/is_sleeping", "GET")) == {"is_sleeping": True}
            assert (await ask(asleep, "/wake_up")) == {"status": "awake", "tags": None}
            assert (await ask(asleep, "/is_sleeping", "GET")) == {"is_sleeping": False}
            assert "error" in await ask(plain, "/is_sleeping", "GET")

    run(law())


def test_what_runs_in_an_engine_that_is_put_to_sleep_is_aborted() -> None:
    async def law() -> None:
        async with running_house({}, [a_sleeper(**SLOW)]) as running:
            (sim,) = running.sims
            async with running.wire() as wire:
                await wire.send(a_post(a_chat(max_tokens=1000, stream=True)))
                await until(lambda: sim.engine.running)
                await ask(sim, "/sleep")
                assert b'"finish_reason":"abort"' in (await wire.reply()).body
            await ask(sim, "/wake_up")
            assert (await running.ask(a_post())).status == 200

    run(law())
