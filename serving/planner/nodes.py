"""A plan as a cluster needs it: which nodes there are to be, as values of charts/platform.

Pure. The nodes are those that the plan puts replicas on, with all the GPUs that the inventory has
there: whoever starts nodes starts whole ones. Slices are told as what their GPUs are cut into.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final

import yaml

from serving.planner.hardware import Inventory, Kind, Vendor, kinds
from serving.planner.model import PlanError
from serving.planner.search import Plan, Pool
from serving.planner.write import PRODUCTS

_PARTS: Final = {"1": 7, "2": 3, "3": 2, "4": 1, "7": 1}
"""How many slices of a profile NVIDIA's driver cuts from one GPU, by the profile's compute share;
1g with twice the memory: see `_parts`."""


def as_platform(plan: Plan, inventory: Inventory) -> str:
    """`gpus` of charts/platform, YAML. Raises PlanError for a plan without GPUs."""
    found = [
        _nodes(pool, inventory)
        for pool in plan.pools
        if pool.candidate.kind.vendor is Vendor.NVIDIA
    ]
    if not found:
        raise PlanError("charts/platform knows of nodes with NVIDIA GPUs, and the plan has none")
    return yaml.safe_dump({"gpus": found}, sort_keys=False)


def _nodes(pool: Pool, inventory: Inventory) -> dict[str, Any]:
    kind = pool.candidate.kind
    on_host = Counter(gpu.node for gpu in inventory.of_kind(kind))
    hosts = {gpu.node for placement in pool.placements for gpu in placement.gpus}
    most = max(on_host[host] for host in hosts)
    if kind.is_slice:
        parts = _parts(kind)
        sharing = {"kind": "mig", "profile": kind.profile, "perGpu": parts}
        return {
            "name": kind.name,
            "perNode": math.ceil(most / parts),
            "nodes": len(hosts),
            "sharing": sharing,
        }
    product = PRODUCTS.get(kind.name)
    instance = {"instance": product.lower()} if product else {}
    return {"name": kind.name, "perNode": most, "nodes": len(hosts)} | instance


def _parts(kind: Kind) -> int:
    """1g takes a seventh of the compute; with twice the memory, of which there are eight parts,
    there is room for four."""
    compute = kind.profile[0]
    whole = kinds()[kind.name.removesuffix(f"-{kind.profile}")]
    if compute == "1" and kind.memory > whole.memory / 6:
        return 4
    return _PARTS[compute]
