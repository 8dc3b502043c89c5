"""What we may ask of a Kubernetes API, and no more: the Role that the gateway needs.

Asked by discovery, for the paths it asks, and by whoever writes or checks a Role. Pure.
Invariant: nothing is asked of the API that `rights` does not name, and everything it names is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.settings import KubernetesSettings


class Resource(msgspec.Struct, frozen=True):
    """A kind of objects, by its API group (`""` is the core), version and plural."""

    group: str
    version: str
    plural: str

    def path(self, namespace: str, name: str | None = None) -> str:
        """Of the collection in a namespace, or of one object in it."""
        root = f"/apis/{self.group}" if self.group else "/api"
        path = f"{root}/{self.version}/namespaces/{namespace}/{self.plural}"
        return path if name is None else f"{path}/{name}"


class Right(msgspec.Struct, frozen=True):
    """A rule of a Role: these verbs, of this resource, in each namespace that is watched."""

    resource: Resource
    verbs: tuple[str, ...]


PODS: Final = Resource("", "v1", "pods")
SLICES: Final = Resource("discovery.k8s.io", "v1", "endpointslices")
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments")
LEADER_WORKER_SETS: Final = Resource("leaderworkerset.x-k8s.io", "v1", "leaderworkersets")

_FOLLOW: Final = ("list", "watch")


def rights(settings: KubernetesSettings) -> Sequence[Right]:
    """What these settings need, in one namespace."""
    pod_verbs = _FOLLOW if settings.follows_pods else ()
    if settings.deletion_cost:
        pod_verbs = (*pod_verbs, "patch")
    found = [Right(PODS, pod_verbs)] if pod_verbs else []
    if settings.follows_slices:
        found.append(Right(SLICES, _FOLLOW))
    found += [Right(DEPLOYMENTS, _FOLLOW), Right(LEADER_WORKER_SETS, _FOLLOW)]
    return found
