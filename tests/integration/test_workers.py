"""`headrace gateway --workers N`: real processes on one port, which are one gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.sim.server import running_sim
from tests.builders import a_chat, a_get, a_post
from tests.house import Answer, Wire, a_sim, run, until
from tests.keyed import ACME, a_document

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel is to share a port")

KEY = ("authorization", f"Bearer {ACME.key}")


class Workers:
    """The supervisor's process, and where its workers answer."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    @property
    def pids(self) -> list[int]:
        """Of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        """A connection of its own, to any of them."""
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            yield wire
        finally:
            await wire.close()

    async def ask(self, data: bytes, *, method: str = "POST") -> Answer:
        """One exchange on a new connection."""
        async with self.wire() as wire:
            await wire.send(data)
            return await wire.reply(method=method)

    async def counted(self, name: str) -> float:
        """The sum of a metric's samples, by whichever worker."""
        text = (await self.ask(a_get("/metrics"), method="GET")).body.decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        )

    async def is_ready(self) -> bool:
        """Every connection of many finds a worker that takes work."""
        try:
            answers = [await self.ask(a_get("/readyz"), method="GET") for _ in range(12)]
        except (OSError, asyncio.IncompleteReadError):
            return False
        return all(each.status == 200 for each in answers)

    async def until_ready(self, count: int) -> None:
        async with asyncio.timeout(50):
            while len(self.pids) != count or not await self.is_ready():
                await asyncio.sleep(0.05)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def command(port: int, count: int, url: str) -> Sequence[str]:
    return (
        *(sys.executable, "-m", "gateway", "gateway", "--port", str(port), "--replica", url),
        *("--workers", str(count), "--access-log", "off", "--policy", "least-work"),
    )


@asynccontextmanager
async def workers(count: int, url: str, **environ: str) -> AsyncIterator[Workers]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *command(port, count, url), env={**os.environ, **environ}
    )
    try:
        made = Workers(process, port)
        await made.until_ready(count)
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(20):
            await process.wait()


def is_alive(pid: int) -> bool:
    """And no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_scrape_adds_all_up_and_nothing_is_lost_when_a_worker_is_killed() -> None:
    async def law() -> None:
        async with running_sim(a_sim()) as sim, workers(3, sim.url) as all_:
            for _ in range(30):
                assert (await all_.ask(a_post(a_chat(max_tokens=1)))).status == 200
            assert await all_.counted("gateway_requests_received_total") == 30
            assert await all_.counted("gateway_request_duration_seconds_count") == 30
            before = all_.pids
            os.kill(before[0], signal.SIGKILL)
            await until(lambda: set(all_.pids) != set(before) and len(all_.pids) == 3)
            await all_.until_ready(3)
            assert await all_.counted("gateway_requests_received_total") == 30
            for _ in range(10):
                assert (await all_.ask(a_post(a_chat(max_tokens=1)))).status == 200
            assert await all_.counted("gateway_requests_received_total") == 40

    run(law())


def test_each_worker_knows_what_the_others_have_in_flight() -> None:
    async def law() -> None:
        async with (
            running_sim(a_sim(speed=0.0005)) as sim,
            workers(2, sim.url) as both,
            AsyncExitStack() as stack,
        ):
            for _ in range(8):
                wire = await stack.enter_async_context(both.wire())
                await wire.send(a_post(a_chat(max_tokens=500, stream=True)))
                assert (await wire.head()).status == 200

            async def inflight() -> int:
                """By whoever answers."""
                fleet = (await both.ask(a_get("/debug/fleet"), method="GET")).json()
                found: int = fleet["replicas"][0]["inflight_requests"]
                return found

            async with asyncio.timeout(20):
                while {await inflight() for _ in range(8)} != {8}:
                    await asyncio.sleep(0.05)
            assert await both.counted("gateway_replica_inflight_requests") == 8

    run(law())


def test_limits_are_of_all_workers_together(tmp_path: Path) -> None:
    async def law() -> None:
        path = tmp_path / "tenants.yaml"
        path.write_text(a_document({"requests_per_minute": 60}))
        async with (
            running_sim(a_sim()) as sim,
            workers(2, sim.url, GATEWAY__TENANTS__PATH=str(path)) as both,
        ):
            admitted, began = 0, time.perf_counter()

            async def hammer() -> None:
                nonlocal admitted
                async with both.wire() as wire:
                    while time.perf_counter() - began < 4.0:
                        await wire.send(a_post(a_chat(max_tokens=1), headers=[KEY]))
                        status = (await wire.reply()).status
                        admitted += status == 200
                        await asyncio.sleep(0.01)

            await asyncio.gather(*[hammer() for _ in range(8)])
            flowed = 60 * (1 + (time.perf_counter() - began) / 60)
            assert flowed * 0.95 <= admitted <= flowed * 1.05 + 1

    run(law())


def test_a_signal_drains_all_workers() -> None:
    async def law() -> None:
        async with (
            running_sim(a_sim(speed=0.02)) as sim,
            workers(2, sim.url) as both,
            AsyncExitStack() as stack,
        ):
            wires = [await stack.enter_async_context(both.wire()) for _ in range(6)]
            for wire in wires:
                await wire.send(a_post(a_chat(max_tokens=200, stream=True)))
                assert (await wire.head()).status == 200
            pids = both.pids
            both.process.terminate()
            for wire in wires:
                assert b"[DONE]" in b"".join([chunk async for chunk in wire.chunks()])
            async with asyncio.timeout(10):
                assert await both.process.wait() == 0
            assert not any(is_alive(pid) for pid in pids)

    run(law())


@pytest.mark.parametrize("after_s", [0.0, 0.5])
def test_a_signal_that_comes_before_they_listen_is_no_failure(after_s: float) -> None:
    async def law() -> None:
        process = await asyncio.create_subprocess_exec(
            *command(free_port(), 2, "http://127.0.0.1:9")
        )
        young = Workers(process, 0)
        await until(lambda: len(young.pids) == 2, within_s=20.0)
        await asyncio.sleep(after_s)
        process.terminate()
        async with asyncio.timeout(20):
            assert await process.wait() == 0

    run(law())


def test_workers_stop_when_their_supervisor_is_killed() -> None:
    async def law() -> None:
        async with running_sim(a_sim()) as sim, workers(2, sim.url) as both:
            pids = both.pids
            both.process.kill()
            await until(lambda: not any(is_alive(pid) for pid in pids), within_s=10.0)

    run(law())


def test_a_port_that_is_taken_is_said_to_be() -> None:
    async def law() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            process = await asyncio.create_subprocess_exec(
                *command(taken.getsockname()[1], 2, "http://127.0.0.1:9"),
                stderr=asyncio.subprocess.PIPE,
            )
            _, said = await process.communicate()
            assert process.returncode == 2
            assert b"in use" in said

    run(law())


def test_what_cannot_be_started_at_all_is_not_started_again_and_again(tmp_path: Path) -> None:
    async def law() -> None:
        process = await asyncio.create_subprocess_exec(
            *command(free_port(), 2, "http://127.0.0.1:9"),
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "GATEWAY__TENANTS__PATH": str(tmp_path / "nothing.yaml")},
        )
        _, said = await process.communicate()
        assert process.returncode == 2
        assert b"nothing.yaml" in said

    run(law())
