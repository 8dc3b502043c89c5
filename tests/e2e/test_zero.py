"""From zero to one: a held request is pushed to KEDA's side, which starts a real replica for it.

The same replica is then put to sleep, and woken by the next request. vLLM on CPU keeps its weights
where they are (level 0: it computes nothing until it is woken); the routes are the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc.aio
import httpx
import pytest
import yaml

from serving.engine_args import EngineKind
from serving.machine import choose_engine, look
from tests.e2e.conftest import CHAT, START_LIMIT_S, Process, free_port
from tests.keda_client import a_ref, stubs

PUSHED_WITHIN_S = 0.05
BODY = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 5,
    "stream": True,
}


@contextmanager
def a_process(
    command: Sequence[str], log: Path, **environ: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A command of `headrace`, ended with all that it started."""
    whole = [sys.executable, "-m", "gateway", *command]
    with log.open("wb") as sink:
        process = subprocess.Popen(whole, stdout=sink, stderr=sink, env={**os.environ, **environ})
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


class Zero:
    """A gateway that knows a model and has no replica, and what stands for KEDA and Kubernetes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.keda_port, self.replica_port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.replica_url = f"http://127.0.0.1:{self.replica_port}"
        self.fleet = folder / "fleet.yaml"
        self._tell([])
        settings = {
            "accept": {"port": self.port},
            "fleet": {
                "file": str(self.fleet),
                "watch_every_s": 0.2,
                "probe_every_s": 0.5,
                "sleep_mode": True,
                "models": [{"name": CHAT, "max_hold_s": START_LIMIT_S}],
            },
            "hold": {"comment_every_s": 1},
            "scale": {"linger_s": 2, "keda": {"port": self.keda_port}},
        }
        self.settings = folder / "settings.yaml"
        self.settings.write_text(yaml.safe_dump(settings))

    def _tell(self, urls: Sequence[str]) -> None:
        (self.folder / "new").write_text(yaml.safe_dump({"replicas": [*urls]}))
        os.replace(self.folder / "new", self.fleet)

    def scale_to_one(self, running: ExitStack) -> subprocess.Popen[bytes]:
        """As KEDA and a Deployment would: a pod is made, and discovery hears of it at once."""
        command = ["replica", "--port", str(self.replica_port), "--kv-cache-mib", "256"]
        log = self.folder / "replica.log"
        pod = running.enter_context(a_process(command, log, VLLM_SERVER_DEV_MODE="1"))
        self._tell([self.replica_url])
        return pod

    async def until_it_is_up(self, client: httpx.AsyncClient) -> None:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.1)

    async def put_to_sleep(self, client: httpx.AsyncClient) -> None:
        """Until the gateway has seen that it sleeps."""
        (await client.post(f"{self.replica_url}/sleep?level=0")).raise_for_status()
        async with asyncio.timeout(30):
            while await self.health(client) != "asleep":
                await asyncio.sleep(0.1)

    async def health(self, client: httpx.AsyncClient) -> str:
        """The replica's, as the gateway sees it."""
        (replica,) = (await client.get("/debug/fleet")).json()["replicas"]
        return str(replica["health"])


@pytest.fixture
def zero(tmp_path: Path) -> Iterator[Zero]:
    choice = choose_engine(look(), None)
    if choice.kind is EngineKind.SIM:
        pytest.skip(f"no real engine here: {choice.reason}")
    made = Zero(tmp_path)
    with a_process(["gateway", "--settings", str(made.settings)], tmp_path / "gateway.log"):
        yield made


def test_a_held_request_starts_a_replica_and_is_answered_by_it(zero: Zero) -> None:
    async def law(running: ExitStack) -> None:
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{zero.keda_port}") as channel,
            httpx.AsyncClient(base_url=zero.url, trust_env=False, timeout=START_LIMIT_S) as client,
        ):
            await zero.until_it_is_up(client)
            keda = stubs()[1].ExternalScalerStub(channel)
            assert not (await keda.IsActive(a_ref(model=CHAT))).result
            pushes = keda.StreamIsActive(a_ref(model=CHAT))
            pushed = asyncio.create_task(pushes.read())
            models = (await client.get("/v1/models")).json()["data"]
            assert [model["id"] for model in models] == [CHAT]
            await asyncio.sleep(0.5)
            assert not pushed.done()

            asked_at = time.monotonic()
            held = asyncio.create_task(client.post("/v1/chat/completions", json=BODY))
            assert (await pushed).result
            pushed_s = time.monotonic() - asked_at
            pod = zero.scale_to_one(running)
            (spec,) = (await keda.GetMetricSpec(a_ref(model=CHAT))).metricSpecs
            asked = stubs()[0].GetMetricsRequest(
                scaledObjectRef=a_ref(model=CHAT), metricName=spec.metricName
            )
            (value,) = (await keda.GetMetrics(asked)).metricValues
            assert value.metricValueFloat >= 1.0
            while not held.done():
                assert pod.poll() is None, (zero.folder / "replica.log").read_text()
                assert (await pushes.read()).result, "it is said again while the replica loads"

            answer = held.result()
            assert answer.status_code == 200
            assert answer.text.startswith(": ")
            assert answer.text.endswith("data: [DONE]\n\n")
            ended = Process(zero.url, 0).metric("gateway_requests_total", outcome="finished")
            assert ended == 1.0
            print(f"\npushed after {pushed_s * 1000:.1f} ms, ", end="")
            print(f"answered after {time.monotonic() - asked_at:.1f} s")
            assert pushed_s < PUSHED_WITHIN_S

            await zero.put_to_sleep(client)
            asked_at = time.monotonic()
            answer = await client.post("/v1/chat/completions", json=BODY)
            assert (answer.status_code, await zero.health(client)) == (200, "healthy")
            print(f"asleep, answered after {time.monotonic() - asked_at:.2f} s")

            async with asyncio.timeout(30):  # and nothing is left that would keep it from zero
                while (await keda.IsActive(a_ref(model=CHAT))).result:
                    await asyncio.sleep(0.2)
            pushes.cancel()

    with ExitStack() as running:
        asyncio.run(law(running))
