"""A plan as others read it: vLLM arguments, replica settings, Helm values, a DRA claim, JSON.

Pure: a plan in, text out. What is written of one pool is one Deployment, so a plan over several
kinds of GPU is several documents, but for JSON and arguments.
"""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from typing import Any, Final

import yaml

from serving.planner.hardware import GIB, MIB, Kind, Link, Vendor
from serving.planner.model import PlanError
from serving.planner.place import Placement
from serving.planner.search import Plan, Pool

PRODUCTS: Final = {
    "l4": "L4", "a10g": "A10G", "l40s": "L40S", "a100-40gb": "A100", "a100-80gb": "A100",
    "h100": "H100", "h200": "H200", "b200": "B200",
}  # fmt: skip


def arguments(plan: Plan, pool: Pool) -> list[str]:
    """What `vllm serve`, or the engine arguments of a replica, are given for one replica."""
    split, budget = pool.candidate.split, plan.budget
    said = ["--model", plan.model.name, "--tensor-parallel-size", str(split.tensor)]
    if split.pipeline > 1:
        said += ["--pipeline-parallel-size", str(split.pipeline)]
    if split.data > 1:
        said += ["--data-parallel-size", str(split.data)]
    if split.experts:
        said += ["--enable-expert-parallel"]
    said += ["--max-model-len", str(budget.max_model_len)]
    said += ["--max-num-seqs", str(budget.max_num_seqs)]
    said += ["--max-num-batched-tokens", str(budget.max_num_batched_tokens)]
    if budget.kv_bits == 8:
        said += ["--kv-cache-dtype", "fp8"]
    if pool.candidate.kind.vendor is Vendor.CPU:
        return [*said, "--kv-cache-memory-bytes", str(_cpu_cache(plan, pool))]
    return [*said, "--gpu-memory-utilization", f"{budget.utilisation:g}"]


def _cpu_cache(plan: Plan, pool: Pool) -> int:
    """Main memory is shared with all else: four of the longest sequences and 256 MiB at the least,
    in whole MiB."""
    used = pool.candidate.footprint
    if used is None:
        raise PlanError("a pool without a footprint")
    return min(used.cache, max(4 * used.longest, 256 * MIB)) // MIB * MIB


def as_arguments(plan: Plan) -> str:
    """A line of arguments for each pool, and above it where its replicas go."""
    lines = []
    for pool in plan.pools:
        lines += [f"# {pool.replicas} x {pool.candidate.split} on {pool.candidate.kind.name}"]
        lines += [f"#   {where(placement)}" for placement in pool.placements]
        lines += [shlex.join(arguments(plan, pool))]
    return "\n".join(lines) + "\n"


def where(placement: Placement) -> str:
    """A replica's hosts and its GPUs on each."""
    return "; ".join(
        f"{node}: GPU {', '.join(str(gpu.index) for gpu in placement.gpus if gpu.node == node)}"
        for node in placement.nodes
    )


def replica_settings(plan: Plan, pool: Pool) -> dict[str, Any]:
    """The settings file of `headrace replica` for one replica, or for one node of it."""
    kind, used = pool.candidate.kind, pool.candidate.footprint
    settings: dict[str, Any] = {
        "model": plan.model.name,
        "parallelism": degrees(pool),
        "max_model_len": plan.budget.max_model_len,
        "args": [
            f"--{name}={value}" for name, value in _engine_args(arguments(plan, pool)).items()
        ],
    }
    if kind.vendor is Vendor.CPU or used is None:
        return settings | {"engine": "vllm-cpu"}
    product = PRODUCTS.get(kind.name)
    gpus: dict[str, Any] = {"count": gpus_per_pod(pool), "memory_gib": _whole_gib(kind)}
    return settings | {"engine": "vllm", "gpus": ({"name": product} if product else {}) | gpus}


def _whole_gib(kind: Kind) -> int:
    """What such a GPU has at the least, so that its like is not refused for a little less."""
    return math.floor(kind.memory / GIB * 0.95)


def degrees(pool: Pool) -> dict[str, Any]:
    """The degrees of parallelism, as the chart and the replica's settings name them."""
    split = pool.candidate.split
    return {
        "tensor": split.tensor,
        "pipeline": split.pipeline,
        "data": split.data,
        "expert": split.experts,
    }


def as_replica(plan: Plan, pool: Pool) -> str:
    """The settings, YAML."""
    return yaml.safe_dump(replica_settings(plan, pool), sort_keys=False)


def gpus_per_pod(pool: Pool) -> int:
    """A replica's pods are alike, and each is on one host: the most that divides what every host
    of every replica gives."""
    counts = [Counter(gpu.node for gpu in each.gpus).values() for each in pool.placements]
    return math.gcd(*(count for each in counts for count in each))


def resource(kind: Kind) -> str:
    """The name under which the device plugin hands such GPUs out."""
    if kind.is_slice:
        return f"nvidia.com/mig-{kind.profile}"
    return "amd.com/gpu" if kind.vendor is Vendor.AMD else "nvidia.com/gpu"


def helm_values(plan: Plan, pool: Pool) -> dict[str, Any]:
    """Helm values for one pool, named as the charts of this project name them."""
    split, kind = pool.candidate.split, pool.candidate.kind
    pods = split.gpus // gpus_per_pod(pool)
    gpu: dict[str, Any] = {
        "mode": "mig" if kind.is_slice else "devicePlugin",
        "count": gpus_per_pod(pool),
        "resourceName": resource(kind),
    }
    if kind.is_slice:
        gpu["migProfile"] = kind.profile
    else:
        product = PRODUCTS.get(kind.name)
        gpu |= ({"product": product} if product else {}) | {"memoryGib": _whole_gib(kind)}
    if kind.vendor is Vendor.NVIDIA and gpus_per_pod(pool) > 1:
        gpu["matchAttributes"] = _alike(pool)  # read only where GPUs are claimed (mode: dra)
    if kind.vendor is Vendor.CPU:
        gpu = {"mode": "none"}
    return {
        "model": {"id": plan.model.name, "contextLength": plan.budget.max_model_len},
        "parallelism": degrees(pool),
        "workload": {
            "kind": "leaderworkerset" if pods > 1 else "deployment",
            "replicas": pool.replicas,
        },
        "gpu": gpu,
        "engine": {"args": _engine_args(arguments(plan, pool))},
    }


_SAID_ELSEWHERE: Final = frozenset(
    {"model", "tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size",
     "enable-expert-parallel", "max-model-len"}
)  # fmt: skip


def _engine_args(said: list[str]) -> dict[str, str]:
    """The arguments that have no value of their own in the chart, by name."""
    pairs = zip(said, [*said[1:], "--"], strict=True)
    found = {
        name.removeprefix("--"): value
        for name, value in pairs
        if name.startswith("--") and not value.startswith("--")
    }
    return {name: value for name, value in found.items() if name not in _SAID_ELSEWHERE}


def as_helm(plan: Plan, pool: Pool) -> str:
    """Helm values, YAML."""
    return yaml.safe_dump(helm_values(plan, pool), sort_keys=False)


def claim_template(plan: Plan, pool: Pool) -> dict[str, Any]:
    """A ResourceClaimTemplate (resource.k8s.io/v1) for the GPUs of one pod. Raises PlanError.

    All are of one product; where the plan counts on one PCIe switch, they share its root too.
    Behind an NVLink switch a host's GPUs are joined alike, so nothing more is asked; bridges have
    no attribute that could be asked for.
    """
    kind = pool.candidate.kind
    if kind.vendor is not Vendor.NVIDIA:
        raise PlanError(f"DRA claims are written for NVIDIA GPUs, not for {kind.name}")
    count = gpus_per_pod(pool)
    request = {
        "deviceClassName": "mig.nvidia.com" if kind.is_slice else "gpu.nvidia.com",
        "allocationMode": "ExactCount",
        "count": count,
        "selectors": [{"cel": {"expression": _selector(kind)}}],
    }
    devices: dict[str, Any] = {"requests": [{"name": "gpus", "exactly": request}]}
    if count > 1:
        devices["constraints"] = [
            {"requests": ["gpus"], "matchAttribute": attribute} for attribute in _alike(pool)
        ]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": f"{claim_name(plan.model.name)}-{claim_name(kind.name)}"},
        "spec": {"spec": {"devices": devices}},
    }


def _alike(pool: Pool) -> list[str]:
    found = ["gpu.nvidia.com/productName"]
    if all(placement.links.inner is Link.PCIE_SWITCH for placement in pool.placements):
        found.append("resource.kubernetes.io/pcieRoot")
    return found


def _selector(kind: Kind) -> str:
    attributes, capacity = (
        'device.attributes["gpu.nvidia.com"]',
        'device.capacity["gpu.nvidia.com"]',
    )
    if kind.is_slice:
        return f'{attributes}.profile == "{kind.profile}"'
    product = PRODUCTS.get(kind.name)
    named = f'{attributes}.productName.matches("{product}( |-|$)") && ' if product else ""
    return f'{named}{capacity}.memory.compareTo(quantity("{_whole_gib(kind)}Gi")) >= 0'


def claim_name(name: str) -> str:
    """As Kubernetes allows names: lower case, digits and dashes."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in name.lower().split("/")[-1])
    return kept.strip("-")[:50].strip("-")


def as_dra(plan: Plan, pool: Pool) -> str:
    """The claim template, YAML."""
    return yaml.safe_dump(claim_template(plan, pool), sort_keys=False)


def document(plan: Plan) -> dict[str, Any]:
    """All of the plan, for programs: seconds, bytes, requests a second, prices per hour."""
    demand = plan.demand
    return {
        "model": plan.model.name,
        "demand": {
            "rate": demand.rate,
            "prompt_tokens": demand.prompt,
            "output_tokens": demand.output,
            "ttft_s": demand.objectives.ttft_s,
            "tpot_s": demand.objectives.tpot_s,
        },
        "rate": plan.rate,
        "gpus": plan.gpus,
        "price_per_hour": plan.price,
        "pools": [_pool(plan, pool) for pool in plan.pools],
        "considered": [
            {
                "gpu": each.kind.name,
                "split": str(each.split),
                "verdict": each.verdict,
                "rules": [{"reason": it.reason, "source": it.source} for it in each.refused],
                "rate_per_gpu": each.rate_per_gpu,
            }
            for each in plan.candidates
        ],
    }


def _pool(plan: Plan, pool: Pool) -> dict[str, Any]:
    expected = plan.prediction(pool)
    used = pool.candidate.footprint
    return {
        "gpu": pool.candidate.kind.name,
        "parallelism": degrees(pool),
        "replicas": [
            [list(map(str, _ids(group))) for group in it.groups] for it in pool.placements
        ],
        "weights_bytes": used.weights if used else 0,
        "cache_bytes": used.cache if used else 0,
        "ttft_s": expected.ttft_s,
        "tpot_s": expected.tpot_s,
        "rate": pool.rate,
        "basis": pool.candidate.basis,
        "arguments": arguments(plan, pool),
    }


def _ids(group: Any) -> list[str]:
    return [gpu.id for gpu in group]


def as_json(plan: Plan) -> str:
    """The document, JSON."""
    return json.dumps(document(plan), indent=2) + "\n"
