"""Small controllers: what a cluster makes of Deployments, LeaderWorkerSets and Jobs, down to pods.

Each looks at everything and does the next step towards what is wanted; what it does changes the
cluster, so it is looked at again, until there is nothing to do. A Deployment makes ReplicaSets, one
for each pod template, and moves replicas from old ones to the new within maxSurge and
maxUnavailable; a ReplicaSet makes pods, and takes away first what is not ready, then what has the
least deletion cost, then the youngest. A LeaderWorkerSet makes groups, and makes a group anew when
its template changes or one of its pods fails. What is owned goes with its owner.

There is no scheduler and no quota: a pod that is made will run. Nobody gives up a rollout.
Source: Kubernetes' controllers for deployments and replica sets; lws.sigs.k8s.io, concepts.
"""

from __future__ import annotations

import copy
import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from math import ceil, floor
from typing import Any, Final

from tests.kube.cluster import Cluster, Key, Object, Place

PODS: Final = ("", "pods")
REPLICA_SETS: Final = ("apps", "replicasets")
DEPLOYMENTS: Final = ("apps", "deployments")
JOBS: Final = ("batch", "jobs")
GROUPS: Final = ("leaderworkerset.x-k8s.io", "leaderworkersets")
LWS: Final = "leaderworkerset.sigs.k8s.io"

_COST: Final = "controller.kubernetes.io/pod-deletion-cost"


def key_of(kind: tuple[str, str], found: Object) -> Key:
    """Where it is kept."""
    return Key(*kind, found["metadata"]["namespace"], found["metadata"]["name"])


def is_ready(pod: Object) -> bool:
    """It takes requests."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def is_going(found: Object) -> bool:
    """It has been deleted, and is not gone yet."""
    return "deletionTimestamp" in found["metadata"]


class Controllers:
    """All of them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __repr__(self) -> str:
        return f"<Controllers of {self._cluster!r}>"

    def look(self) -> None:
        """Do the next step of everything."""
        self._orphans()
        looks: Sequence[tuple[tuple[str, str], Callable[[Object], None]]] = (
            (DEPLOYMENTS, self._deployment),
            (REPLICA_SETS, self._replica_set),
            (GROUPS, self._groups),
            (JOBS, self._job),
        )
        for kind, look in looks:
            for found in [*self._cluster.select(Place(*kind))]:
                look(found)

    # What is owned

    def _owned(self, kind: tuple[str, str], owner: Object) -> list[Object]:
        return [
            found
            for found in self._cluster.select(Place(*kind, owner["metadata"]["namespace"]))
            if _owner(found) == owner["metadata"]["uid"]
        ]

    def _orphans(self) -> None:
        """Delete what is owned by what is gone."""
        there = {found["metadata"].get("uid") for found in self._cluster.objects.values()}
        for kind in (REPLICA_SETS, PODS):
            for found in [*self._cluster.select(Place(*kind))]:
                owner = _owner(found)
                if owner is not None and owner not in there and not is_going(found):
                    self._cluster.delete(key_of(kind, found))

    def _make_pod(self, owner: Object, kind: str, name: str, template: Object) -> None:
        made: Object = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}
        made["metadata"] = {**made.get("metadata", {}), **_owned_by(owner, kind)}
        made["status"] = {"phase": "Pending", "conditions": []}
        self._cluster.create(Key(*PODS, owner["metadata"]["namespace"], name), made)

    def _set_status(self, kind: tuple[str, str], found: Object, status: Object) -> None:
        key = key_of(kind, found)
        whole = copy.deepcopy(self._cluster.get(key))
        whole["status"] = {"observedGeneration": whole["metadata"]["generation"], **status}
        self._cluster.replace(key, whole)

    def _scale(self, replica_set: Object, replicas: int) -> None:
        self._cluster.merge(key_of(REPLICA_SETS, replica_set), {"spec": {"replicas": replicas}})

    # Deployments

    def _deployment(self, found: Object) -> None:
        spec, wanted = found["spec"], found["spec"]["replicas"]
        sets = self._owned(REPLICA_SETS, found)
        new = next((each for each in sets if _plain(each) == spec["template"]), None)
        if new is None:
            new = self._make_replica_set(found)
        old = [each for each in sets if each["metadata"]["uid"] != new["metadata"]["uid"]]
        self._roll(found, new, old)
        sets = self._owned(REPLICA_SETS, found)
        ready = sum(each["status"].get("readyReplicas", 0) for each in sets)
        updated = self._cluster.get(key_of(REPLICA_SETS, new))["status"]
        _, missing = _leeway(spec, wanted)
        done = updated.get("readyReplicas", 0) >= wanted and not any(
            each["status"].get("replicas") for each in old
        )
        reason = "NewReplicaSetAvailable" if done else "ReplicaSetUpdated"
        status = {
            "replicas": sum(each["status"].get("replicas", 0) for each in sets),
            "updatedReplicas": updated.get("replicas", 0),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "unavailableReplicas": max(wanted - ready, 0),
            "conditions": [
                {"type": "Available", "status": str(ready >= wanted - missing)},
                {"type": "Progressing", "status": "True", "reason": reason},
            ],
        }
        self._set_status(DEPLOYMENTS, found, status)

    def _make_replica_set(self, found: Object) -> Object:
        """With no replicas yet."""
        template = copy.deepcopy(found["spec"]["template"])
        mark = _hash(template)
        template["metadata"]["labels"]["pod-template-hash"] = mark
        labels = {**found["spec"]["selector"]["matchLabels"], "pod-template-hash": mark}
        name = f"{found['metadata']['name']}-{mark}"
        made = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {"labels": labels, **_owned_by(found, "Deployment")},
            "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
            "status": {},
        }
        return self._cluster.create(Key(*REPLICA_SETS, found["metadata"]["namespace"], name), made)

    def _roll(self, found: Object, new: Object, old: list[Object]) -> None:
        """Move replicas from the old ones to the new one, as far as may be done now."""
        wanted = found["spec"]["replicas"]
        surge, missing = _leeway(found["spec"], wanted)
        has = new["spec"]["replicas"]
        before = sum(each["spec"]["replicas"] for each in old)
        if not before:
            if has != wanted:
                self._scale(new, wanted)
            return
        more = min(wanted - has, wanted + surge - has - before)
        if more > 0:
            self._scale(new, has + more)
        for each in old:  # those that are not ready serve nobody
            ready = each["status"].get("readyReplicas", 0)
            spare = each["spec"]["replicas"] - ready
            serving = sum(one["status"].get("readyReplicas", 0) for one in [new, *old])
            fewer = spare + min(ready, max(serving - (wanted - missing), 0))
            if fewer > 0:
                self._scale(each, each["spec"]["replicas"] - fewer)
                return  # the rest when these are gone

    # ReplicaSets

    def _replica_set(self, found: Object) -> None:
        pods = [each for each in self._owned(PODS, found) if not is_going(each)]
        wanted = found["spec"]["replicas"]
        for _ in range(wanted - len(pods)):
            name = f"{found['metadata']['name']}-{uuid.uuid4().hex[:5]}"
            self._make_pod(found, "ReplicaSet", name, found["spec"]["template"])
        pods.sort(key=_order_of_leaving)
        for each in pods[: max(len(pods) - wanted, 0)]:
            self._cluster.delete(key_of(PODS, each))
        left = [each for each in self._owned(PODS, found) if not is_going(each)]
        ready = sum(map(is_ready, left))
        status = {"replicas": len(left), "readyReplicas": ready, "availableReplicas": ready}
        self._set_status(REPLICA_SETS, found, status)

    # LeaderWorkerSets

    def _groups(self, found: Object) -> None:
        spec = found["spec"]
        mark = _hash(spec["leaderWorkerTemplate"])
        groups: dict[int, list[Object]] = {}
        for pod in self._owned(PODS, found):
            number = int(pod["metadata"]["labels"][f"{LWS}/group-index"])
            groups.setdefault(number, []).append(pod)
        ready = [number for number, pods in groups.items() if all(map(is_ready, pods))]
        for number, pods in sorted(groups.items()):
            is_old = pods[0]["metadata"]["labels"][f"{LWS}/template-revision-hash"] != mark
            is_broken = any(each["status"].get("phase") == "Failed" for each in pods)
            others = sum(each != number for each in ready)
            may_go = others >= spec["replicas"] - _leeway_of_groups(spec)
            if number >= spec["replicas"] or is_broken or (is_old and may_go):
                for each in pods:
                    self._cluster.delete(key_of(PODS, each))
                if number in ready:
                    ready.remove(number)
        for number in range(spec["replicas"]):
            if number not in groups:
                self._make_group(found, number, mark)
        count = len(self._owned(PODS, found)) // spec["leaderWorkerTemplate"]["size"]
        status = {
            "replicas": count,
            "readyReplicas": len(ready),
            "conditions": [
                {"type": "Available", "status": str(len(ready) >= spec["replicas"])},
            ],
        }
        self._set_status(GROUPS, found, status)

    def _make_group(self, found: Object, number: int, mark: str) -> None:
        group = found["spec"]["leaderWorkerTemplate"]
        name, size = found["metadata"]["name"], group["size"]
        for worker in range(size):
            kind = "workerTemplate" if worker else "leaderTemplate"
            template = copy.deepcopy(group.get(kind) or group["workerTemplate"])
            template.setdefault("metadata", {}).setdefault("labels", {}).update(
                {
                    f"{LWS}/name": name,
                    f"{LWS}/group-index": str(number),
                    f"{LWS}/worker-index": str(worker),
                    f"{LWS}/template-revision-hash": mark,
                }
            )
            leader = f"{name}-{number}.{name}.{found['metadata']['namespace']}"
            for container in template["spec"]["containers"]:
                container.setdefault("env", []).extend(
                    [
                        {"name": "LWS_LEADER_ADDRESS", "value": leader},
                        {"name": "LWS_GROUP_SIZE", "value": str(size)},
                        {"name": "LWS_WORKER_INDEX", "value": str(worker)},
                    ]
                )
            pod = f"{name}-{number}-{worker}" if worker else f"{name}-{number}"
            self._make_pod(found, "LeaderWorkerSet", pod, template)

    # Jobs

    def _job(self, found: Object) -> None:
        """One pod; it is not tried again."""
        pods = self._owned(PODS, found)
        if not pods and not found.get("status"):
            name = f"{found['metadata']['name']}-{uuid.uuid4().hex[:5]}"
            self._make_pod(found, "Job", name, found["spec"]["template"])
        phases = [each["status"].get("phase") for each in pods]
        if "Succeeded" in phases:
            done = [{"type": "Complete", "status": "True"}]
            self._set_status(JOBS, found, {"succeeded": 1, "conditions": done})
        elif "Failed" in phases:
            failed = [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]
            self._set_status(JOBS, found, {"failed": 1, "conditions": failed})


def _owner(found: Object) -> Any:
    return next((each["uid"] for each in found["metadata"].get("ownerReferences", ())), None)


def _owned_by(owner: Object, kind: str) -> Object:
    meta = owner["metadata"]
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": kind,
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
    }
    return {"ownerReferences": [reference]}


def _plain(replica_set: Object) -> Object:
    """Its template as the Deployment has it."""
    template: Object = copy.deepcopy(replica_set["spec"]["template"])
    template["metadata"]["labels"].pop("pod-template-hash")
    return template


def _hash(template: Object) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def _leeway(spec: Object, wanted: int) -> tuple[int, int]:
    """How many pods there may be too many, and too few, during a rollout."""
    strategy = spec.get("strategy", {})
    if strategy.get("type") == "Recreate":
        return 0, wanted
    knobs = strategy.get("rollingUpdate", {})
    surge = _part(knobs.get("maxSurge", "25%"), wanted, ceil)
    missing = _part(knobs.get("maxUnavailable", "25%"), wanted, floor)
    return surge, missing if surge or missing else 1


def _leeway_of_groups(spec: Object) -> int:
    knobs = spec.get("rolloutStrategy", {}).get("rollingUpdateConfiguration", {})
    return max(_part(knobs.get("maxUnavailable", 1), spec["replicas"], floor), 1)


def _part(knob: int | str, wanted: int, rounded: Callable[[float], int]) -> int:
    if isinstance(knob, int):
        return knob
    return rounded(int(knob.removesuffix("%")) * wanted / 100)


def _order_of_leaving(pod: Object) -> tuple[bool, int, int]:
    cost = int(pod["metadata"].get("annotations", {}).get(_COST, "0"))
    return is_ready(pod), cost, -int(pod["metadata"]["resourceVersion"])
