"""Does what was planned fit what is here? Settings and findings in, contradictions out.

Pure. Asked before an engine is started, for an engine says the same after minutes and in a
traceback. Each answer is one line; no line means no contradiction that we know of, not a promise.
Rules of division: vLLM 0.32, config/model.py and config/parallel.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from serving.engine_args import EngineKind, Node, Parallelism
from serving.machine import GIB, Gpu
from serving.replica.settings import Gpus

_DEGREES: Final = {
    "--tensor-parallel-size": "tensor", "-tp": "tensor", "--tp-size": "tensor",
    "--pipeline-parallel-size": "pipeline", "-pp": "pipeline", "--pp-size": "pipeline",
    "--data-parallel-size": "data", "-dp": "data", "--dp-size": "data",
}  # fmt: skip

_REPORTED: Final = 0.95
"""A card sold as 141 GB has less to report; the driver keeps some."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What bears on a plan and is found at the start."""

    gpus: Sequence[Gpu]
    cores: int
    shm_mib: int | None = None
    """None where there is no /dev/shm to ask."""
    model: Mapping[str, Any] | None = None
    """The model's config.json; None if it is not on disk."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the settings, the arguments and the environment come to."""

    kind: EngineKind
    degrees: Parallelism
    gpus: Gpus
    node: Node | None = None
    threads: str | None = None
    shm_mib: int | None = None

    @property
    def nodes(self) -> int:
        """How many nodes share the replica."""
        return 1 if self.node is None else self.node.size


def degrees_of(parallelism: Parallelism, args: Sequence[str]) -> Parallelism:
    """The degrees the engine will see: its arguments come last, and win.

    Raises ValueError for a degree that is no number above 0.
    """
    degrees = {name: getattr(parallelism, name) for name in ("tensor", "pipeline", "data")}
    words = [part for word in args for part in (word.split("=", 1) if word[:1] == "-" else [word])]
    for flag, value in pairwise(words):
        if (name := _DEGREES.get(flag)) is not None:
            if not value.isdecimal() or int(value) < 1:
                raise ValueError(f"{flag} {value}: not a degree of parallelism")
            degrees[name] = int(value)
    return Parallelism(**degrees, expert=parallelism.expert)


def contradictions(plan: Plan, found: Findings) -> list[str]:
    """Every reason not to start."""
    complaints = _of_nodes(plan)
    if plan.kind is EngineKind.VLLM_CPU:
        complaints += _of_cpu(plan, found)
    elif plan.kind is not EngineKind.SIM:
        complaints += _of_gpus(plan, found)
    if found.model is not None:
        complaints += _of_model(plan.degrees, found.model)
    if plan.shm_mib is not None and found.shm_mib is not None and found.shm_mib < plan.shm_mib:
        complaints.append(f"/dev/shm has {found.shm_mib} MiB, the settings ask for {plan.shm_mib}")
    return complaints


def _of_nodes(plan: Plan) -> list[str]:
    if plan.degrees.devices % plan.nodes:
        return [f"{plan.degrees.devices} devices cannot be shared evenly by {plan.nodes} nodes"]
    return []


def _of_gpus(plan: Plan, found: Findings) -> list[str]:
    here, complaints = plan.degrees.devices // plan.nodes, []
    count = plan.gpus.count or here
    if plan.gpus.count is not None and plan.gpus.count != here:
        complaints.append(
            f"the plan counts on {plan.gpus.count} GPUs here, its parallelism needs {here}"
        )
    if len(found.gpus) < max(count, here):
        complaints.append(f"the plan needs {max(count, here)} GPUs, {len(found.gpus)} found")
    for gpu in found.gpus[:here]:
        if plan.gpus.name is not None and plan.gpus.name.lower() not in gpu.name.lower():
            complaints.append(f"the plan is for {plan.gpus.name}, found {gpu.name}")
            break
        least = plan.gpus.memory_gib
        if least is not None and gpu.memory_bytes < _REPORTED * least * GIB:
            have = gpu.memory_bytes / GIB
            complaints.append(f"the plan counts on {least:g} GiB a GPU, {gpu.name} has {have:.0f}")
            break
    if any("MIG" in gpu.name for gpu in found.gpus[:here]) and plan.degrees.tensor > 1:
        complaints.append("MIG slices cannot reach each other: parallelism.tensor must be 1")
    return complaints


def _of_cpu(plan: Plan, found: Findings) -> list[str]:
    complaints, here = [], plan.degrees.devices // plan.nodes
    if plan.gpus != Gpus():
        complaints.append("the plan counts on GPUs, the engine is vllm-cpu")
    if plan.threads is not None and plan.threads not in ("auto", "nobind"):
        groups = plan.threads.count("|") + 1
        if groups != here:
            complaints.append(f"cpu.threads names {groups} groups of cores for {here} ranks")
    if here > found.cores:
        complaints.append(f"{here} ranks need a core each, {found.cores} found")
    return complaints


def _of_model(degrees: Parallelism, model: Mapping[str, Any]) -> list[str]:
    text = model.get("text_config")
    model = text if isinstance(text, dict) else model
    heads, kv_heads = model.get("num_attention_heads"), model.get("num_key_value_heads")
    tensor, complaints = degrees.tensor, []
    if isinstance(heads, int) and heads % tensor:
        complaints.append(f"{heads} attention heads cannot be shared by {tensor} ranks")
    if isinstance(kv_heads, int) and kv_heads > 0 and kv_heads % tensor and tensor % kv_heads:
        complaints.append(f"{kv_heads} KV heads can neither be shared nor copied to {tensor} ranks")
    layers = model.get("num_hidden_layers")
    if isinstance(layers, int) and layers < degrees.pipeline:
        complaints.append(f"{layers} layers are too few for {degrees.pipeline} pipeline stages")
    return complaints
