"""Which ways of splitting a model the engine allows: vLLM's own rules, as of 0.32.

A split is (tensor, pipeline, data, expert parallelism). `refusals` says every rule that it breaks,
with the place in vLLM, or in the maker's documentation, where the rule is written. Rules that
depend on where the GPUs are (peer access) need only their kind and how many a host has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import msgspec

from serving.planner.hardware import Kind, Vendor
from serving.planner.model import FeedForward, Model, PlanError


@dataclass(frozen=True, slots=True, order=True)
class Split:
    """How one replica is laid out. Its GPUs: tensor x pipeline x data."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    experts: bool = False
    """Experts are dealt out whole over tensor x data GPUs, and not cut."""

    @property
    def gpus(self) -> int:
        """Of one replica."""
        return self.tensor * self.pipeline * self.data

    @property
    def expert_ranks(self) -> int:
        """Over how many GPUs a layer's experts are spread, whole or cut."""
        return self.tensor * self.data

    def __str__(self) -> str:
        parts = [f"TP{self.tensor}"]
        parts += [f"PP{self.pipeline}"] if self.pipeline > 1 else []
        parts += [f"DP{self.data}"] if self.data > 1 else []
        return " ".join(parts + (["EP"] if self.experts else []))


def read_split(text: str) -> Split:
    """`TP8-PP2-EP`: its parts in any order and case, joined by - or spaces. Raises PlanError."""
    parts: dict[str, int] = {}
    for part in text.upper().replace("-", " ").split():
        name, number = part[:2], part[2:]
        is_degree = name in ("TP", "PP", "DP") and number.isdecimal() and int(number) > 0
        if name in parts or not (part == "EP" or is_degree):
            raise PlanError(f"{text!r} is no split; TP2, or TP8-PP2-EP, is")
        parts[name] = int(number) if is_degree else 1
    if not parts:
        raise PlanError("an empty split; TP2, or TP8-PP2-EP, is one")
    return Split(parts.get("TP", 1), parts.get("PP", 1), parts.get("DP", 1), "EP" in parts)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One rule that a split breaks, and where it is written."""

    reason: str
    source: str

    def __str__(self) -> str:
        return f"{self.reason} ({self.source})"


def refusals(model: Model, split: Split, kind: Kind, gpus_per_node: int) -> list[Refusal]:
    """Every rule broken by a replica so laid out on GPUs of one kind; none: it is legal."""
    found: list[Refusal] = []
    for rules in (_heads, _feed_forward, _groups, _vocabulary, _pipeline, _data):
        found += rules(model, split)
    found += _hardware(model, split, kind, gpus_per_node)
    return found


def _heads(model: Model, split: Split) -> Iterator[Refusal]:
    tp, heads, kv = split.tensor, model.heads, model.kv_heads
    if heads and heads % tp:
        yield Refusal(f"{heads} attention heads do not divide by TP {tp}", "vllm/config/model.py")
    if heads and model.latent is None and (kv % tp if tp < kv else tp % kv):
        yield Refusal(
            f"{kv} KV heads neither divide by TP {tp} nor divide it", "vllm model definitions"
        )
    for count in model.recurrent.head_counts if model.recurrent else ():
        if count % tp:
            yield Refusal(
                f"{count} heads of linear attention do not divide by TP {tp}",
                "vllm/model_executor/layers/mamba",
            )


def _has(model: Model, what: FeedForward) -> bool:
    return any(layer.feed_forward is what for layer in model.layers)


def _feed_forward(model: Model, split: Split) -> Iterator[Refusal]:
    tp = split.tensor
    if _has(model, FeedForward.DENSE) and model.width % tp:
        yield Refusal(
            f"the intermediate size {model.width} does not divide by TP {tp}",
            "vllm/model_executor/layers/linear.py",
        )
    if model.experts is None:
        return
    if not split.experts and model.experts.width % split.expert_ranks:
        yield Refusal(
            f"the experts' intermediate size {model.experts.width} does not divide by "
            f"{split.expert_ranks}",
            "vllm/model_executor/layers/fused_moe",
        )
    if model.experts.shared % tp:
        yield Refusal(
            f"the shared experts' size {model.experts.shared} does not divide by TP {tp}",
            "vllm/model_executor/layers/linear.py",
        )


def _groups(model: Model, split: Split) -> Iterator[Refusal]:
    """A shard must not cut a group of weights that share a scale."""
    quantisation, tp = model.quantisation, split.tensor
    sizes: dict[str, int] = {}
    if not quantisation.spares_attention:
        sizes |= _attention_shards(model, tp, quantisation.out_group)
        if _has(model, FeedForward.DENSE) and model.width % tp == 0:
            sizes["intermediate size"] = model.width // tp
        if model.experts and model.experts.shared and model.experts.shared % tp == 0:
            sizes["shared experts' size"] = model.experts.shared // tp
    cut = 1 if split.experts else split.expert_ranks
    if model.experts and model.experts.width % cut == 0 and quantisation.method != "mxfp4":
        sizes["experts' intermediate size"] = model.experts.width // cut
    group = max(quantisation.in_group, quantisation.out_group)
    for what, size in sizes.items():
        if group and size % group:
            yield Refusal(
                f"the {what} is {size} a shard, which cuts {quantisation.method} groups of {group}",
                "vllm/model_executor/layers/quantization",
            )


def _attention_shards(model: Model, tp: int, out_group: int) -> dict[str, int]:
    if model.latent is not None or not model.heads or model.heads % tp:
        return {}
    shards = {"attention output": model.heads // tp * model.head_dim} if tp > 1 else {}
    if out_group:
        shards["keys' size"] = model.kv_heads_at(tp) * model.head_dim
    return shards


def _vocabulary(model: Model, split: Split) -> Iterator[Refusal]:
    if model.padded_vocabulary % split.tensor:
        yield Refusal(
            f"the vocabulary, padded to {model.padded_vocabulary}, does not divide by "
            f"TP {split.tensor}",
            "vllm/model_executor/layers/vocab_parallel_embedding.py",
        )


@cache
def _pipelined() -> Mapping[str, bool]:
    """By architecture: does vLLM's class have SupportsPP?"""
    text = files("serving.planner").joinpath("data/architectures.json").read_bytes()
    table = msgspec.json.decode(text, type=dict[str, list[str] | str])
    return dict.fromkeys(table["pipeline"], True) | dict.fromkeys(table["no_pipeline"], False)


def is_known(model: Model) -> bool:
    """Does vLLM 0.32 have the model's architecture?"""
    return model.architecture in _pipelined()


def _pipeline(model: Model, split: Split) -> Iterator[Refusal]:
    if split.pipeline == 1:
        return
    if not _pipelined().get(model.architecture, False):
        yield Refusal(
            f"{model.architecture} has no SupportsPP, so PP is 1",
            "vllm/model_executor/models/interfaces.py",
        )
    if split.pipeline > len(model.layers):
        yield Refusal(
            f"{len(model.layers)} layers do not make {split.pipeline} stages",
            "vllm/distributed/utils.py",
        )


def _data(model: Model, split: Split) -> Iterator[Refusal]:
    if model.experts is None:
        if split.experts:
            yield Refusal("the model has no experts to spread", "vllm/config/model.py")
        if split.data > 1:
            yield Refusal(
                "without experts, data parallelism is replicas",
                "vLLM documentation, Data Parallel Deployment",
            )
    elif split.experts and split.expert_ranks > model.experts.total:
        yield Refusal(
            f"{model.experts.total} experts do not fill {split.expert_ranks} GPUs",
            "vllm/model_executor/layers/fused_moe",
        )
    if split.experts and split.expert_ranks == 1:
        yield Refusal("expert parallelism needs more than one GPU", "vllm/config/parallel.py")


def _hardware(model: Model, split: Split, kind: Kind, gpus_per_node: int) -> Iterator[Refusal]:
    if kind.is_slice and split.gpus > 1:
        yield Refusal(
            "MIG slices have no peer access, so a replica is one slice",
            "NVIDIA MIG User Guide, Application Considerations",
        )
    elif split.tensor > gpus_per_node:
        yield Refusal(
            f"TP {split.tensor} does not fit into a node of {gpus_per_node}: tensor within nodes, "
            "pipeline across",
            "vLLM documentation, Parallelism and Scaling",
        )
    if kind.vendor is not Vendor.NVIDIA and model.quantisation.method == "nvfp4":
        yield Refusal("NVFP4 needs an NVIDIA GPU", "vLLM documentation, Quantization")
