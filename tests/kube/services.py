"""Services: the endpoint slices that a cluster writes for them, and where a name leads."""

from __future__ import annotations

from typing import Any, Final

from tests.kube.cluster import Cluster, Key, Object, Place
from tests.kube.controllers import PODS, is_going, is_ready, key_of

SERVICES: Final = ("", "services")
SLICES: Final = ("discovery.k8s.io", "endpointslices")
_OWNER: Final = "kubernetes.io/service-name"


class Services:
    """One slice for each Service that selects pods."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __repr__(self) -> str:
        return f"<Services of {self._cluster!r}>"

    def look(self) -> None:
        """Bring every slice up to date."""
        there = {key_of(SERVICES, each): each for each in self._cluster.select(Place(*SERVICES))}
        for found in [*self._cluster.select(Place(*SLICES))]:
            name = found["metadata"]["labels"].get(_OWNER)
            if Key(*SERVICES, found["metadata"]["namespace"], name) not in there:
                self._cluster.delete(key_of(SLICES, found))
        for service in there.values():
            if service["spec"].get("selector"):
                self._write(service)

    def _write(self, service: Object) -> None:
        meta = service["metadata"]
        pods = self.pods(service)
        new: Object = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "labels": {**meta.get("labels", {}), _OWNER: meta["name"]},
                "annotations": dict(meta.get("annotations", {})),
            },
            "addressType": "IPv4",
            "endpoints": [_endpoint(service, pod) for pod in pods],
            "ports": [
                {"name": each.get("name", ""), "port": _port(each, pods)}
                for each in service["spec"]["ports"]
            ],
        }
        key = Key(*SLICES, meta["namespace"], f"{meta['name']}-0")
        if key in self._cluster.objects:
            self._cluster.replace(key, new)
        else:
            self._cluster.create(key, new)

    def pods(self, service: Object) -> list[Object]:
        """Those behind it that have an address."""
        wanted = service["spec"]["selector"].items()
        return [
            pod
            for pod in self._cluster.select(Place(*PODS, service["metadata"]["namespace"]))
            if wanted <= pod["metadata"].get("labels", {}).items()
            and pod.get("status", {}).get("podIP")
        ]

    def addresses(self, name: str) -> list[str]:
        """Those that `SERVICE.NAMESPACE.svc` leads to now."""
        service, namespace, *_ = name.split(".")
        slice_key = Key(*SLICES, namespace, f"{service}-0")
        found = self._cluster.objects.get(slice_key, {"endpoints": []})
        return [
            address
            for each in found["endpoints"]
            if each["conditions"]["ready"]
            for address in each["addresses"]
        ]


def _endpoint(service: Object, pod: Object) -> Object:
    going, is_open = is_going(pod), service["spec"].get("publishNotReadyAddresses", False)
    meta = pod["metadata"]
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {
            "ready": is_open or (is_ready(pod) and not going),
            "serving": is_ready(pod),
            "terminating": going,
        },
        "targetRef": {"kind": "Pod", "namespace": meta["namespace"], "name": meta["name"]},
    }


def _port(port: Object, pods: list[Object]) -> int:
    """What the Service's port is on its pods."""
    named = {
        each["name"]: int(each["containerPort"])
        for pod in pods
        for container in pod["spec"]["containers"]
        for each in container.get("ports", ())
        if "name" in each
    }
    target: Any = port.get("targetPort", port["port"])
    if isinstance(target, str):
        return named.get(target, int(port["port"]))
    return int(target)
