"""How a gateway leaves: nothing new, what runs may finish, and what is left is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn

from gateway.server import Server
from gateway.vocabulary import Outcome
from serving.sim.server import running_sim
from tests.builders import a_chat, a_get, a_post
from tests.house import RunningHouse, Wire, a_sim, run, running_house, until
from tests.misbehaving import RARELY

GRACE = {"admit": {"drain_grace_s": 10.0}}
A_STREAM = a_post(a_chat(stream=True, max_tokens=50, ignore_eos=True))
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


@asynccontextmanager
async def streaming(running: RunningHouse, *, slow: float) -> AsyncIterator[Wire]:
    """A client in the middle of a stream."""
    running.sims[0].faults.merge({"slow": slow})
    async with running.wire() as wire:
        await wire.send(A_STREAM)
        head = await wire.head()
        assert head.status == 200
        yield wire


async def body_of(wire: Wire) -> bytes:
    """The rest of a chunked body; fails where it does not end as it should."""
    return b"".join([chunk async for chunk in wire.chunks()])


@LOOPS
def test_a_draining_gateway_refuses_new_work_and_finishes_the_old(loop: str) -> None:
    async def law() -> None:
        async with running_house(GRACE) as running:
            async with running.wire() as idle, streaming(running, slow=20) as wire:
                await idle.send(a_get("/readyz"))
                assert (await idle.reply(method="GET")).status == 200
                running.server.stop()
                await asyncio.sleep(0)
                await idle.send(a_get("/readyz"))
                assert (await idle.reply(method="GET")).status == 503
                fresh = await running.ask(a_get("/readyz"), method="GET")
                assert fresh.status == 503
                refused = await running.ask(a_post())
                assert (refused.status, refused.code) == (503, "draining")
                assert refused.header("retry-after") == "2"
                assert refused.header("connection") == "close"
                assert (await body_of(wire)).endswith(b"data: [DONE]\n\n")
                await until(lambda: not running.server.started or running.server.should_exit)
            assert running.outcomes == {Outcome.FINISHED: 1, Outcome.REJECTED: 1}
            assert running.reasons == {"draining": 1}

    run(law(), loop=loop)


@LOOPS
def test_when_the_grace_ends_a_stream_is_told_and_ended(loop: str) -> None:
    async def law() -> None:
        async with running_house({"admit": {"drain_grace_s": 0.2}}) as running:
            async with streaming(running, slow=200) as wire:
                began = time.perf_counter()
                running.server.stop()
                body = await body_of(wire)
                assert 0.15 < time.perf_counter() - began < 2.0
                assert await wire.rest() == b""
            last = body.strip().split(b"\n\n")[-1]
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "cut_short"
            await running.until_quiet()
            assert running.outcomes == {Outcome.FAILED: 1}
            assert running.reasons == {"cut_short": 1}

    run(law(), loop=loop)


def test_when_the_grace_ends_who_still_waits_is_told() -> None:
    async def law() -> None:
        async with running_house({**RARELY, "admit": {"drain_grace_s": 0.1}}) as running:
            running.sims[0].faults.merge({"stuck": {"where": "before_head"}})
            async with running.wire() as wire:
                await wire.send(a_post())
                await until(lambda: running.house.relay.busy)
                running.server.stop()
                reply = await wire.reply()
                assert (reply.status, reply.code) == (503, "cut_short")
                assert await wire.rest() == b""
            await running.until_quiet()
            await until(lambda: running.sims[0].connections == 0)

    run(law())


def test_a_gateway_with_nothing_to_do_leaves_at_once() -> None:
    async def law() -> None:
        async with running_house(GRACE) as running, running.wire() as idle:
            await idle.send(a_post())
            assert (await idle.reply()).status == 200
            began = time.perf_counter()
            running.server.stop()
            assert await idle.rest() == b""
            assert time.perf_counter() - began < 1.0

    run(law())


@asynccontextmanager
async def a_process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A gateway of its own, which answers, and the port it answers on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "gateway", "--port", str(port), *arguments),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "GATEWAY__ADMIT__DRAIN_GRACE_S": "30"},
    )
    try:
        async with asyncio.timeout(20):
            while not await is_ready(port):
                await asyncio.sleep(0.05)
        yield process, port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def is_ready(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    wire = Wire(reader, writer)
    await wire.send(a_get("/readyz"))
    status = (await wire.reply(method="GET")).status
    await wire.close()
    return status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_process_and_a_second_one_ends_it_at_once(number: int) -> None:
    async def law() -> None:
        async with (
            running_sim(a_sim()) as sim,
            a_process("--replica", sim.url) as (process, port),
        ):
            sim.faults.merge({"slow": 100})
            wire = Wire(*await asyncio.open_connection("127.0.0.1", port))
            await wire.send(A_STREAM)
            assert (await wire.head()).status == 200
            process.send_signal(number)
            await asyncio.sleep(0.3)
            assert process.returncode is None, "a stream is running, and its grace is long"
            began = time.perf_counter()
            process.send_signal(number)
            async with asyncio.timeout(5):
                await process.wait()
            assert time.perf_counter() - began < 2.0
            await until(lambda: not sim.engine.running)
            wire.abort()

    run(law(), within_s=40.0)


def test_a_process_that_has_drained_ends_with_success() -> None:
    async def law() -> None:
        async with (
            running_sim(a_sim()) as sim,
            a_process("--replica", sim.url) as (process, port),
        ):
            sim.faults.merge({"slow": 10})
            wire = Wire(*await asyncio.open_connection("127.0.0.1", port))
            await wire.send(A_STREAM)
            assert (await wire.head()).status == 200
            process.send_signal(signal.SIGTERM)
            assert (await body_of(wire)).endswith(b"data: [DONE]\n\n")
            async with asyncio.timeout(10):
                assert await process.wait() == 0
            await wire.close()

    run(law(), within_s=40.0)


def test_a_bug_while_it_leaves_keeps_it_from_nothing() -> None:
    class Stuck:
        async def drain(self) -> None:
            raise ZeroDivisionError

    async def law() -> None:
        async def app(scope: object, receive: object, send: object) -> None: ...

        server = Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None), Stuck())
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        server.stop()
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(serving, 5.0)

    run(law())
