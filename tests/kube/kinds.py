"""Which kinds a server knows, and the documents by which clients find out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tests.kube.cluster import Object

VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


class Kind(NamedTuple):
    """A kind that is served."""

    group: str
    version: str
    plural: str
    kind: str
    is_namespaced: bool = True
    has_scale: bool = False

    @property
    def api_version(self) -> str:
        """As its objects say it."""
        return f"{self.group}/{self.version}" if self.group else self.version


KINDS = (
    Kind("", "v1", "pods", "Pod"),
    Kind("", "v1", "services", "Service"),
    Kind("", "v1", "configmaps", "ConfigMap"),
    Kind("", "v1", "secrets", "Secret"),
    Kind("", "v1", "serviceaccounts", "ServiceAccount"),
    Kind("", "v1", "events", "Event"),
    Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    Kind("", "v1", "namespaces", "Namespace", is_namespaced=False),
    Kind("", "v1", "nodes", "Node", is_namespaced=False),
    Kind("apps", "v1", "deployments", "Deployment", has_scale=True),
    Kind("apps", "v1", "replicasets", "ReplicaSet", has_scale=True),
    Kind("apps", "v1", "statefulsets", "StatefulSet", has_scale=True),
    Kind("batch", "v1", "jobs", "Job"),
    Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
    Kind("networking.k8s.io", "v1", "ingresses", "Ingress"),
    Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
    Kind("coordination.k8s.io", "v1", "leases", "Lease"),
    Kind("rbac.authorization.k8s.io", "v1", "roles", "Role"),
    Kind("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding"),
    Kind("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", is_namespaced=False),
    Kind(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        is_namespaced=False,
    ),
    Kind("resource.k8s.io", "v1", "resourceclaimtemplates", "ResourceClaimTemplate"),
    Kind("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute"),
    Kind("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor"),
    Kind("monitoring.coreos.com", "v1", "servicemonitors", "ServiceMonitor"),
    Kind("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule"),
    Kind("keda.sh", "v1alpha1", "scaledobjects", "ScaledObject"),
    Kind("keda.sh", "v1alpha1", "triggerauthentications", "TriggerAuthentication"),
    Kind("leaderworkerset.x-k8s.io", "v1", "leaderworkersets", "LeaderWorkerSet", has_scale=True),
)


def versions() -> Object:
    """GET /api."""
    return {"kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"]}


def groups(kinds: Iterable[Kind]) -> Object:
    """GET /apis."""
    found: dict[str, list[Object]] = {}
    for each in sorted({(kind.group, kind.version) for kind in kinds if kind.group}):
        group, version = each
        names = {"groupVersion": f"{group}/{version}", "version": version}
        found.setdefault(group, []).append(names)
    return {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {"name": group, "versions": names, "preferredVersion": names[-1]}
            for group, names in found.items()
        ],
    }


def resources(kinds: Iterable[Kind], group: str, version: str) -> Object | None:
    """GET /api/v1, /apis/GROUP/VERSION; None where there is none."""
    here = [kind for kind in kinds if (kind.group, kind.version) == (group, version)]
    if not here:
        return None
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": here[0].api_version,
        "resources": [entry for kind in here for entry in _entries(kind)],
    }


def _entries(kind: Kind) -> list[Object]:
    own = {
        "name": kind.plural, "singularName": kind.kind.lower(), "namespaced": kind.is_namespaced,
        "kind": kind.kind, "verbs": VERBS,
    }  # fmt: skip
    below = {**own, "singularName": "", "verbs": ["get", "patch", "update"]}
    found = [own, {**below, "name": f"{kind.plural}/status"}]
    if kind.has_scale:
        scale = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
        found.append({**below, **scale, "name": f"{kind.plural}/scale"})
    return found


def schemas(kinds: Iterable[Kind]) -> Object:
    """GET /openapi/v3: there is one document for all groups."""
    groups = {f"apis/{kind.api_version}" if kind.group else "api/v1" for kind in kinds}
    return {"paths": {group: {"serverRelativeURL": "/openapi/v3/all"} for group in sorted(groups)}}


def schema(kinds: Iterable[Kind]) -> Object:
    """That document: who asks it learns that the server itself holds fields against schemas."""
    checked = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.35.0"},
        "paths": {
            f"/{kind.api_version}/{kind.plural}": {
                "patch": {
                    "parameters": [checked],
                    "responses": {},
                    "x-kubernetes-group-version-kind": {
                        "group": kind.group, "version": kind.version, "kind": kind.kind
                    },
                }
            }
            for kind in kinds
        },
    }  # fmt: skip


def with_defaults(kind: Kind, new: Object) -> Object:
    """What a server fills in, as far as anybody here reads it."""
    if kind.has_scale:
        new.setdefault("spec", {}).setdefault("replicas", 1)
    if kind.kind == "Service":  # nobody is there: names lead to pods
        new.setdefault("spec", {}).setdefault("clusterIP", "10.96.0.1")
    return new


def scale_of(found: Object) -> Object:
    """The `/scale` of an object."""
    names = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: found["metadata"].get(name) for name in names},
        "spec": {"replicas": found.get("spec", {}).get("replicas", 1)},
        "status": {"replicas": found.get("status", {}).get("replicas", 0)},
    }


def table(items: Iterable[Object], version: int) -> Object:
    """What `kubectl get` asks for: names alone."""
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": str(version)},
        "columnDefinitions": [
            {"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0}
        ],
        "rows": [
            {
                "cells": [found["metadata"]["name"]],
                "object": {
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": found["metadata"],
                },
            }
            for found in items
        ],
    }


def kinds_of(definition: Object) -> list[Kind]:
    """Those that a CustomResourceDefinition brings."""
    spec = definition["spec"]
    names = spec["names"]
    return [
        Kind(
            spec["group"], version["name"], names["plural"], names["kind"],
            spec.get("scope") != "Cluster", "scale" in (version.get("subresources") or {}),
        )
        for version in spec["versions"]
    ]  # fmt: skip
