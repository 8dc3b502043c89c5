"""Pods, endpoint slices and workloads, as a cluster would hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.kube.cluster import Key, Object

NAMESPACE = "models"


def a_pod(
    name: str,
    ip: str | None,
    *,
    model: str | None = "m",
    ready: bool = True,
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    namespace: str = NAMESPACE,
    ports: Mapping[str, int] | None = None,
    owner: str | None = None,
) -> Object:
    """A pod of a model; without an address while `ip` is None."""
    own = {} if model is None else {"headrace.io/model": model}
    meta: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "labels": {**own, **(labels or {})},
        "annotations": dict(annotations or {}),
    }
    if owner is not None:
        meta["ownerReferences"] = [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner,
             "controller": True}
        ]  # fmt: skip
    status: dict[str, Any] = {"phase": "Running" if ip else "Pending"}
    status["conditions"] = [{"type": "Ready", "status": "True" if ready else "False"}]
    if ip:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    named = [{"name": name, "containerPort": port} for name, port in (ports or {}).items()]
    spec = {"containers": [{"name": "engine", "image": "engine", "ports": named}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}


def a_slice(
    name: str,
    endpoints: Sequence[Object],
    *,
    model: str = "m",
    ports: Mapping[str, int] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """An endpoint slice of a Service that carries the model's label."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {"headrace.io/model": model, "kubernetes.io/service-name": name},
            "annotations": dict(annotations or {}),
        },
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": key, "port": port} for key, port in (ports or {"http": 8000}).items()],
    }


def an_endpoint(
    ip: str, *, ready: bool = True, terminating: bool = False, pod: str | None = None
) -> Object:
    """One of a slice's."""
    found: Object = {
        "addresses": [ip],
        "conditions": {"ready": ready, "serving": ready, "terminating": terminating},
    }
    if pod is not None:
        found["targetRef"] = {"kind": "Pod", "namespace": NAMESPACE, "name": pod}
    return found


def a_workload(name: str, model: str, replicas: int, *, kind: str = "Deployment") -> Object:
    """A Deployment, or a LeaderWorkerSet, of a model."""
    version = "apps/v1" if kind == "Deployment" else "leaderworkerset.x-k8s.io/v1"
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {
            "name": name, "namespace": NAMESPACE, "labels": {"headrace.io/model": model}
        },
        "spec": {"replicas": replicas},
    }  # fmt: skip


def pod_key(name: str, namespace: str = NAMESPACE) -> Key:
    """Of a pod."""
    return Key("", "pods", namespace, name)
