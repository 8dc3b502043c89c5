"""The stand-in for a Kubernetes API server, as the official client finds it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client as typed_client
from kubernetes import config as typed_config
from kubernetes import watch as typed_watch
from kubernetes.client import ApiException

from tests.house import run
from tests.kube.cluster import Key
from tests.kube.makings import NAMESPACE, a_pod, a_workload, pod_key
from tests.kube.rights import Account
from tests.kube.server import ApiServer, running_api_server

client: Any = typed_client  # some of it is typed, and says None where there is always something
config: Any = typed_config
watch: Any = typed_watch


def test_the_official_client_creates_lists_patches_and_deletes(tmp_path: Path) -> None:
    def asks(api: Any) -> None:
        core = client.CoreV1Api(api)
        for name in ("a", "b", "c"):
            core.create_namespaced_pod(NAMESPACE, _plain(a_pod(name, "10.0.0.1")))
        first = core.list_namespaced_pod(NAMESPACE, label_selector="headrace.io/model=m", limit=2)
        assert [each.metadata.name for each in first.items] == ["a", "b"]
        rest = core.list_namespaced_pod(NAMESPACE, limit=2, _continue=first.metadata._continue)
        assert [each.metadata.name for each in rest.items] == ["c"]
        patch = {"metadata": {"annotations": {"x": "1"}}}
        assert core.patch_namespaced_pod("a", NAMESPACE, patch).metadata.annotations == {"x": "1"}
        assert not core.list_namespaced_pod(NAMESPACE, label_selector="headrace.io/model=n").items
        core.delete_namespaced_pod("a", NAMESPACE)
        with pytest.raises(ApiException) as error:
            core.read_namespaced_pod("a", NAMESPACE)
        assert error.value.status == 404
        with pytest.raises(ApiException) as error:
            core.create_namespaced_pod(NAMESPACE, _plain(a_pod("b", "10.0.0.1")))
        assert error.value.status == 409

    _run(tmp_path, asks)


def test_the_official_client_scales_and_sets_a_status(tmp_path: Path) -> None:
    def asks(api: Any) -> None:
        apps = client.AppsV1Api(api)
        apps.patch_namespaced_deployment_scale("d", NAMESPACE, {"spec": {"replicas": 3}})
        status = {"status": {"replicas": 2}}
        apps.patch_namespaced_deployment_status("d", NAMESPACE, status, _preload_content=False)
        scale = apps.read_namespaced_deployment_scale("d", NAMESPACE)
        assert (scale.spec.replicas, scale.status.replicas) == (3, 2)

    server = ApiServer()
    server.cluster.create(Key("apps", "deployments", NAMESPACE, "d"), a_workload("d", "m", 0))
    _run(tmp_path, asks, server)


def test_the_official_client_watches_from_a_list_and_hears_410(tmp_path: Path) -> None:
    server = ApiServer()
    server.cluster.create(pod_key("a"), a_pod("a", "10.0.0.1"))
    since = str(server.cluster.version)
    server.cluster.create(pod_key("b"), a_pod("b", "10.0.0.2"))
    server.cluster.replace(pod_key("b"), a_pod("b", "10.0.0.2", model=None))
    server.cluster.delete(pod_key("a"))

    def events(api: Any, since: str) -> list[tuple[str, str]]:
        core = client.CoreV1Api(api)
        stream = watch.Watch().stream(
            core.list_namespaced_pod, NAMESPACE, label_selector="headrace.io/model",
            resource_version=since, timeout_seconds=1,
        )  # fmt: skip
        return [(each["type"], each["object"].metadata.name) for each in stream]

    def asks(api: Any) -> None:
        # What no longer carries the label has gone, for who asked for the label.
        assert events(api, since) == [("ADDED", "b"), ("DELETED", "b"), ("DELETED", "a")]
        server.cluster.compact()
        with pytest.raises(ApiException) as error:
            events(api, since)
        assert error.value.status == 410

    _run(tmp_path, asks, server)


def test_a_service_account_may_do_what_its_role_says_and_is_written_down(tmp_path: Path) -> None:
    server = ApiServer()
    account = Account(NAMESPACE, "gateway")
    rbac, name = "rbac.authorization.k8s.io", "gateway"
    subject = {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
    binding = {"roleRef": {"kind": "Role", "name": name}, "subjects": [subject]}
    role = {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]}
    server.cluster.create(Key(rbac, "rolebindings", NAMESPACE, name), binding)
    server.cluster.create(Key(rbac, "roles", NAMESPACE, name), role)

    def asks(api: Any) -> None:
        core = client.CoreV1Api(api)
        core.list_namespaced_pod(NAMESPACE)
        for forbidden in (
            lambda: core.list_namespaced_pod("elsewhere"),
            lambda: core.read_namespaced_pod("a", NAMESPACE),
            lambda: core.list_namespaced_service(NAMESPACE),
            core.list_pod_for_all_namespaces,
        ):
            with pytest.raises(ApiException) as error:
                forbidden()
            assert error.value.status == 403
        assert server.asked_by[account] == [("list", "", "pods", NAMESPACE)]

    _run(tmp_path, asks, server, server.token_of(account))


def _run(folder: Path, asks: Any, server: ApiServer | None = None, token: str = "t0") -> None:
    async def law() -> None:
        async with running_api_server(server) as api:
            with config.new_client_from_config(str(api.kubeconfig(folder, token))) as official:
                await asyncio.to_thread(asks, official)

    run(law())


def _plain(pod: dict[str, Any]) -> dict[str, Any]:
    """Without what a client may not say."""
    return {name: value for name, value in pod.items() if name != "status"}
