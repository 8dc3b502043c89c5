"""A cluster in which things happen: the API server, its controllers, one machine, and KEDA.

async with running_world(tmp_path) as world:
    await world.helm("install", "headrace", world.charts.folder("gateway"), ...)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kube.cluster import Key, Object
from tests.kube.controllers import Controllers
from tests.kube.keda import Keda
from tests.kube.kubelet import Kubelet
from tests.kube.rights import Account
from tests.kube.sandbox import Node
from tests.kube.server import ApiServer, running_api_server
from tests.kube.services import Services

_LOOK_EVERY_S = 0.02


@dataclass(frozen=True, slots=True)
class World:
    """What there is."""

    api: ApiServer
    services: Services
    kubelet: Kubelet
    keda: Keda


@asynccontextmanager
async def running_world(
    folder: Path, images: Mapping[str, Mapping[str, str]] | None = None
) -> AsyncIterator[World]:
    """With no objects yet. `images` is environment that images bring, by repository."""
    async with running_api_server() as api:
        cluster = api.cluster
        cluster.departs.add("pods")
        services = Services(cluster)
        node = Node(cluster, services, folder, images or {})
        world = World(
            api,
            services,
            Kubelet(node, lambda pod: _kubeconfig(api, pod)),
            Keda(cluster, services),
        )
        looks = [Controllers(cluster).look, services.look, world.kubelet.look, world.keda.look]
        async with AsyncExitStack() as ending:
            ending.push_async_callback(world.kubelet.stop)
            ending.push_async_callback(world.keda.stop)
            looking = asyncio.create_task(_look(world, looks), name="controllers")
            try:
                yield world
            finally:
                looking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await looking


async def _look(world: World, looks: list[Callable[[], None]]) -> None:
    """Whenever something has changed."""
    seen = 0
    while True:
        if world.api.cluster.version != seen:
            seen = world.api.cluster.version
            for look in looks:
                look()
        await asyncio.sleep(_LOOK_EVERY_S)


def _kubeconfig(api: ApiServer, pod: Object) -> Object | None:
    """Of a pod's service account, if it may have a token."""
    spec, namespace = pod["spec"], pod["metadata"]["namespace"]
    name = spec.get("serviceAccountName", "default")
    account = api.cluster.objects.get(Key("", "serviceaccounts", namespace, name), {})
    by_default = account.get("automountServiceAccountToken", True)
    if not spec.get("automountServiceAccountToken", by_default):
        return None
    return api.kubeconfig_document(api.token_of(Account(namespace, name)), namespace)
