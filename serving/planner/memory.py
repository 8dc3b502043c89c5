"""What a replica takes on each of its GPUs, and what that leaves for the KV cache.

    usable  = utilisation * memory                       (vLLM's gpu_memory_utilization, 0.92)
    cache   = usable - weights - activations - overhead
    weights : what the GPU's stage holds: tensor parallelism cuts matrices, copies KV heads once
              there are more GPUs than heads, and leaves routers and latent projections whole
    activations : one step of max_num_batched_tokens, and logits of max_num_seqs in 32 bits
    overhead    : CUDA context and graphs, communication buffers

The stage that has least room decides. Invariants: no share is negative; more of anything never
leaves more room. Figures for activations and overhead are estimates, on the safe side of what
vLLM's profile run reports.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from serving.planner.hardware import GIB, Kind, Vendor
from serving.planner.legal import Split
from serving.planner.model import FeedForward, Layer, Mixer, Model


@dataclass(frozen=True, slots=True)
class Budget:
    """How the engine is told to use a GPU's memory. The defaults are vLLM's on large GPUs."""

    utilisation: float = 0.92
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    kv_bits: int = 16
    max_model_len: int = 4096


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes on the fullest GPU of a replica; `cache` is what is left, negative if nothing is."""

    weights: int
    activations: int
    overhead: int
    cache: int
    longest: int
    """What one sequence of max_model_len needs."""

    @property
    def fits(self) -> bool:
        """vLLM starts only if one sequence of the greatest length finds room."""
        return self.cache >= max(self.longest, 1)


def stages(layers: int, pipeline: int) -> list[int]:
    """How many layers each stage has, as vLLM deals them: what does not divide goes to the
    last stages but one, since the ends hold the tables of the vocabulary."""
    counts = [layers // pipeline] * pipeline
    for back in range(2, layers % pipeline + 2):
        counts[-back] += 1
    return counts


@lru_cache(maxsize=4096)
def stage_layers(model: Model, pipeline: int) -> tuple[Counter[Layer], ...]:
    """What each stage holds, like layers counted together."""
    found, start = [], 0
    for count in stages(len(model.layers), pipeline):
        found.append(Counter(model.layers[start : start + count]))
        start += count
    return tuple(found)


def layer_weights(model: Model, layer: Layer, split: Split) -> float:
    """Bytes of one layer on one GPU."""
    written = model.quantisation.bits / 8
    attention = 2.0 if model.quantisation.spares_attention else written
    total = model.mixer_parameters(layer.mixer, split.tensor) * attention
    if layer.feed_forward is FeedForward.DENSE:
        total += model.dense_parameters() / split.tensor * _dense_bytes(model)
    elif layer.feed_forward is FeedForward.EXPERTS and model.experts is not None:
        routed = model.experts.total * model.expert_parameters() / split.expert_ranks
        if split.experts:
            held = -(-model.experts.total // split.expert_ranks)
            routed = float(held * model.expert_parameters())
        total += routed * written + model.shared_parameters() / split.tensor * _dense_bytes(model)
        total += 2.0 * model.experts.total * model.hidden
    return total


def _dense_bytes(model: Model) -> float:
    """Per weight of a feed-forward that every token passes; MXFP4 is for routed experts only."""
    return 2.0 if model.quantisation.method == "mxfp4" else model.quantisation.bits / 8


def weights(model: Model, split: Split) -> list[float]:
    """Bytes of weights on a GPU of each stage."""
    table = 2.0 * model.padded_vocabulary * model.hidden / split.tensor
    found = [
        sum(count * layer_weights(model, layer, split) for layer, count in held.items())
        for held in stage_layers(model, split.pipeline)
    ]
    found[0] += table + 2.0 * model.vision_parameters / split.tensor
    if split.pipeline > 1 or not model.is_tied:
        found[-1] += table
    return found


def kv_token_bytes(model: Model, tp: int, kv_bits: int) -> float:
    """Bytes that one attention layer keeps of one token, on one GPU."""
    if model.latent is not None:
        kept = model.latent.kv_rank + model.latent.rope_dim
        return kept * kv_bits / 8 + model.latent.index_bytes
    return 2 * model.kv_heads_at(tp) * model.head_dim * kv_bits / 8


def sequence_bytes(
    model: Model, split: Split, kv_bits: int, tokens: float, stage: int | None = None
) -> float:
    """Bytes that one sequence of so many tokens keeps on a GPU: of one stage, or of the
    stage that keeps most."""
    per_token = kv_token_bytes(model, split.tensor, kv_bits)
    state = model.recurrent.state_bytes / split.tensor if model.recurrent else 0.0
    by_mixer = {
        Mixer.FULL: per_token * tokens,
        Mixer.WINDOW: per_token * min(tokens, float(model.window)),
        Mixer.RECURRENT: state,
        Mixer.NONE: 0.0,
    }
    held = stage_layers(model, split.pipeline)
    chosen = held if stage is None else held[stage : stage + 1]
    return max(
        sum(count * by_mixer[layer.mixer] for layer, count in each.items()) for each in chosen
    )


def activations(model: Model, split: Split, budget: Budget) -> float:
    """Bytes that one step needs at its widest."""
    tokens = budget.max_num_batched_tokens
    width = model.width / split.tensor
    if model.experts is not None:
        cut = 1 if split.experts else split.tensor
        width = max(width, model.experts.active * model.experts.width / cut)
    step = 2.0 * tokens * (4 * model.hidden + 2 * width)
    logits = 4.0 * budget.max_num_seqs * model.padded_vocabulary
    return step + 2 * logits


def overhead(kind: Kind, split: Split) -> float:
    """Bytes for what is neither weights nor a step: context, graphs, communication."""
    if kind.vendor is Vendor.CPU:
        return 0.25 * GIB
    return (0.9 if split.gpus == 1 else 1.6) * GIB * (0.6 if kind.is_slice else 1.0)


def footprint(model: Model, split: Split, kind: Kind, budget: Budget) -> Footprint:
    """What the GPU with least room to spare holds."""
    usable = budget.utilisation * kind.memory
    step = activations(model, split, budget)
    fixed = overhead(kind, split)

    def of_stage(stage: int, held: float) -> Footprint:
        longest = sequence_bytes(model, split, budget.kv_bits, budget.max_model_len, stage)
        left = usable - held - step - fixed
        return Footprint(round(held), round(step), round(fixed), int(left), round(longest))

    found = [of_stage(stage, held) for stage, held in enumerate(weights(model, split))]
    return min(found, key=lambda each: each.cache - each.longest)


def sequences(model: Model, split: Split, kind: Kind, budget: Budget, tokens: float) -> float:
    """How many sequences of so many tokens each GPU of a replica holds at once, at the least."""
    usable = budget.utilisation * kind.memory
    fixed = activations(model, split, budget) + overhead(kind, split)
    counts = [
        (usable - held - fixed)
        / max(sequence_bytes(model, split, budget.kv_bits, tokens, stage), 1.0)
        for stage, held in enumerate(weights(model, split))
    ]
    return max(0.0, min(counts))
