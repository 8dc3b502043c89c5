"""Discovery from Kubernetes, over real HTTP against a stand-in for its API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway.choose.policies import policy
from gateway.clock import monotonic
from gateway.fleet import pod_prices, watching
from gateway.fleet.discover_kubernetes import KubernetesDiscovery
from gateway.fleet.kubernetes_rights import rights
from gateway.fleet.roster import Roster
from gateway.section import SettingsError
from gateway.settings import ChooseSettings, FleetSettings, KubernetesSettings
from gateway.vocabulary import Health, ModelName, Role
from tests.house import run, until
from tests.kube.cluster import Cluster, Key, Trouble
from tests.kube.makings import NAMESPACE, a_pod, a_slice, a_workload, an_endpoint, pod_key
from tests.kube.server import ApiServer, running_api_server

CACHES = policy(ChooseSettings(policy="least-work"), Random(1))
"""Knows nothing of them."""


@pytest.fixture(autouse=True)
def _quick_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "BACK_OFF_S", 0.02)


class Following:
    """A discovery at work: its server, its cluster and the roster it tells."""

    def __init__(self, api: ApiServer, roster: Roster) -> None:
        self.api = api
        self.cluster: Cluster = api.cluster
        self.roster = roster

    def ids(self) -> list[str]:
        """Those that may be given work or may come to be, by host:port."""
        return sorted(r.id for r in self.roster.replicas if r.health is not Health.DRAINING)

    def put(self, *pods: dict[str, Any]) -> None:
        """Make pods, or change those that are there."""
        for pod in pods:
            key = pod_key(pod["metadata"]["name"], pod["metadata"]["namespace"])
            if key in self.cluster.objects:
                self.cluster.replace(key, pod)
            else:
                self.cluster.create(key, pod)


@asynccontextmanager
async def following(
    folder: Path, api: ApiServer | None = None, **knobs: Any
) -> AsyncIterator[Following]:
    async with running_api_server(api) as server:
        settings = KubernetesSettings(
            enabled=True, kubeconfig=str(server.kubeconfig(folder)), **knobs
        )
        roster = Roster(FleetSettings(kubernetes=settings))
        discovery = KubernetesDiscovery(settings, roster, CACHES, monotonic, Random(1))
        task = asyncio.create_task(discovery.run())
        try:
            yield Following(server, roster)
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()


def test_pods_come_change_and_go_as_their_watch_tells(tmp_path: Path) -> None:
    async def law() -> None:
        async with following(tmp_path) as it:
            it.put(a_pod("a", "10.0.0.1"), a_pod("other", "10.0.0.9", model=None))
            await until(lambda: it.ids() == ["10.0.0.1:8000"])
            it.put(a_pod("b", None, ready=False), a_pod("c", "10.0.0.3", ports={"http": 9000}))
            await until(lambda: it.ids() == ["10.0.0.1:8000", "10.0.0.3:9000"])
            it.put(a_pod("b", "10.0.0.2"))
            await until(lambda: len(it.ids()) == 3)
            it.cluster.delete(pod_key("a"))
            await until(lambda: it.ids() == ["10.0.0.2:8000", "10.0.0.3:9000"])
            it.put(a_pod("c", "10.0.0.3", model=None))  # its label is taken away
            await until(lambda: it.ids() == ["10.0.0.2:8000"])

    run(law())


def test_a_long_list_is_read_page_by_page(tmp_path: Path) -> None:
    api = ApiServer()
    for n in range(601):
        api.cluster.create(pod_key(f"p{n}"), a_pod(f"p{n}", f"10.0.{n // 200}.{n % 200 + 1}"))

    async def law() -> None:
        async with following(tmp_path, api) as it:
            await until(lambda: len(it.ids()) == 601)
            lists = [each for each in api.asked if each[:3] == ("list", "", "pods")]
            assert len(lists) == 3

    run(law())


def test_a_pod_that_is_being_deleted_is_drained_at_once(tmp_path: Path) -> None:
    async def law() -> None:
        async with following(tmp_path) as it:
            it.put(a_pod("a", "10.0.0.1"))
            await until(lambda: it.ids() == ["10.0.0.1:8000"])
            replica = it.roster.replicas[0]
            with replica.lease(10):  # a stream is under way
                going = a_pod("a", "10.0.0.1")
                going["metadata"]["deletionTimestamp"] = "2026-11-26T00:00:00Z"
                it.put(going)
                await until(lambda: replica.health is Health.DRAINING)
                assert it.roster.replicas == (replica,)
            assert not it.roster.replicas

    run(law())


def test_a_pod_that_is_not_ready_is_known_and_given_no_work(tmp_path: Path) -> None:
    from gateway.fleet.health import Sign

    async def law() -> None:
        async with following(tmp_path) as it:
            it.put(a_pod("a", "10.0.0.1", ready=False, annotations={"headrace.io/models": "m"}))
            await until(lambda: it.ids() == ["10.0.0.1:8000"])
            replica = it.roster.replicas[0]
            it.roster.sign(replica, Sign.PROBE_SUCCESS, 0.0)
            assert (replica.health, replica.takes_work) == (Health.JOINING, False)
            assert not it.roster.serving(ModelName("m"))
            it.put(a_pod("a", "10.0.0.1", annotations={"headrace.io/models": "m"}))
            await until(lambda: replica.takes_work)
            it.put(a_pod("a", "10.0.0.1", ready=False, annotations={"headrace.io/models": "m"}))
            await until(lambda: not replica.takes_work)
            assert replica.health is Health.JOINING

    run(law())


def test_what_a_pod_says_of_its_engine_is_taken_in(tmp_path: Path) -> None:
    said = {
        "headrace.io/models": "big, small",
        "headrace.io/role": "prefill",
        "headrace.io/scheme": "https",
        "headrace.io/port": "9443",
        "headrace.io/data-parallel-size": "2",
        "headrace.io/kv-events-port": "5557",
        "headrace.io/kv-replay-port": "5657",
    }

    async def law() -> None:
        async with following(tmp_path) as it:
            it.put(a_pod("a", "10.0.0.1", annotations=said))
            await until(lambda: len(it.ids()) == 2)
            first, second = (replica.address for replica in it.roster.replicas)
            assert first.models == ("big", "small")
            assert first.role is Role.PREFILL
            assert first.url == "https://10.0.0.1:9443"
            assert (first.rank, second.rank) == (0, 1)
            assert first.kv_events is not None
            assert second.kv_events is not None
            assert first.kv_events.endpoint == "tcp://10.0.0.1:5557"
            assert second.kv_events.endpoint == "tcp://10.0.0.1:5558"
            assert second.kv_events.replay_endpoint == "tcp://10.0.0.1:5658"

    run(law())


def test_a_pod_that_cannot_be_read_is_left_out_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[str]:
        return [each.getMessage() for each in caplog.records if "left out" in each.getMessage()]

    async def law() -> None:
        async with following(tmp_path, resync_s=0.1) as it:
            it.put(a_pod("a", "10.0.0.1", annotations={"headrace.io/role": "cook"}))
            it.put(a_pod("b", "10.0.0.2"))
            it.put({**a_pod("c", "10.0.0.3"), "status": ["nonsense"]})
            await until(lambda: it.ids() == ["10.0.0.2:8000"])
            await asyncio.sleep(0.4)
            assert len(said()) == 2
            it.put(a_pod("a", "10.0.0.1"))
            await until(lambda: len(it.ids()) == 2)

    run(law())


def test_only_leaders_of_groups_are_replicas(tmp_path: Path) -> None:
    index = "leaderworkerset.sigs.k8s.io/worker-index"

    async def law() -> None:
        async with following(tmp_path) as it:
            for n in range(3):
                it.put(a_pod(f"g-{n}", f"10.0.0.{n + 1}", labels={index: str(n)}))
            it.put(a_pod("alone", "10.0.0.9"))
            await until(lambda: it.ids() == ["10.0.0.1:8000", "10.0.0.9:8000"])
            await asyncio.sleep(0.1)
            assert len(it.ids()) == 2

    run(law())


def slice_key(name: str) -> Key:
    return Key("discovery.k8s.io", "endpointslices", NAMESPACE, name)


def test_what_is_behind_a_service_is_followed(tmp_path: Path) -> None:
    async def law() -> None:
        async with following(tmp_path, find="endpointslices") as it:
            ends = [an_endpoint("10.0.0.1"), an_endpoint("10.0.0.2", terminating=True)]
            it.cluster.create(slice_key("s"), a_slice("s", ends, ports={"api": 7000}))
            await until(lambda: it.ids() == ["10.0.0.1:7000"])
            assert not any(each.resource == "pods" for each in it.api.asked)
            it.cluster.delete(slice_key("s"))
            await until(lambda: it.ids() == [])

    run(law())


def test_a_pod_that_goes_is_drained_though_its_slice_still_names_it(tmp_path: Path) -> None:
    async def law() -> None:
        async with following(tmp_path, find="both") as it:
            it.put(a_pod("a", "10.0.0.1"), a_pod("b", "10.0.0.2"))
            ends = [an_endpoint("10.0.0.1", pod="a"), an_endpoint("10.0.0.2", pod="b")]
            it.cluster.create(slice_key("s"), a_slice("s", ends))
            await until(lambda: len(it.ids()) == 2)
            going = a_pod("a", "10.0.0.1")
            going["metadata"]["deletionTimestamp"] = "2026-11-26T00:00:00Z"
            it.put(going)
            await until(lambda: it.ids() == ["10.0.0.2:8000"])

    run(law())


def test_several_namespaces_are_followed_and_no_other(tmp_path: Path) -> None:
    async def law() -> None:
        async with following(tmp_path, namespaces=("one", "two")) as it:
            for n, namespace in enumerate(("one", "two", "three")):
                it.put(a_pod("a", f"10.0.0.{n + 1}", namespace=namespace))
            await until(lambda: it.ids() == ["10.0.0.1:8000", "10.0.0.2:8000"])
            assert {each.namespace for each in it.api.asked} == {"one", "two"}

    run(law())


# Trouble


def test_a_pod_deleted_while_the_watch_was_down_is_no_ghost(tmp_path: Path) -> None:
    async def law() -> None:
        async with following(tmp_path) as it:
            it.put(a_pod("a", "10.0.0.1"), a_pod("b", "10.0.0.2"))
            await until(lambda: len(it.ids()) == 2)
            it.api.cluster.drop_watches()
            it.cluster.delete(pod_key("a"))
            it.cluster.compact()
            await until(lambda: it.ids() == ["10.0.0.2:8000"])

    run(law())


def test_a_watch_that_breaks_is_followed_by_a_list_and_one_that_ends_by_a_watch(
    tmp_path: Path,
) -> None:
    async def law() -> None:
        async with following(tmp_path) as it:

            def count(verb: str) -> int:
                return sum(each[:3] == (verb, "", "pods") for each in it.api.asked)

            await until(lambda: count("watch") == 1)
            it.cluster.drop_watches()
            await until(lambda: count("watch") == 2)
            assert count("list") == 2
            it.cluster.end_watches()
            await until(lambda: count("watch") == 3)
            assert count("list") == 2

    run(law())


def test_an_event_that_was_never_sent_is_made_good_by_the_next_list(tmp_path: Path) -> None:
    async def law() -> None:
        async with following(tmp_path, resync_s=0.3) as it:
            it.put(a_pod("a", "10.0.0.1"), a_pod("b", "10.0.0.2"))
            await until(lambda: len(it.ids()) == 2)
            it.cluster.lose_next = 1
            it.cluster.delete(pod_key("a"))
            await until(lambda: it.ids() == ["10.0.0.2:8000"])

    run(law())


@pytest.mark.parametrize("in_stream", [True, False])
def test_410_is_answered_with_a_list(tmp_path: Path, in_stream: bool) -> None:
    async def law() -> None:
        api = ApiServer(says_gone_in_stream=in_stream, bookmark_every_s=60)
        async with following(tmp_path, api) as it:
            it.put(a_pod("a", "10.0.0.1"), a_pod("b", "10.0.0.2"))
            await until(lambda: len(it.ids()) == 2)
            it.api.troubles.append(Trouble(410, "Expired", "too old"))
            it.cluster.drop_watches()
            it.cluster.delete(pod_key("a"))
            await until(lambda: it.ids() == ["10.0.0.2:8000"])

    run(law())


def test_an_expired_token_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def law() -> None:
        async with following(tmp_path, ApiServer(tokens={"t0"})) as it:
            it.put(a_pod("a", "10.0.0.1"))
            await until(lambda: len(it.ids()) == 1)
            it.api.tokens = {"t1"}
            it.api.cluster.drop_watches()
            await until(lambda: "401" in caplog.text)
            assert it.ids() == ["10.0.0.1:8000"]  # the last good answer stands
            it.put(a_pod("b", "10.0.0.2"))
            it.api.kubeconfig(tmp_path, "t1")
            await until(lambda: len(it.ids()) == 2)

    run(law())


def test_who_is_told_to_wait_waits(tmp_path: Path) -> None:
    async def law() -> None:
        async with following(tmp_path) as it:
            it.put(a_pod("a", "10.0.0.1"))
            await until(lambda: len(it.ids()) == 1)
            loop = asyncio.get_running_loop()
            it.api.throttle(1000, retry_after_s=1)
            it.cluster.drop_watches()
            kinds = 3  # pods, Deployments, LeaderWorkerSets
            await until(lambda: len(it.api.troubles) == 1000 - kinds)
            began = loop.time()
            await until(lambda: len(it.api.troubles) < 1000 - kinds)
            assert loop.time() - began > 0.8
            it.api.troubles.clear()
            it.put(a_pod("b", "10.0.0.2"))
            await until(lambda: len(it.ids()) == 2)

    run(law())


def test_a_server_that_is_down_at_first_is_found_when_it_is_up(tmp_path: Path) -> None:
    async def law() -> None:
        api = ApiServer()
        async with running_api_server(api):
            pass  # now its port is known, and nobody listens there
        settings = KubernetesSettings(enabled=True, kubeconfig=str(api.kubeconfig(tmp_path)))
        roster = Roster(FleetSettings())
        task = asyncio.create_task(
            KubernetesDiscovery(settings, roster, CACHES, monotonic, Random(1)).run()
        )
        await asyncio.sleep(0.1)
        async with running_api_server(api):
            api.cluster.create(pod_key("a"), a_pod("a", "10.0.0.1"))
            await until(lambda: len(roster.replicas) == 1)
            task.cancel()
            await asyncio.wait([task])

    run(law())


# Models


def test_a_model_of_a_workload_is_known_at_zero_replicas(tmp_path: Path) -> None:
    async def law() -> None:
        async with following(tmp_path) as it:
            key = Key("apps", "deployments", NAMESPACE, "d")
            it.cluster.create(key, a_workload("d", "sleeper", 0))
            group = Key("leaderworkerset.x-k8s.io", "leaderworkersets", NAMESPACE, "g")
            it.cluster.create(group, a_workload("g", "giant", 0, kind="LeaderWorkerSet"))
            await until(lambda: set(it.roster.known_models()) == {"sleeper", "giant"})
            it.cluster.delete(group)
            await until(lambda: set(it.roster.known_models()) == {"sleeper"})
            it.cluster.delete(key)
            await until(lambda: not it.roster.known_models())

    run(law())


def test_where_there_are_no_leader_worker_sets_the_rest_goes_on(tmp_path: Path) -> None:
    api = ApiServer()
    del api.kinds["leaderworkerset.x-k8s.io", "v1", "leaderworkersets"]

    async def law() -> None:
        async with following(tmp_path, api) as it:
            it.put(a_pod("a", "10.0.0.1"))
            await until(lambda: it.ids() == ["10.0.0.1:8000"])

    run(law())


# Scaling down


def cost_of(it: Following, name: str) -> str | None:
    found = it.cluster.get(pod_key(name))["metadata"]["annotations"]
    cost: str | None = found.get("controller.kubernetes.io/pod-deletion-cost")
    return cost


def test_the_pod_with_the_least_to_lose_is_named_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_prices, "LOOK_EVERY_S", 0.05)

    async def law() -> None:
        async with following(tmp_path, deletion_cost=True) as it, AsyncExitStack() as leases:
            for n in (1, 2, 3):
                it.put(a_pod(f"p{n}", f"10.0.0.{n}", owner="rs"))
            await until(lambda: len(it.ids()) == 3)
            first, _, third = it.roster.replicas
            leases.enter_context(first.lease(100_000))
            leases.enter_context(third.lease(900_000))
            await until(lambda: cost_of(it, "p1") and cost_of(it, "p3"))
            costs = [int(cost_of(it, name) or 0) for name in ("p2", "p1", "p3")]
            assert costs == sorted(set(costs))
            assert costs[0] == 0
            written = sum(each.verb == "patch" for each in it.api.asked)
            await asyncio.sleep(0.3)
            assert sum(each.verb == "patch" for each in it.api.asked) == written
            # Another gateway that sees the same has nothing to add.
            settings = KubernetesSettings(
                enabled=True, deletion_cost=True, kubeconfig=str(tmp_path / "kubeconfig")
            )
            other = KubernetesDiscovery(settings, it.roster, CACHES, monotonic, Random(2))
            task = asyncio.create_task(other.run())
            await asyncio.sleep(0.3)
            task.cancel()
            await asyncio.wait([task])
            assert sum(each.verb == "patch" for each in it.api.asked) == written

    run(law())


# Rights


@pytest.mark.parametrize("find", ["pods", "endpointslices", "both"])
def test_what_is_asked_is_what_the_role_names(tmp_path: Path, find: str) -> None:
    async def law() -> None:
        async with following(tmp_path, find=find) as it:
            settings = KubernetesSettings.of({"enabled": True, "find": find})
            needed = {
                (verb, right.resource.group, right.resource.plural)
                for right in rights(settings)
                for verb in right.verbs
            }
            await until(lambda: {each[:3] for each in it.api.asked} == needed)

    run(law())


def test_without_a_way_to_an_api_server_it_says_what_to_do(tmp_path: Path) -> None:
    settings = KubernetesSettings(enabled=True, kubeconfig=str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="service account"):
        KubernetesDiscovery(settings, Roster(FleetSettings()), CACHES, monotonic, Random(1))
