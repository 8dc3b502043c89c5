"""Faults of the simulated replica, byte by byte."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any

import httpx
import pytest

from serving.sim.engine import FinishReason
from serving.sim.server import Sim, SimSettings, running_sim
from tests.integration.sim_clients import SLOW, chat, clients, run, until


def raw_request(body: dict[str, Any]) -> bytes:
    """A POST after whose answer the connection ends."""
    content = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content)
    return head + content


async def raw_answer(sim: Sim, body: dict[str, Any]) -> tuple[bytes, bool]:
    """Everything the replica sends, and whether it ended in a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
    writer.write(raw_request(body))
    received, is_reset = b"", False
    try:
        while data := await reader.read(65536):
            received += data
    except ConnectionResetError:
        is_reset = True
    writer.close()
    await asyncio.wait({asyncio.ensure_future(_closed(writer))})
    return received, is_reset


async def _closed(writer: asyncio.StreamWriter) -> None:
    try:
        await writer.wait_closed()
    except ConnectionResetError:
        return


def test_a_reset_comes_after_so_many_events() -> None:
    async def test() -> None:
        async with running_sim(SimSettings()) as sim:
            sim.faults.merge({"reset": {"after_chunks": 3, "next": 1}})
            received, is_reset = await raw_answer(sim, chat(True))
            assert is_reset
            assert received.count(b"data: {") == 3
            await until(lambda: not sim.engine.has_work)
            received, is_reset = await raw_answer(sim, chat(True))
            assert not is_reset
            assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")

    run(test)


@pytest.mark.parametrize("stream", [True, False])
def test_a_truncated_answer_ends_inside_what_it_announced(stream: bool) -> None:
    async def test() -> None:
        async with running_sim(SimSettings()) as sim:
            sim.faults.merge({"truncate": {"after_chunks": 2}})
            received, is_reset = await raw_answer(sim, chat(stream))
            assert not is_reset
            head, _, body = received.partition(b"\r\n\r\n")
            if stream:
                assert body.count(b"data: {") == 3
                announced, _, rest = body.split(b"\n\n\r\n")[-1].partition(b"\r\n")
                assert 0 < len(rest) < int(announced, 16)
            else:
                announced = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                assert 0 < len(body) < int(announced)

    run(test)


def test_garbage_and_dropped_connections_hold_no_http() -> None:
    async def test() -> None:
        async with running_sim(SimSettings()) as sim:
            sim.faults.merge({"garbage": {"next": 1}, "drop": {"next": 1}})
            assert await raw_answer(sim, chat()) == (b"", False)
            received, _ = await raw_answer(sim, chat())
            assert received
            assert not received.startswith(b"HTTP")

    run(test)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("where", ["before_head", "after_head"])
def test_a_stuck_request_hangs_until_its_client_leaves(where: str, stream: bool) -> None:
    async def test() -> None:
        async with clients() as (sim, web):
            sim.faults.merge({"stuck": {"where": where, "next": 1}})
            got_head = asyncio.Event()

            async def ask() -> None:
                async with web.stream("POST", "/v1/chat/completions", json=chat(stream)) as answer:
                    got_head.set()
                    async for _ in answer.aiter_bytes():
                        raise AssertionError("a stuck request sent a body")

            asking = asyncio.create_task(ask())
            done, _ = await asyncio.wait({asking}, timeout=0.2)
            assert not done
            assert got_head.is_set() == (where == "after_head")
            asking.cancel()
            await asyncio.wait({asking})
            assert (await web.post("/v1/chat/completions", json=chat())).status_code == 200
            await until(lambda: not sim.engine.has_work)

    run(test)


def test_faults_are_set_over_http_and_struck_requests_are_refused() -> None:
    async def test() -> None:
        async with clients() as (_, web):
            set_to = await web.post("/sim/faults", json={"refuse": {"status": 500, "next": 2}})
            assert set_to.json() == {"refuse": {"next": 2, "ratio": 1.0, "status": 500}}
            statuses = [
                (await web.post("/v1/chat/completions", json=chat())).status_code for _ in range(3)
            ]
            assert statuses == [500, 500, 200]
            assert (await web.post("/sim/faults", json={"nonsense": 1})).status_code == 400
            await web.post("/sim/faults", json={"health": {"status": 503}})
            assert (await web.get("/health")).status_code == 503
            await web.delete("/sim/faults")
            assert (await web.get("/health")).status_code == 200
            await web.post("/sim/faults", json={"health": {"hangs": True}})
            with pytest.raises(httpx.ReadTimeout):
                await web.get("/health", timeout=0.1)

    run(test)


def test_a_crashed_replica_refuses_connections_until_it_is_revived() -> None:
    async def test() -> None:
        async with clients(SLOW) as (sim, web):
            asking = asyncio.create_task(
                web.post("/v1/chat/completions", json=chat(True, tokens=500))
            )
            await until(lambda: sim.engine.running == 1)
            sim.crash("exit")
            with pytest.raises(httpx.RemoteProtocolError):
                await asking
            with pytest.raises(httpx.ConnectError):
                await web.get("/health")
            await until(lambda: not sim.engine.has_work)
            await sim.revive()
            assert (await web.get("/health")).status_code == 200

    run(test)


def test_dropped_connections_end_but_new_ones_are_served() -> None:
    async def test() -> None:
        async with clients(SLOW) as (sim, web):
            asking = asyncio.create_task(
                web.post("/v1/chat/completions", json=chat(True, tokens=500))
            )
            await until(lambda: sim.engine.running == 1)
            async with httpx.AsyncClient(base_url=sim.url) as admin:
                await admin.post("/sim/faults", json={"crash": "drop"})
            with pytest.raises(httpx.HTTPError):
                await asking
            assert (await web.get("/health")).status_code == 200

    run(test)


def test_after_a_storm_of_faults_and_leavers_nothing_is_held(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chance = Random(7)

    async def one(sim: Sim) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        words = "word " * chance.randrange(1, 300)
        message = {"role": "user", "content": words}
        body = chat(chance.random() < 0.6, chance.randrange(1, 60), messages=[message])
        writer.write(raw_request(body))
        is_patient = chance.random() < 0.5
        try:
            async with asyncio.timeout(20 if is_patient else chance.random() * 0.3):
                await reader.read(-1 if is_patient else chance.randrange(1, 3000))
        except (TimeoutError, ConnectionResetError):
            pass
        writer.transport.abort()

    async def test() -> None:
        async with running_sim(SimSettings(blocks=300, max_num_seqs=24)) as sim:
            kinds = ("reset", "truncate", "drop", "garbage")
            sim.faults.merge({kind: {"ratio": 0.06} for kind in kinds})
            await asyncio.gather(*(one(sim) for _ in range(400)))
            await until(lambda: not sim.engine.has_work and not sim.connections)
            sim.engine.check()
            assert sim.engine.pool.used == 0
            assert sim.engine.totals.finished[FinishReason.ABORT] > 0
            assert sim.engine.totals.finished[FinishReason.LENGTH] > 0

    run(test)
    assert [record.getMessage() for record in caplog.records] == []


def test_a_replica_leaves_in_the_middle_of_its_work_without_a_trace() -> None:
    async def test() -> None:
        async with clients(SLOW) as (sim, web):
            asking = [
                asyncio.create_task(web.post("/v1/chat/completions", json=chat(stream, tokens=900)))
                for stream in (True, False)
            ]
            await until(lambda: sim.engine.running == 2)
        done, _ = await asyncio.wait(asking)
        assert all(task.exception() for task in done)
        assert not sim.engine.has_work

    run(test)
