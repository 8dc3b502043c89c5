"""A cluster that helm installs releases of the charts into, and what is put into it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.charts.tools import Charts
from tests.house import until
from tests.kube.cluster import Key, Object, Place
from tests.kube.controllers import PODS
from tests.kube.world import World, running_world

MODEL = "sim-model"
OPEN: dict[str, Any] = {
    "replicas": 1,
    "settings": {
        "tenants": {"anonymous": True},
        "admit": {"drain_grace_s": 20},
        "fleet": {"probe_every_s": 0.2, "kubernetes": {"enabled": True, "find": "both"}},
        "scale": {"linger_s": 1},
    },
}
SIM: dict[str, Any] = {
    "model": {"id": MODEL},
    "gpu": {"mode": "none"},
    "engine": {"kind": "sim", "kvEvents": False},
    "drain": {"seconds": 10},
}
SCALED: dict[str, Any] = {
    "enabled": True,
    "pollingSeconds": 1,
    "cooldownSeconds": 2,
    "initialCooldownSeconds": 0,
    "downStabilizationSeconds": 0,
}
BODY = {"model": MODEL, "prompt": "Hello", "max_tokens": 3}


@dataclass(frozen=True, slots=True)
class Site:
    """A world, and helm in it."""

    world: World
    charts: Charts
    kubeconfig: Path

    async def install(
        self, release: str, chart: str, values: dict[str, Any], within: str = "60s"
    ) -> str:
        """Install or upgrade, and wait until all of it is ready."""
        words = ("--wait", "--timeout", within)
        return await self.charts.install(self.kubeconfig, release, chart, values, *words)

    async def helm(self, *words: str) -> str:
        """Anything else."""
        return await self.charts.helm(self.kubeconfig, *words)

    def pods(self, release: str) -> list[Object]:
        """Of a release."""
        return [
            each
            for each in self.world.api.cluster.select(Place(*PODS))
            if each["metadata"]["labels"].get("app.kubernetes.io/instance") == release
        ]

    async def until_at_zero(self, workload: Key) -> None:
        """There shall be no replicas, and there are none."""
        cluster = self.world.api.cluster
        await until(lambda: cluster.get(workload)["spec"]["replicas"] == 0, within_s=60)
        await until(lambda: not self.pods(workload.name), within_s=30)

    def secret(self, name: str, data: Mapping[str, bytes]) -> None:
        """Somebody has put it there."""
        said = {key: base64.b64encode(value).decode() for key, value in data.items()}
        made: Object = {"apiVersion": "v1", "kind": "Secret", "data": said}
        self.world.api.cluster.create(Key("", "secrets", "models", name), made)

    def url(self, service: str, port: int = 8000) -> str:
        """Of one of the pods behind a Service."""
        return f"http://{self.world.services.addresses(f'{service}.models.svc')[0]}:{port}"


@asynccontextmanager
async def a_site(
    charts: Charts, folder: Path, images: Mapping[str, Mapping[str, str]] | None = None
) -> AsyncIterator[Site]:
    """With no releases yet. `images` is environment that images bring, by repository. What pods
    have written is told if it fails."""
    async with running_world(folder, images) as world:
        try:
            yield Site(world, charts, world.api.kubeconfig(folder))
        except BaseException:
            print(world.kubelet.said(""))
            raise


async def ask(client: httpx.AsyncClient, url: str, **changes: Any) -> httpx.Response:
    """Of the gateway, one short answer."""
    return await client.post(f"{url}/v1/completions", json=BODY | changes)


async def until_served(client: httpx.AsyncClient, url: str, model: str = MODEL) -> None:
    """The gateway has found the model."""
    async with asyncio.timeout(20):
        while (await ask(client, url, model=model)).status_code != 200:
            await asyncio.sleep(0.1)
