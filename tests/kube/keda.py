"""KEDA and the autoscaler, acting on the ScaledObjects of a cluster.

A trigger of type external-push is asked over gRPC, as KEDA does: one stream for pushes, and every
`pollingInterval` GetMetricSpec, GetMetrics and IsActive. How many replicas there shall be is for
`tests.bench.scaling.autoscaler` to decide, by the cool-down, the bounds and the downward window
that the ScaledObject says. Where the trigger cannot be asked, nothing is done. What has never been
active is not taken to zero before `initialCooldownPeriod` has passed.

The autoscaler looks every `sync_s`, so that tests need not wait; Kubernetes' does every 15 s.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio

from tests.bench.scaling.autoscaler import Autoscaler, Behaviour, External
from tests.keda_client import stubs
from tests.kube.cluster import Cluster, Key, Object, Place
from tests.kube.controllers import DEPLOYMENTS, GROUPS
from tests.kube.services import Services

SCALED: Final = ("keda.sh", "scaledobjects")
_KINDS: Final = {"Deployment": DEPLOYMENTS, "LeaderWorkerSet": GROUPS}
_RETRY_S: Final = 0.5


class Keda:
    """The operator and the autoscaler, in one."""

    def __init__(self, cluster: Cluster, services: Services, sync_s: float = 1.0) -> None:
        self._cluster = cluster
        self._services = services
        self.sync_s = sync_s
        """Between two looks of the autoscaler."""
        self._scalers: dict[str, _Scaler] = {}
        self.scaled: list[tuple[str, int]] = []
        """Every change of a number of replicas that it has made: of what, and to how many."""

    def __repr__(self) -> str:
        return f"<Keda of {len(self._scalers)}>"

    def look(self) -> None:
        """Begin with ScaledObjects that are new or have changed, and end with those gone."""
        there = {}
        for found in self._cluster.select(Place(*SCALED)):
            version = f"{found['metadata']['uid']} {found['metadata']['generation']}"
            there[version] = found
        for version in there.keys() - self._scalers.keys():
            scaler = _Scaler(self, there[version], self._cluster, self._services)
            self._scalers[version] = scaler
        for version in self._scalers.keys() - there.keys():
            self._scalers.pop(version).task.cancel()

    async def stop(self) -> None:
        """Scale nothing any more."""
        tasks = [scaler.task for scaler in self._scalers.values()]
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


class _Scaler:
    """Of one ScaledObject, as it is now."""

    def __init__(self, keda: Keda, found: Object, cluster: Cluster, services: Services) -> None:
        self._keda = keda
        self._cluster = cluster
        self._services = services
        self._spec = found["spec"]
        self._meta = found["metadata"]
        self._now = asyncio.get_running_loop().time
        target = self._spec["scaleTargetRef"]
        self._key = Key(*_KINDS[target["kind"]], self._meta["namespace"], target["name"])
        down = self._spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        self._least = self._spec["minReplicaCount"]
        self._autoscaler = Autoscaler(
            Behaviour(
                polling_s=self._spec["pollingInterval"],
                cooldown_s=self._spec["cooldownPeriod"],
                sync_s=keda.sync_s,
                down_window_s=down["stabilizationWindowSeconds"],
                most=self._spec["maxReplicaCount"],
            )
        )
        # One that was never active is taken to zero when the initial cool-down is over.
        later_s = self._spec["initialCooldownPeriod"] - self._spec["cooldownPeriod"]
        self._autoscaler.active_at_s = self._now() + later_s
        (self._trigger,) = self._spec["triggers"]
        self._metric: External | None = None
        self.task = asyncio.create_task(self._run(), name=f"keda {self._meta['name']}")

    def __repr__(self) -> str:
        return f"<_Scaler of {self._key.name}>"

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._poll())
            group.create_task(self._sync())

    def _reference(self) -> Any:
        reference = stubs()[0].ScaledObjectRef(
            name=self._meta["name"], namespace=self._meta["namespace"]
        )
        reference.scalerMetadata.update(self._trigger["metadata"])
        return reference

    @asynccontextmanager
    async def _scaler(self) -> AsyncIterator[Any]:
        """The gateway's; raises AioRpcError where nobody answers at its name."""
        name, _, port = self._trigger["metadata"]["scalerAddress"].partition(":")
        address = next(iter(self._services.addresses(name)), "127.255.255.254")
        async with self._channel(f"{address}:{port}", name) as channel:
            yield stubs()[1].ExternalScalerStub(channel)

    def _channel(self, address: str, name: str) -> grpc.aio.Channel:
        """As the trigger's metadata and its authentication say."""
        if self._trigger["metadata"].get("enableTLS") != "true":
            return grpc.aio.insecure_channel(address)
        said = self._secrets()
        credentials = grpc.ssl_channel_credentials(
            said.get("caCert"), said.get("tlsClientKey"), said.get("tlsClientCert")
        )
        options = [("grpc.ssl_target_name_override", name)]  # the address is not what it is called
        return grpc.aio.secure_channel(address, credentials, options)

    def _secrets(self) -> dict[str, bytes]:
        """By parameter, of the TriggerAuthentication that the trigger names."""
        namespace = self._meta["namespace"]
        name = self._trigger.get("authenticationRef", {}).get("name")
        if name is None:
            return {}
        spec = self._cluster.get(Key("keda.sh", "triggerauthentications", namespace, name))["spec"]
        found = {}
        for each in spec["secretTargetRef"]:
            data = self._cluster.get(Key("", "secrets", namespace, each["name"]))["data"]
            found[each["parameter"]] = base64.b64decode(data[each["key"]])
        return found

    async def _listen(self) -> None:
        """To what is pushed: only that it is active counts."""
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async with self._scaler() as scaler:
                    async for told in scaler.StreamIsActive(self._reference()):
                        if told.result:
                            self._hear(is_active=True)
            await asyncio.sleep(_RETRY_S)

    async def _poll(self) -> None:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async with self._scaler() as scaler:
                    reference = self._reference()
                    (spec,) = (await scaler.GetMetricSpec(reference)).metricSpecs
                    asked = stubs()[0].GetMetricsRequest(
                        scaledObjectRef=reference, metricName=spec.metricName
                    )
                    (value,) = (await scaler.GetMetrics(asked)).metricValues
                    self._metric = External(value.metricValueFloat, spec.targetSizeFloat)
                    self._hear((await scaler.IsActive(reference)).result)
            await asyncio.sleep(self._spec["pollingInterval"])

    def _hear(self, is_active: bool) -> None:
        """KEDA's own decision: between none and the fewest."""
        if self._key not in self._cluster.objects:
            return
        autoscaler = self._autoscaler
        autoscaler.replicas = self._replicas()
        if is_active or self._least == 0:
            autoscaler.poll(is_active, self._now())
            if autoscaler.replicas:
                autoscaler.replicas = max(autoscaler.replicas, self._least)
        self._scale(autoscaler.replicas)

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(self._keda.sync_s)
            if self._metric is not None and self._key in self._cluster.objects:
                self._autoscaler.replicas = self._replicas()
                self._autoscaler.sync(self._metric, 0, self._now())
                self._scale(self._autoscaler.replicas)

    def _replicas(self) -> int:
        return int(self._cluster.get(self._key)["spec"]["replicas"])

    def _scale(self, replicas: int) -> None:
        if replicas != self._replicas():
            self._keda.scaled.append((self._key.name, replicas))
            self._cluster.merge(self._key, {"spec": {"replicas": replicas}})
