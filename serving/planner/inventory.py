"""Where GPUs are said to be: options, a YAML file, a cluster's nodes, or this machine's driver.

Pure: documents in, an Inventory out; reading them is `serving.planner.sources`. Where nothing is
said of how the GPUs of a host are joined, it is as hosts of that kind usually are: SXM and OAM
boards behind a switch; PCIe cards two to a PCIe switch and half of them to each CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

import msgspec

from serving.planner.hardware import MIB, Fabric, Gpu, Inventory, Kind, kind, kind_of_product
from serving.planner.model import PlanError

Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Sets = list[list[int]]

MIG_RESOURCE: Final = "nvidia.com/mig-"


class _Group(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    count: Count = 1
    nvlink: Sets | None = None
    pcie: Sets | None = None
    numa: Sets | None = None


class _Node(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    gpus: list[_Group]
    count: Count = 1


class _Like(msgspec.Struct, forbid_unknown_fields=True):
    like: str
    memory_mib: Count | None = None
    bandwidth_gb_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    price_per_hour: Annotated[float, msgspec.Meta(ge=0)] | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    nodes: list[_Node]
    kinds: dict[str, _Like] = {}


@dataclass(frozen=True, slots=True)
class Joined:
    """Which GPUs of a host share what, by their numbers there; None: what is usual."""

    nvlink: Sets | None = None
    pcie: Sets | None = None
    numa: Sets | None = None


def host(
    node: str, what: Kind, count: int, first: int = 0, joined: Joined | None = None
) -> list[Gpu]:
    """So many GPUs of one kind on one host, numbered from `first`."""
    told = joined or Joined()
    return [_gpu(node, what, index, (first, count), told) for index in range(first, first + count)]


def _gpu(node: str, what: Kind, index: int, span: tuple[int, int], told: Joined) -> Gpu:
    is_switched = told.nvlink is None and what.fabric is Fabric.SWITCH
    bridge = None if told.nvlink is None else _set_of(told.nvlink, index)
    numa, pcie = _usual(what, index - span[0], span[1])
    if told.numa is not None or told.pcie is not None:  # of what is half told we know only that
        numa = _set_of(told.numa or [], index) or ("0" if told.numa is None else f"own-{index}")
        pcie = _set_of(told.pcie or [], index) or f"own-{index}"
    return Gpu(
        node=node,
        index=index,
        kind=what,
        nvlink=what.name if is_switched else bridge and f"{span[0]}/{bridge}",
        is_switched=is_switched,
        pcie=f"{span[0]}/{pcie}",
        numa=numa,
    )


def _usual(what: Kind, place: int, count: int) -> tuple[str, str]:
    """NUMA node and PCIe switch of one of so many, where nobody says."""
    if what.fabric not in (Fabric.SWITCH, Fabric.PCIE):
        return "0", "0"
    half = max(count // 2 + count % 2, 2)
    return str(place // half), f"{place // half}/{place % half // 2}"


def _set_of(sets: Sets, index: int) -> str | None:
    return next((str(number) for number, each in enumerate(sets) if index in each), None)


def from_options(name: str, count: int, nodes: int, prices: Mapping[str, float]) -> Inventory:
    """`--gpu h200 --count 8 --nodes 2`. Raises PlanError."""
    if count < 1 or nodes < 1:
        raise PlanError("--count and --nodes must be at least 1")
    if count * nodes > 65536:
        raise PlanError(f"{count * nodes} GPUs are more than can be planned for")
    what = priced(kind(name), prices)
    width = len(str(nodes - 1))
    return Inventory(
        tuple(gpu for n in range(nodes) for gpu in host(f"node-{n:0{width}}", what, count))
    )


def priced(what: Kind, prices: Mapping[str, float]) -> Kind:
    """The kind at the price given for it, if one is."""
    return replace(what, price=prices[what.name]) if what.name in prices else what


def from_document(document: object, prices: Mapping[str, float]) -> Inventory:
    """What an inventory file says. Raises PlanError."""
    try:
        read = msgspec.convert(document, _File)
    except msgspec.ValidationError as error:
        raise PlanError(f"inventory: {error}") from error
    known = {name: _like(name, like) for name, like in read.kinds.items()}
    gpus: list[Gpu] = []
    for node in read.nodes:
        for copy in range(node.count):
            name = node.name if node.count == 1 else f"{node.name}-{copy}"
            gpus += _of_node(name, node, known, prices)
    return Inventory(tuple(gpus))


def _like(name: str, like: _Like) -> Kind:
    base = kind(like.like)
    return replace(
        base,
        name=name,
        memory=base.memory if like.memory_mib is None else like.memory_mib * MIB,
        bandwidth=base.bandwidth if like.bandwidth_gb_s is None else like.bandwidth_gb_s * 1e9,
        price=base.price if like.price_per_hour is None else like.price_per_hour,
    )


def _of_node(
    name: str, node: _Node, known: Mapping[str, Kind], prices: Mapping[str, float]
) -> Iterator[Gpu]:
    first = 0
    for group in node.gpus:
        what = priced(known.get(group.kind) or kind(group.kind), prices)
        told = Joined(group.nvlink, group.pcie, group.numa)
        for sets in (told.nvlink, told.pcie, told.numa):
            _check_sets(name, sets or [], range(first, first + group.count))
        yield from host(name, what, group.count, first, told)
        first += group.count


def _check_sets(node: str, sets: Sets, numbers: range) -> None:
    named = [index for each in sets for index in each]
    for index in named:
        if index not in numbers:
            raise PlanError(f"inventory: {node} has no GPU {index} of that kind")
        if named.count(index) > 1:
            raise PlanError(f"inventory: GPU {index} of {node} is in two sets")


def from_nodes(items: Iterable[Mapping[str, Any]], prices: Mapping[str, float]) -> Inventory:
    """A cluster's nodes as the Kubernetes API lists them, those that take no pods left out.

    The product is read off the labels that NVIDIA's GPU feature discovery, or AMD's labeller, puts
    on nodes. All that a node can allocate counts: what pods already hold is not subtracted.
    """
    gpus: list[Gpu] = []
    for item in items:
        meta, spec, status = (item.get(key) or {} for key in ("metadata", "spec", "status"))
        if not spec.get("unschedulable"):
            gpus += _of_cluster_node(
                str(meta.get("name")), meta.get("labels") or {}, status.get("allocatable") or {},
                prices,
            )  # fmt: skip
    if not gpus:
        raise PlanError("no node of the cluster has GPUs to allocate")
    return Inventory(tuple(gpus))


def _of_cluster_node(
    name: str,
    labels: Mapping[str, str],
    allocatable: Mapping[str, str],
    prices: Mapping[str, float],
) -> Iterator[Gpu]:
    first = 0
    for product, memory, count in _allocated(labels, allocatable):
        what = priced(kind_of_product(product, memory), prices)
        yield from host(name, what, count, first)
        first += count


def _allocated(
    labels: Mapping[str, str], allocatable: Mapping[str, str]
) -> Iterator[tuple[str, int, int]]:
    product = labels.get("nvidia.com/gpu.product", "")
    memory = _whole(labels.get("nvidia.com/gpu.memory", "0"))
    amd = labels.get("amd.com/gpu.product-name", labels.get("beta.amd.com/gpu.product-name", ""))
    for resource, amount in sorted(allocatable.items()):
        count = _whole(amount)
        if not count:
            continue
        if resource == "nvidia.com/gpu":
            yield product, memory, count
        elif resource.startswith(MIG_RESOURCE):
            whole = product.split("-MIG-")[0]
            yield f"{whole}-MIG-{resource.removeprefix(MIG_RESOURCE)}", 0, count
        elif resource == "amd.com/gpu":
            yield amd, 0, count


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else 0


@dataclass(frozen=True, slots=True)
class Seen:
    """A GPU as its driver describes it; `profile` is set for a MIG slice."""

    product: str
    memory_mib: int
    numa: str | None = None
    pcie: str | None = None
    nvlink_peers: frozenset[int] = frozenset()
    profile: str = ""


def from_driver(seen: Sequence[Seen], prices: Mapping[str, float]) -> Inventory:
    """This machine's GPUs, in the driver's order. Raises PlanError where it has none."""
    if not seen:
        raise PlanError("no GPU is to be seen here: name some with --gpu")
    return Inventory(
        tuple(_here(index, each, len(seen), prices) for index, each in enumerate(seen))
    )


def _here(index: int, seen: Seen, count: int, prices: Mapping[str, float]) -> Gpu:
    product = f"{seen.product}-MIG-{seen.profile}" if seen.profile else seen.product
    what = priced(kind_of_product(product, seen.memory_mib), prices)
    members = seen.nvlink_peers | {index}
    numa = seen.numa or "0"
    return Gpu(
        node="here",
        index=index,
        kind=what,
        nvlink=str(min(members)) if len(members) > 1 else None,
        is_switched=len(members) == count > 2,
        pcie=f"{numa}/{seen.pcie or index}",
        numa=numa,
    )
