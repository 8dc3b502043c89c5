"""Which replicas are a pod, an endpoint slice, a workload? Read from Kubernetes objects.

Asked: at which addresses does it answer, may it be given work, which models is it there for? Pure.
Invariants: any bytes give sightings or ValueError with a line that says what is wrong; a pod that
has ended, or is a worker of a LeaderWorkerSet group, is none.

What an object says of itself, as an annotation or a label `headrace.io/...` (docs/kubernetes.md):
    model                   the model it is there for
    models                  the same of several, by commas; and pins them: the engine is not asked
    role                    both, prefill or decode
    port, scheme            where its engine answers, if not at the usual
    data-parallel-size      ranks behind the port
    kv-events-port, kv-replay-port, kv-events-topic    where it tells of its cache, without asking
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from gateway.fleet.kubernetes_objects import Metadata, read, reader
from gateway.fleet.watching import Key
from gateway.vocabulary import EventSource, ModelName, ReplicaAddress, Role

MAX_RANKS: Final = 1024
WORKER_INDEX: Final = "leaderworkerset.sigs.k8s.io/worker-index"
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"


class UsualPort(msgspec.Struct, frozen=True):
    """Where an engine answers that does not say: at the port of this name, else at this number."""

    name: str
    number: int


class Stage(StrEnum):
    """How far a replica is, as Kubernetes sees it."""

    COMING = "coming"  # not ready: it is scheduled, pulled, loaded, or unwell
    READY = "ready"
    GOING = "going"  # being deleted: it finishes what it has


class Sighting(msgspec.Struct, frozen=True):
    """One pod, as itself or as an endpoint of a Service tells of it.

    `addresses` are its ranks, none while it has no address: then it has so many `unplaced`.
    `models` are those it is there for, whether or not it serves them by now. `controller` is the
    uid of its ReplicaSet, which goes by `cost` where it has a pod too many; None: something else
    owns it.
    """

    stage: Stage
    pod: Key | None = None
    addresses: tuple[ReplicaAddress, ...] = ()
    models: tuple[ModelName, ...] = ()
    controller: str | None = None
    cost: int = 0
    unplaced: int = 0


def replicas_of(sightings: Iterable[Sighting]) -> list[ReplicaAddress]:
    """The replicas in what was sighted: of what tells of the same port of a pod, the first counts.

    A pod that anything says is going is no replica, whatever others still say.
    """
    seen = list(sightings)
    going = {each.pod for each in seen if each.stage is Stage.GOING and each.pod is not None}
    found: list[ReplicaAddress] = []
    told: set[tuple[Key, str]] = set()
    for each in seen:
        if each.stage is Stage.GOING or each.pod in going or not each.addresses:
            continue
        if each.pod is not None:
            port = each.addresses[0].url.rpartition(":")[2]
            if (each.pod, port) in told:
                continue
            told.add((each.pod, port))
        found += each.addresses
    return found


def unplaced_in(sightings: Iterable[Sighting]) -> dict[str, tuple[ModelName, ...]]:
    """Replicas that will be: ranks of pods that wait for a node or an address, by a name for each,
    with the models they are there for."""
    return {
        f"{each.pod.namespace}/{each.pod.name}#{rank}": each.models
        for each in sightings
        if each.pod is not None and each.stage is Stage.COMING
        for rank in range(each.unplaced)
    }


def models_in(sightings: Iterable[Sighting]) -> tuple[ModelName, ...]:
    """The models that anything is there for and stays, in the order of their names."""
    staying = (each.models for each in sightings if each.stage is not Stage.GOING)
    return tuple(sorted({name for models in staying for name in models}))


# Pods


class _Port(msgspec.Struct, rename="camel"):
    container_port: int
    name: str | None = None


class _Container(msgspec.Struct):
    ports: tuple[_Port, ...] | None = None


class _PodSpec(msgspec.Struct):
    containers: tuple[_Container, ...] | None = None


class _Condition(msgspec.Struct):
    type: str
    status: str


class _PodStatus(msgspec.Struct, rename={"ip": "podIP"}):
    phase: str | None = None
    ip: str | None = None
    conditions: tuple[_Condition, ...] | None = None

    @property
    def is_ready(self) -> bool:
        """All its containers are, and every readiness gate says so."""
        return any(each.type == "Ready" and each.status == "True" for each in self.conditions or ())


class _Pod(msgspec.Struct):
    metadata: Metadata
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


_POD: Final = reader(_Pod)


def read_pod(raw: bytes | msgspec.Raw, usual: UsualPort) -> tuple[Sighting, ...]:
    """The replica that a pod is; none where it is none. Raises ValueError."""
    pod = read(_POD, raw)
    meta, status = pod.metadata, pod.status
    if status.phase in ("Succeeded", "Failed") or meta.label(WORKER_INDEX) not in (None, "0"):
        return ()
    ports = {
        port.name: port.container_port
        for container in (pod.spec.containers or ())
        for port in (container.ports or ())
        if port.name
    }
    stage = Stage.COMING
    if meta.is_going:
        stage = Stage.GOING
    elif status.is_ready and status.ip:
        stage = Stage.READY
    addresses: tuple[ReplicaAddress, ...] = ()
    if status.ip:
        addresses = _addresses(meta, status.ip, _pod_port(meta, ports, usual), stage)
    unplaced = 0 if status.ip else _ranks(meta)
    controller = next(
        (each.uid for each in meta.owners or () if each.controller and each.kind == "ReplicaSet"),
        None,
    )
    cost = (meta.annotations or {}).get(DELETION_COST, "0")
    return (
        Sighting(
            stage, meta.key, addresses, models_of(meta), controller,
            int(cost) if cost.removeprefix("-").isdecimal() and len(cost) < 12 else 0, unplaced,
        ),
    )  # fmt: skip


def _pod_port(meta: Metadata, ports: dict[str, int], usual: UsualPort) -> int:
    named = meta.says("port")
    if named is None:
        return ports.get(usual.name, usual.number)
    if named in ports:
        return ports[named]
    return _number(named, "port", 65535)


# Endpoint slices


class _Conditions(msgspec.Struct):
    ready: bool | None = None
    terminating: bool | None = None


class _Target(msgspec.Struct):
    kind: str | None = None
    namespace: str | None = None
    name: str | None = None


class _Endpoint(msgspec.Struct, rename="camel"):
    addresses: tuple[str, ...] = ()
    conditions: _Conditions | None = None
    target_ref: _Target | None = None


class _SlicePort(msgspec.Struct):
    name: str | None = None
    port: int | None = None


class _Slice(msgspec.Struct, rename="camel"):
    metadata: Metadata
    address_type: str = "IPv4"
    endpoints: tuple[_Endpoint, ...] | None = None
    ports: tuple[_SlicePort, ...] | None = None


_SLICE: Final = reader(_Slice)


def read_slice(raw: bytes | msgspec.Raw, usual: UsualPort) -> tuple[Sighting, ...]:
    """The replicas behind a Service, as one of its endpoint slices tells. Raises ValueError."""
    found = read(_SLICE, raw)
    meta = found.metadata
    if meta.is_going or found.address_type not in ("IPv4", "IPv6"):
        return ()
    port = _slice_port(meta, found.ports or (), usual)
    models = models_of(meta)
    return tuple(
        Sighting(
            stage := _stage(endpoint.conditions or _Conditions()),
            _pod_behind(endpoint, meta),
            _addresses(meta, endpoint.addresses[0], port, stage),
            models,
        )
        for endpoint in found.endpoints or ()
        if endpoint.addresses
    )


def _stage(conditions: _Conditions) -> Stage:
    if conditions.terminating:
        return Stage.GOING
    return Stage.COMING if conditions.ready is False else Stage.READY


def _pod_behind(endpoint: _Endpoint, meta: Metadata) -> Key | None:
    target = endpoint.target_ref
    if target is None or target.kind != "Pod" or target.name is None:
        return None
    return Key(target.namespace or meta.namespace, target.name)


def _slice_port(meta: Metadata, ports: Sequence[_SlicePort], usual: UsualPort) -> int:
    named = meta.says("port")
    if named is not None and named.isdecimal():
        return _number(named, "port", 65535)
    by_name = {each.name: each.port for each in ports if each.port}
    port = by_name.get(named or usual.name)
    if port is None and named is None:
        port = next(iter(by_name.values())) if len(by_name) == 1 else usual.number
    if port is None:
        raise ValueError(f"headrace.io/port: no port is named {named!r}")
    return port


# Workloads


class _Workload(msgspec.Struct):
    metadata: Metadata


_WORKLOAD: Final = reader(_Workload)


def read_workload(raw: bytes | msgspec.Raw, usual: UsualPort) -> tuple[Sighting, ...]:
    """The models that a Deployment or LeaderWorkerSet is there for, at zero replicas too.

    A sighting without a pod. Raises ValueError.
    """
    meta = read(_WORKLOAD, raw).metadata
    return (Sighting(Stage.GOING if meta.is_going else Stage.READY, models=models_of(meta)),)


# What objects say


def models_of(meta: Metadata) -> tuple[ModelName, ...]:
    """The models an object is there for; none where it does not say."""
    return _pins(meta) or tuple(ModelName(name) for name in (meta.says("model"),) if name)


def _pins(meta: Metadata) -> tuple[ModelName, ...]:
    names = (name.strip() for name in (meta.says("models") or "").split(","))
    return tuple(dict.fromkeys(ModelName(name) for name in names if name))


def _addresses(meta: Metadata, host: str, port: int, stage: Stage) -> tuple[ReplicaAddress, ...]:
    """One, or one for each rank. Raises ValueError."""
    if not host.replace(":", "").replace(".", "").isalnum():
        raise ValueError(f"not an address: {host[:80]!r}")
    if ":" in host:
        host = f"[{host}]"
    scheme = meta.says("scheme") or "http"
    if scheme not in ("http", "https"):
        raise ValueError(f"headrace.io/scheme: not http or https: {scheme[:80]!r}")
    role = meta.says("role") or "both"
    if role not in set(Role):
        raise ValueError(f"headrace.io/role: not both, prefill or decode: {role[:80]!r}")
    return ReplicaAddress(
        f"{scheme}://{host}:{_bounded(port, 'port', 65535)}",
        _pins(meta),
        Role(role),
        _events(meta, host),
        expected=models_of(meta),
        is_awaited=stage is Stage.COMING,
    ).ranks(_ranks(meta))


def _ranks(meta: Metadata) -> int:
    return _number(meta.says("data-parallel-size") or "1", "data-parallel-size", MAX_RANKS)


def _events(meta: Metadata, host: str) -> EventSource | None:
    port, replay = meta.says("kv-events-port"), meta.says("kv-replay-port")
    if port is None:
        return None
    return EventSource(
        f"tcp://{host}:{_number(port, 'kv-events-port', 65535)}",
        replay and f"tcp://{host}:{_number(replay, 'kv-replay-port', 65535)}",
        meta.says("kv-events-topic") or "",
    )


def _number(text: str, what: str, most: int) -> int:
    """Raises ValueError."""
    if not (text.isascii() and text.isdecimal() and len(text) < 9):
        raise ValueError(f"headrace.io/{what}: not a number: {text[:80]!r}")
    return _bounded(int(text), what, most)


def _bounded(number: int, what: str, most: int) -> int:
    if not 1 <= number <= most:
        raise ValueError(f"headrace.io/{what}: not from 1 to {most}: {number}")
    return number
