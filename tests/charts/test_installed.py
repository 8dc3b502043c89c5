"""Releases that are really installed: helm against the stand-in, whose pods are real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
import trustme

from tests.charts.site import BODY, OPEN, SCALED, SIM, a_site, ask, until_served
from tests.charts.tools import KUBERNETES, Charts, find
from tests.house import run, until
from tests.kube.cluster import Key, Place
from tests.kube.controllers import DEPLOYMENTS, GROUPS, PODS, is_ready
from tests.kube.rights import Account, rules_of
from tests.kube.services import SLICES

LIMIT_S = 280.0
"""Some 40 s on two cores that have other work to do; what is checked are steps, not times."""

pytestmark = pytest.mark.timeout(LIMIT_S + 20)


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
            await site.until_at_zero(Key(*DEPLOYMENTS, "models", "sim"))
            keda.scaled.clear()

            front = site.url("headrace")
            listed = (await client.get(f"{front}/v1/models")).json()["data"]
            assert [each["id"] for each in listed] == ["sim-model"]
            held = asyncio.create_task(client.post(f"{front}/v1/completions", json=BODY))
            await until(lambda: keda.scaled, within_s=20)
            assert keda.scaled == [("sim", 1)]
            assert not held.done()
            answer = await held
            assert answer.json()["usage"]["completion_tokens"] == 3
            assert all(map(is_ready, site.pods("sim")))
            await until(lambda: keda.scaled[1:], within_s=20)
            assert keda.scaled == [("sim", 1), ("sim", 0)]
            await until(lambda: not site.pods("sim"), within_s=20)

            # An upgrade of what sleeps does not wake it: the number is not the release's.
            changed = SIM | {"scaling": SCALED, "resources": {"cpu": "2"}}
            await site.charts.install(site.kubeconfig, "sim", "model", changed)
            workload = cluster.get(Key(*DEPLOYMENTS, "models", "sim"))
            assert workload["metadata"]["generation"] > 2
            assert workload["spec"]["replicas"] == 0

            asked = site.world.api.asked_by[Account("models", "headrace")]
            (role,) = cluster.select(Place("rbac.authorization.k8s.io", "roles"))
            assert {(each.group, each.resource, each.verb) for each in asked} == rules_of(role)
            assert {each.namespace for each in asked} == {role["metadata"]["namespace"]}

    run(law(), within_s=LIMIT_S)


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
            await site.helm("rollback", "headrace", "--wait", "--timeout", "60s")
            again = site.url("headrace")
            assert (await ask(client, again, prompt="x" * 100)).status_code == 200

            assert "Succeeded" in await site.helm("test", "headrace", "--timeout", "60s")
            polled = SIM | {"scaling": {"enabled": True, "trigger": "metrics-api"}}
            objects = charts.rendered("model", polled, KUBERNETES[-1])
            trigger = find(objects, "ScaledObject")["spec"]["triggers"][0]["metadata"]
            path = trigger["url"].removeprefix("http://headrace.models.svc:8000")
            told = (await client.get(again + path)).json()
            assert isinstance(told[trigger["valueLocation"]], float)
            renamed = SIM | {
                "model": {"id": "sim-model", "servedName": "other"},
                "test": {"answer": True},
            }
            await site.install("sim", "model", renamed)
            assert (await ask(client, again, model="other")).status_code == 200
            assert "Succeeded" in await site.helm("test", "sim", "--timeout", "60s")
            await site.helm("rollback", "sim", "--wait", "--timeout", "60s")
            assert (await ask(client, again)).status_code == 200
            await site.helm("uninstall", "sim")
            await site.helm("uninstall", "headrace")
            await until(lambda: not site.pods("sim") + site.pods("headrace"), within_s=30)
            assert not [*site.world.api.cluster.select(Place(*SLICES))]

    run(law(), within_s=LIMIT_S)


def test_a_group_of_pods_is_scaled_over_tls(charts: Charts, tmp_path: Path) -> None:
    """Each side of KEDA's questions shows a certificate that the other's Secret trusts; what is
    scaled is a LeaderWorkerSet, whose leader alone is a replica."""
    tls = {"enabled": True, "ca": {"secret": "roots"}, "clientSecret": "keda"}
    group = SIM | {
        "parallelism": {"tensor": 2},
        "gpu": {"mode": "devicePlugin", "count": 1},
        "scaling": SCALED | {"tls": tls},
    }

    async def law() -> None:
        async with (
            a_site(charts, tmp_path) as site,
            httpx.AsyncClient(trust_env=False, timeout=60) as client,
        ):
            authority = trustme.CA()
            roots = {"ca.crt": authority.cert_pem.bytes()}
            site.secret("roots", roots)
            site.secret("scaler", roots | a_pair(authority, "headrace-scaler.models.svc"))
            site.secret("keda", a_pair(authority, "keda"))
            scaler = {"secret": "scaler", "clientCa": True}
            await site.install("headrace", "gateway", OPEN | {"scalerTls": scaler})
            await site.charts.install(site.kubeconfig, "sim", "model", group)
            await site.until_at_zero(Key(*GROUPS, "models", "sim"))
            front = site.url("headrace")
            assert (await ask(client, front)).status_code == 200
            assert {each["metadata"]["name"] for each in site.pods("sim")} == {"sim-0", "sim-0-1"}
            (replica,) = (await client.get(f"{front}/debug/fleet")).json()["replicas"]
            leader = site.world.api.cluster.get(Key(*PODS, "models", "sim-0"))
            assert leader["status"]["podIP"] in replica["url"]

    run(law(), within_s=LIMIT_S)


def a_pair(authority: trustme.CA, name: str) -> dict[str, bytes]:
    """What is in a Secret of a certificate."""
    made = authority.issue_cert(name)
    return {
        "tls.crt": made.cert_chain_pems[0].bytes(),
        "tls.key": made.private_key_pem.bytes(),
    }
