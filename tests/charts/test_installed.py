"""Releases that are really installed: helm against the stand-in, whose pods are real processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.charts.tools import Charts
from tests.house import run, until
from tests.kube.cluster import Key, Object, Place
from tests.kube.controllers import DEPLOYMENTS, PODS, is_ready
from tests.kube.rights import Account, rules_of
from tests.kube.services import SLICES
from tests.kube.world import World, running_world

OPEN: dict[str, Any] = {
    "replicas": 1,
    "settings": {
        "tenants": {"anonymous": True},
        "admit": {"drain_grace_s": 20},
        "fleet": {"probe_every_s": 0.2},
        "scale": {"linger_s": 1},
    },
}
SIM: dict[str, Any] = {
    "model": {"id": "sim-model"},
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
BODY = {"model": "sim-model", "prompt": "Hello", "max_tokens": 3}


@dataclass(frozen=True, slots=True)
class Site:
    """A world, and helm in it."""

    world: World
    charts: Charts
    kubeconfig: Path

    async def install(self, release: str, chart: str, values: dict[str, Any], *words: str) -> str:
        """Install or upgrade, and wait until all of it is ready."""
        return await self.charts.install(
            self.kubeconfig, release, chart, values, "--wait", "--timeout", "30s", *words
        )

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

    def url(self, service: str, port: int = 8000) -> str:
        """Of one of the pods behind a Service."""
        return f"http://{self.world.services.addresses(f'{service}.models.svc')[0]}:{port}"


@asynccontextmanager
async def a_site(charts: Charts, folder: Path) -> AsyncIterator[Site]:
    """With no releases yet. What pods have written is told if it fails."""
    async with running_world(folder) as world:
        try:
            yield Site(world, charts, world.api.kubeconfig(folder))
        except BaseException:
            print(world.kubelet.said(""))
            raise


def test_a_model_at_zero_is_held_for_scaled_answered_and_scaled_back(
    charts: Charts, tmp_path: Path
) -> None:
    """One request, from nothing to nothing; and the gateway has asked the API for what its Role
    grants, all of it and nothing else."""

    async def law() -> None:
        async with (
            a_site(charts, tmp_path) as site,
            httpx.AsyncClient(trust_env=False, timeout=60) as client,
        ):
            await site.install("headrace", "gateway", OPEN)
            await site.charts.install(site.kubeconfig, "sim", "model", SIM | {"scaling": SCALED})
            cluster, keda = site.world.api.cluster, site.world.keda
            workload = Key(*DEPLOYMENTS, "models", "sim")
            await until(lambda: cluster.get(workload)["spec"]["replicas"] == 0, within_s=30)
            await until(lambda: not site.pods("sim"), within_s=20)
            keda.scaled.clear()

            front = site.url("headrace")
            listed = (await client.get(f"{front}/v1/models")).json()["data"]
            assert [each["id"] for each in listed] == ["sim-model"]
            held = asyncio.create_task(client.post(f"{front}/v1/completions", json=BODY))
            await until(lambda: keda.scaled)
            assert keda.scaled == [("sim", 1)]
            assert not held.done()
            answer = await held
            assert answer.json()["usage"]["completion_tokens"] == 3
            assert all(map(is_ready, site.pods("sim")))
            await until(lambda: keda.scaled[1:], within_s=20)
            assert keda.scaled == [("sim", 1), ("sim", 0)]
            await until(lambda: not site.pods("sim"), within_s=20)

            asked = site.world.api.asked_by[Account("models", "headrace")]
            (role,) = cluster.select(Place("rbac.authorization.k8s.io", "roles"))
            assert {(each.group, each.resource, each.verb) for each in asked} == rules_of(role)
            assert {each.namespace for each in asked} == {role["metadata"]["namespace"]}

    run(law(), within_s=110)


def test_releases_are_upgraded_rolled_back_and_uninstalled(charts: Charts, tmp_path: Path) -> None:
    """The gateway's, while a stream runs to its end through the old one; then the model's."""

    async def law() -> None:
        async with (
            a_site(charts, tmp_path) as site,
            httpx.AsyncClient(trust_env=False, timeout=60) as client,
        ):
            await site.install("sim", "model", SIM)
            await site.install("headrace", "gateway", OPEN)
            old = site.url("headrace")
            await until_served(client, old)
            long = BODY | {"max_tokens": 200, "stream": True}
            async with client.stream("POST", f"{old}/v1/completions", json=long) as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                changed = OPEN | {
                    "settings": {**OPEN["settings"], "accept": {"max_body_bytes": 99}}
                }
                upgrade = asyncio.create_task(site.install("headrace", "gateway", changed))
                told = [line async for line in lines if line]
                assert told[-1] == "data: [DONE]"
            await upgrade
            new = site.url("headrace")
            assert new != old
            assert (await ask(client, new, prompt="x" * 100)).status_code == 413
            await site.helm("rollback", "headrace", "--wait", "--timeout", "30s")
            again = site.url("headrace")
            assert (await ask(client, again, prompt="x" * 100)).status_code == 200

            assert "Succeeded" in await site.helm("test", "headrace", "--timeout", "60s")
            renamed = SIM | {
                "model": {"id": "sim-model", "servedName": "other"},
                "test": {"answer": True},
            }
            await site.install("sim", "model", renamed)
            assert (await ask(client, again, model="other")).status_code == 200
            assert "Succeeded" in await site.helm("test", "sim", "--timeout", "60s")
            await site.helm("rollback", "sim", "--wait", "--timeout", "30s")
            assert (await ask(client, again)).status_code == 200
            await site.helm("uninstall", "sim")
            await site.helm("uninstall", "headrace")
            await until(lambda: not site.pods("sim") + site.pods("headrace"), within_s=30)
            assert not [*site.world.api.cluster.select(Place(*SLICES))]

    run(law(), within_s=150)


async def ask(client: httpx.AsyncClient, url: str, **changes: Any) -> httpx.Response:
    """Of the gateway, one short answer."""
    return await client.post(f"{url}/v1/completions", json=BODY | changes)


async def until_served(client: httpx.AsyncClient, url: str) -> None:
    """The gateway has found the model."""
    async with asyncio.timeout(20):
        while (await ask(client, url)).status_code != 200:
            await asyncio.sleep(0.1)
