"""A whole gateway whose replicas are pods: what its clients see of their coming and going."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.fleet import pod_prices
from gateway.vocabulary import Health
from tests.builders import a_chat, a_get, a_post
from tests.house import RunningHouse, run, running_house, until
from tests.kube.cluster import Cluster, Key
from tests.kube.makings import NAMESPACE, a_pod, a_workload, pod_key
from tests.kube.server import ApiServer, running_api_server
from tests.scripted import Held, Scripted, a_reply

ADDRESSES = ("127.0.1.1", "127.0.1.2")


@asynccontextmanager
async def pods_and_a_gateway(
    folder: Path, script: Held, server: ApiServer | None = None, **knobs: Any
) -> AsyncIterator[tuple[Cluster, Scripted, RunningHouse]]:
    """No pod yet; each will be one of ADDRESSES, and will answer by the script."""
    pods = Scripted(script, hosts=ADDRESSES)
    async with running_api_server(server) as api, pods.running():
        kubernetes = {
            "enabled": True,
            "kubeconfig": str(api.kubeconfig(folder)),
            "port": pods.port,
            **knobs,
        }
        settings: dict[str, dict[str, Any]] = {
            "fleet": {"kubernetes": kubernetes},
            "hold": {"max_sequences": 1},
        }
        async with running_house(settings, []) as house:
            yield api.cluster, pods, house


def test_a_pod_told_to_go_finishes_its_stream_and_who_waits_for_it_goes_elsewhere(
    tmp_path: Path,
) -> None:
    async def law() -> None:
        script = Held()
        async with pods_and_a_gateway(tmp_path, script) as (cluster, _, house):
            cluster.create(Key("apps", "deployments", NAMESPACE, "m"), a_workload("m", "m", 1))
            cluster.create(pod_key("a"), a_pod("a", ADDRESSES[0]))
            await until(lambda: house.replicas and house.replicas[0].takes_work)
            first = house.replicas[0]
            async with house.wire() as stream, house.wire() as waiting:
                await stream.send(a_post(a_chat("held", stream=True)))
                head = await stream.head()
                await waiting.send(a_post())
                await until(lambda: sum(house.house.waiting.values()) == 1)
                going = a_pod("a", ADDRESSES[0])
                going["metadata"]["deletionTimestamp"] = "2026-11-26T00:00:00Z"
                cluster.replace(pod_key("a"), going)
                await until(lambda: first.health is Health.DRAINING)
                assert sum(house.house.waiting.values()) == 0  # it waits for any pod now
                cluster.create(pod_key("b"), a_pod("b", ADDRESSES[1]))
                assert (await waiting.reply()).status == 200
                assert head.status == 200
                script.released.set()
                body = b"".join([chunk async for chunk in stream.chunks()])
                assert body == script.HALF + script.REST
            await until(lambda: first not in house.replicas)
            await house.until_quiet()

    run(law())


def test_a_model_at_zero_is_listed_waited_for_and_served_by_its_first_pod(tmp_path: Path) -> None:
    async def law() -> None:
        async with pods_and_a_gateway(tmp_path, Held()) as (cluster, _, house):
            cluster.create(Key("apps", "deployments", NAMESPACE, "m"), a_workload("m", "m", 0))
            await until(house.house.models)
            listed = await house.ask(a_get("/v1/models"), method="GET")
            assert [each["id"] for each in listed.json()["data"]] == ["m"]
            async with house.wire() as wire:
                await wire.send(a_post())
                await until(lambda: house.house.accounts.open_entries == 1)
                cluster.create(pod_key("a"), a_pod("a", None, ready=False))
                cluster.merge(pod_key("a"), a_pod("a", ADDRESSES[0], ready=False))
                await until(lambda: len(house.replicas) == 1)
                assert house.replicas[0].health is Health.JOINING
                assert "m" in house.replicas[0].models
                demand = (await house.ask(a_get("/scale/m"), method="GET")).json()
                assert (demand["replicas_loading"], demand["is_active"]) == (1, True)
                cluster.merge(pod_key("a"), a_pod("a", ADDRESSES[0]))
                assert (await wire.reply()).body == b'{"ok": true}'

    run(law())


def test_a_gateway_before_the_first_model_is_ready_to_say_so(tmp_path: Path) -> None:
    """Or it could not be installed first."""

    async def law() -> None:
        script = Held(a_reply())
        async with pods_and_a_gateway(tmp_path, script) as (cluster, _, house):
            await until(lambda: house.house.is_ready)
            assert (await house.ask(a_post())).status == 503
            cluster.create(pod_key("a"), a_pod("a", ADDRESSES[0]))
            await until(lambda: house.replicas and house.replicas[0].takes_work)
            assert (await house.ask(a_post())).status == 200

    run(law())


def test_a_kind_that_the_cluster_does_not_know_is_not_waited_for(tmp_path: Path) -> None:
    async def law() -> None:
        server = ApiServer()
        del server.kinds["leaderworkerset.x-k8s.io", "v1", "leaderworkersets"]
        async with pods_and_a_gateway(tmp_path, Held(), server) as (_, _, house):
            await until(lambda: house.house.is_ready)

    run(law())


def test_a_pod_whose_cache_holds_much_is_not_the_first_to_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_prices, "LOOK_EVERY_S", 0.05)
    annotation = "controller.kubernetes.io/pod-deletion-cost"

    async def law() -> None:
        async with pods_and_a_gateway(tmp_path, Held(), deletion_cost=True) as (cluster, _, house):
            cluster.create(pod_key("a"), a_pod("a", ADDRESSES[0], owner="rs"))
            await until(lambda: house.replicas and house.replicas[0].takes_work)
            assert (await house.ask(a_post(a_chat("once upon a time " * 10_000)))).status == 200
            cluster.create(pod_key("b"), a_pod("b", ADDRESSES[1], owner="rs"))
            await until(lambda: annotation in cluster.get(pod_key("a"))["metadata"]["annotations"])
            assert int(cluster.get(pod_key("a"))["metadata"]["annotations"][annotation]) > 0
            assert annotation not in cluster.get(pod_key("b"))["metadata"]["annotations"]

    run(law())


def test_a_model_that_nothing_is_there_for_is_not_found(tmp_path: Path) -> None:
    async def law() -> None:
        async with pods_and_a_gateway(tmp_path, Held(a_reply())) as (cluster, _, house):
            cluster.create(pod_key("a"), a_pod("a", ADDRESSES[0]))
            await until(lambda: house.replicas and house.replicas[0].takes_work)
            assert (await house.ask(a_post(a_chat(model="n")))).status == 404

    run(law())
