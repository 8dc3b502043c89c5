"""GPUs and how they are joined: what is fast next to what.

Figures are the makers' data sheets: memory as the driver reports it, dense (not sparse) arithmetic,
links per direction and GPU. Prices are rounded on-demand list prices and only rank kinds of GPU;
give your own with --price.

How well two GPUs are joined is read off four names each carries: its NVLink domain (behind a
switch or not), PCIe switch, NUMA node and host. A PCIe switch is within one NUMA node, and an
NVLink domain and a NUMA node within one host; so in any set of GPUs the worst pair is joined as the
set's common name says, which is what makes the best-connected set easy to find.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from functools import cache
from importlib.resources import files
from typing import Annotated, Final

import msgspec

from serving.planner.model import PlanError

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB

_SLICE = re.compile(r"(?P<compute>[1-7])g\.(?P<memory>\d+)gb")
_EIGHTHS: Final = {"1": 1, "2": 2, "3": 4, "4": 4, "7": 8}
"""A MIG profile's share of its GPU's memory; 1g with twice the memory has two eighths."""


_SLICE_KEEPS: Final = 0.97
"""Of its eighths of the memory; the rest is the driver's."""


class Vendor(StrEnum):
    """Who made it, as far as the engine cares."""

    NVIDIA = "nvidia"
    AMD = "amd"
    CPU = "cpu"


class Fabric(StrEnum):
    """How the GPUs of one host are joined, where an inventory does not say more."""

    SWITCH = "switch"
    PCIE = "pcie"
    HOST = "host"
    NONE = "none"


class Link(IntEnum):
    """How two GPUs are joined; more is better."""

    NONE = 0
    """Not at all: a MIG slice has no peer access."""
    NETWORK = 1
    SYSTEM = 2
    """Through both CPUs."""
    NUMA = 3
    PCIE_SWITCH = 4
    NVLINK = 5
    """A bridge, or some links without a switch."""
    NVSWITCH = 6

    @property
    def label(self) -> str:
        """As it is written in tables."""
        return {
            0: "none", 1: "network", 2: "SYS", 3: "NUMA node", 4: "PCIe switch", 5: "NVLink",
            6: "NVSwitch",
        }[self.value]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of GPU, or of MIG slice. Bytes, bytes per second and operations per second."""

    name: str
    vendor: Vendor
    memory: int
    bandwidth: float
    flops: tuple[tuple[int, float], ...]
    """By the bits of the operands: 16, and 8 and 4 where the hardware has them."""
    link_bandwidth: float
    fabric: Fabric
    price: float
    """Per hour, in the unit of all prices."""
    profile: str = ""
    """The MIG profile, of a slice."""

    @property
    def is_slice(self) -> bool:
        """A MIG slice: isolated from its neighbours, and so without peers."""
        return bool(self.profile)

    def flops_at(self, bits: float) -> float:
        """The rate for weights of so many bits; without arithmetic for them they are widened."""
        fits = [(width, rate) for width, rate in self.flops if width >= bits]
        return min(fits)[1] if fits else self.flops[0][1]


class _Sheet(msgspec.Struct, forbid_unknown_fields=True):
    vendor: Vendor
    memory_mib: Annotated[int, msgspec.Meta(gt=0)]
    bandwidth_gb_s: Annotated[float, msgspec.Meta(gt=0)]
    tflops: dict[str, float]
    link_gb_s: Annotated[float, msgspec.Meta(gt=0)]
    fabric: Fabric
    price_per_hour: float
    slices: list[str] = []


@cache
def kinds() -> Mapping[str, Kind]:
    """All we know, by name; a MIG slice is `h100-1g.10gb`."""
    text = files("serving.planner").joinpath("data/gpus.json").read_bytes()
    found: dict[str, Kind] = {}
    for name, sheet in msgspec.json.decode(text, type=dict[str, _Sheet]).items():
        whole = Kind(
            name=name,
            vendor=sheet.vendor,
            memory=sheet.memory_mib * MIB,
            bandwidth=sheet.bandwidth_gb_s * 1e9,
            flops=tuple(sorted((int(bits), rate * 1e12) for bits, rate in sheet.tflops.items())),
            link_bandwidth=sheet.link_gb_s * 1e9,
            fabric=sheet.fabric,
            price=sheet.price_per_hour,
        )
        found[name] = whole
        found |= {f"{name}-{each}": _slice(whole, each) for each in sheet.slices}
    return found


def _slice(whole: Kind, profile: str) -> Kind:
    match = _SLICE.fullmatch(profile)
    if match is None:
        raise PlanError(f"{profile!r} is no MIG profile")
    eighths = _EIGHTHS[match["compute"]]
    if int(match["memory"]) * GIB > 1.5 * eighths / 8 * whole.memory:
        eighths *= 2
    compute = int(match["compute"]) / 7
    return replace(
        whole,
        name=f"{whole.name}-{profile}",
        memory=int(whole.memory * eighths / 8 * _SLICE_KEEPS),
        bandwidth=whole.bandwidth * eighths / 8,
        flops=tuple((bits, rate * compute) for bits, rate in whole.flops),
        fabric=Fabric.NONE,
        price=whole.price * max(compute, eighths / 8),
        profile=profile,
    )


def kind(name: str) -> Kind:
    """By its name, whatever the case. Raises PlanError that lists what there is."""
    found = kinds().get(canonical(name))
    if found is None:
        whole = ", ".join(sorted(each for each, it in kinds().items() if not it.is_slice))
        raise PlanError(f"no GPU is known as {name!r}; known: {whole}, and MIG: h100-1g.10gb")
    return found


def canonical(name: str) -> str:
    """As we write a kind's name, whether we know it or not."""
    wanted = name.strip().lower()
    return _ALIASES.get(wanted, wanted)


_ALIASES: Final = {
    "a100": "a100-80gb", "a100-40": "a100-40gb", "a100-80": "a100-80gb", "h100-80gb": "h100",
    "mi300": "mi300x", "a10": "a10g",
}  # fmt: skip

_PRODUCTS: Final = (
    ("B200", "b200"), ("H200", "h200"), ("H100", "h100"), ("L40S", "l40s"), ("A10G", "a10g"),
    ("MI300X", "mi300x"), ("L4", "l4"),
)  # fmt: skip


def kind_of_product(product: str, memory_mib: int) -> Kind:
    """The kind that a driver or a node label calls `product`. Raises PlanError.

    `NVIDIA-H100-80GB-HBM3-MIG-1g.10gb` and `NVIDIA A100-SXM4-40GB` are such names.
    """
    spelt = product.upper()
    profile = _SLICE.search(product.lower()) if "MIG" in spelt else None
    if "A100" in spelt:
        name = "a100-40gb" if "40GB" in spelt or 0 < memory_mib < 60_000 else "a100-80gb"
    else:
        name = next((ours for word, ours in _PRODUCTS if word in spelt), "")
    if not name:
        raise PlanError(f"no GPU is known as {product!r}: describe it in an inventory file")
    return kind(f"{name}-{profile[0]}" if profile else name)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG slice, on one host. `index` is its number there."""

    node: str
    index: int
    kind: Kind
    nvlink: str | None = None
    """The NVLink domain on its host; None: it has no NVLink."""
    is_switched: bool = False
    """All GPUs of its NVLink domain reach all at full speed."""
    pcie: str = "0"
    numa: str = "0"

    @property
    def id(self) -> str:
        """Its name among all."""
        return f"{self.node}/{self.index}"


@dataclass(frozen=True, slots=True)
class Inventory:
    """All GPUs there are, none twice."""

    gpus: tuple[Gpu, ...]

    def __post_init__(self) -> None:
        if not self.gpus:
            raise PlanError("there are no GPUs to plan for")
        seen: set[str] = set()
        numa_of: dict[tuple[str, str], str] = {}
        switched: dict[tuple[str, str | None], bool] = {}
        for gpu in self.gpus:
            if gpu.id in seen:
                raise PlanError(f"GPU {gpu.id} is there twice")
            seen.add(gpu.id)
            if numa_of.setdefault((gpu.node, gpu.pcie), gpu.numa) != gpu.numa:
                raise PlanError(f"PCIe switch {gpu.pcie} of {gpu.node} is on two NUMA nodes")
            if gpu.is_switched and gpu.nvlink is None:
                raise PlanError(f"GPU {gpu.id} is behind an NVLink switch but in no NVLink domain")
            if switched.setdefault((gpu.node, gpu.nvlink), gpu.is_switched) != gpu.is_switched:
                raise PlanError(f"NVLink domain {gpu.nvlink} of {gpu.node} is and is not switched")

    def of_kind(self, wanted: Kind) -> tuple[Gpu, ...]:
        """Those of one kind."""
        return tuple(gpu for gpu in self.gpus if gpu.kind == wanted)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Each kind once, by name."""
        return tuple(sorted({gpu.kind for gpu in self.gpus}, key=lambda each: each.name))


def link(one: Gpu, other: Gpu) -> Link:
    """How two different GPUs are joined."""
    if one.kind.is_slice or other.kind.is_slice:
        return Link.NONE
    if one.node != other.node:
        return Link.NETWORK
    if one.nvlink is not None and one.nvlink == other.nvlink:
        return Link.NVSWITCH if one.is_switched else Link.NVLINK
    if one.pcie == other.pcie:
        return Link.PCIE_SWITCH
    return Link.NUMA if one.numa == other.numa else Link.SYSTEM


def worst_link(gpus: Iterable[Gpu]) -> Link:
    """Of any two of them; NVSWITCH where there is but one. O(n), by what all have in common."""
    members = list(gpus)
    first = members[0]
    if len(members) == 1:
        return Link.NVSWITCH
    if any(gpu.kind.is_slice for gpu in members):
        return Link.NONE
    if any(gpu.node != first.node for gpu in members):
        return Link.NETWORK
    if first.nvlink is not None and all(gpu.nvlink == first.nvlink for gpu in members):
        return Link.NVSWITCH if first.is_switched else Link.NVLINK
    if all(gpu.pcie == first.pcie for gpu in members):
        return Link.PCIE_SWITCH
    return Link.NUMA if all(gpu.numa == first.numa for gpu in members) else Link.SYSTEM
