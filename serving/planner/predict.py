"""How fast a replica is, and how much it serves: TTFT, TPOT and the rate within objectives.

A step takes, on each GPU of a tensor-parallel group,

    max(weights / (bandwidth * 0.8), 2 * parameters met * tokens / (flops * 0.65))
      + cache read / (bandwidth * 0.8) + attention flops / (flops * 0.3)
      + 62 us a layer + all-reduces, 2 a layer, of  alpha + 2 (TP - 1) / TP * bytes / link
      + what experts and stages pass on

The four constants are fitted to layers measured on an H200 (docs/benchmarks, 2026-11-26); the rest
is the makers' data sheets. Where a profile has been measured, its own line takes the roofline's
place (`serving.sim.timing`): both answer `seconds(StepWork)`. Where only a prefill rate is known,
such as a gateway learns it, the roofline is brought to it.

With D sequences decoding, a replica in balance takes in D * prompt / output prompt tokens a step,
so its rate is D / (output * step) and one D tells all. Prompts wait for one another as in M/D/1.
Pipeline stages work on as many batches at once, and data-parallel ranks each on their own: both are
lanes of a replica.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from loadtest.traces import Replayed
from serving.planner.hardware import Kind, Link, Vendor
from serving.planner.legal import Split
from serving.planner.memory import Budget, layer_weights, sequence_bytes, stage_layers
from serving.planner.model import FeedForward, Mixer, Model, PlanError
from serving.sim.timing import StepWork

MEMORY_EFFICIENCY: Final = 0.8
ARITHMETIC_EFFICIENCY: Final = 0.65
ATTENTION_EFFICIENCY: Final = 0.3
LAYER_S: Final = 62e-6
PIPELINE_EFFICIENCY: Final = 0.85
"""Stages wait for one another where batches are uneven; assumed, not measured."""
EXPERT_EVENNESS: Final = 0.9
"""Whole experts on each GPU: the one with popular experts keeps the others waiting; assumed."""
BUSIEST: Final = 0.9
"""Of prefill: beyond it waits grow without bound."""

_ALPHA_S: Final = {
    Link.NVSWITCH: 8e-6, Link.NVLINK: 8e-6, Link.PCIE_SWITCH: 25e-6, Link.NUMA: 30e-6,
    Link.SYSTEM: 40e-6, Link.NETWORK: 40e-6, Link.NONE: 0.0,
}  # fmt: skip
_LINK_BANDWIDTH: Final = {
    Link.PCIE_SWITCH: 25e9, Link.NUMA: 15e9, Link.SYSTEM: 10e9, Link.NETWORK: 25e9,
}  # fmt: skip


class Timing(Protocol):
    """How long a step takes."""

    def seconds(self, work: StepWork) -> float:
        """The duration of one step."""


@dataclass(frozen=True, slots=True)
class Objectives:
    """Seconds that must not be passed: to the first token, and between tokens."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of the fleet; `rate` is None for as much as can be had.

    `long_prompt` is the prompt whose TTFT must meet the objective, `longest` the most tokens that a
    request has in all.
    """

    rate: float | None
    prompt: float
    output: float
    objectives: Objectives
    long_prompt: float
    longest: int


def demand_of_trace(arrivals: Sequence[Replayed], objectives: Objectives) -> Demand:
    """A trace's mean rate and lengths; TTFT is held for its 95th percentile of prompts."""
    prompts = sorted(each.prompt_tokens for each in arrivals)
    instants = [each.at_s for each in arrivals]
    span = max(instants) - min(instants)
    if span <= 0:
        raise PlanError("all requests of the trace come at one instant: it has no rate")
    return Demand(
        rate=(len(arrivals) - 1) / span,
        prompt=max(1.0, sum(prompts) / len(prompts)),
        output=max(1.0, sum(each.output_tokens for each in arrivals) / len(arrivals)),
        objectives=objectives,
        long_prompt=max(1, prompts[math.ceil(0.95 * len(prompts)) - 1]),
        longest=max(each.prompt_tokens + each.output_tokens for each in arrivals),
    )


@dataclass(frozen=True, slots=True)
class Prediction:
    """One replica at one rate (requests a second)."""

    rate: float
    ttft_s: float
    tpot_s: float
    sequences: float


@dataclass(frozen=True, slots=True)
class Links:
    """What a replica's GPUs are joined by: inside a tensor-parallel group, and between groups."""

    inner: Link
    outer: Link

    def bandwidth(self, link: Link, kind: Kind) -> float:
        """Bytes a second and direction."""
        return min(kind.link_bandwidth, _LINK_BANDWIDTH.get(link, kind.link_bandwidth))


class Roofline:
    """The time of a step from first principles. Made once per split; `seconds` is O(1)."""

    __slots__ = (
        "_attention_s", "_cache_bytes", "_constant_s", "_cut", "_dense_bytes", "_evenness",
        "_expert_bytes", "_hit", "_memory", "_ranks", "_token_comm_s", "_token_s",
    )  # fmt: skip

    def __init__(
        self, model: Model, split: Split, kind: Kind, links: Links, kv_bits: int = 16
    ) -> None:
        self._memory = kind.bandwidth * MEMORY_EFFICIENCY
        flops = kind.flops_at(model.quantisation.bits)
        self._token_s = 2 * model.active_parameters / split.tensor / (flops * ARITHMETIC_EFFICIENCY)
        pair_flops = _pair_flops(model) / split.tensor
        self._attention_s = pair_flops / (kind.flops_at(16) * ATTENTION_EFFICIENCY)
        self._dense_bytes, self._expert_bytes = _weights(model, split)
        self._hit = (
            math.log1p(-min(model.experts.active / model.experts.total, 1 - 1e-9))
            if model.experts
            else 0.0
        )
        self._ranks = split.data
        self._evenness = 1.0 if split.pipeline == 1 else PIPELINE_EFFICIENCY
        self._constant_s, self._token_comm_s = _passing(model, split, kind, links)
        self._cut, self._cache_bytes = _cache_line(model, split, kv_bits)

    def seconds(self, work: StepWork) -> float:
        """The duration of one step of one lane."""
        tokens = work.prefill_tokens + work.decode_sequences
        touched = 1 - math.exp(self._hit * tokens * self._ranks)
        weights = (self._dense_bytes + touched * self._expert_bytes) / self._memory
        cache = 0.0
        if work.decode_sequences:
            mean = work.decode_context_tokens / work.decode_sequences
            each = self._cache_bytes[0] + self._cache_bytes[1] * mean
            each += self._cache_bytes[2] * min(mean, self._cut)
            cache = work.decode_sequences * each / self._memory
        whole = (
            max(weights, self._token_s * tokens)
            + cache
            + self._attention_s * work.prefill_token_pairs
            + self._constant_s
            + self._token_comm_s * tokens
        )
        return whole / self._evenness


def _pair_flops(model: Model) -> float:
    """Of one token looking at one other, in all layers that look at everything."""
    full = sum(layer.mixer is Mixer.FULL for layer in model.layers)
    if model.latent is not None:
        m = model.latent
        return 2.0 * full * model.heads * (m.nope_dim + m.rope_dim + m.value_dim)
    return 4.0 * full * model.heads * model.head_dim


def _weights(model: Model, split: Split) -> tuple[float, float]:
    """Bytes on one lane's GPUs in line, stage after stage: met by every token, and routed."""
    table = 2.0 * model.padded_vocabulary * model.hidden / split.tensor
    total = routed = 0.0
    for layer, count in stage_layers(model, 1)[0].items():
        total += count * layer_weights(model, layer, split)
        if layer.feed_forward is FeedForward.EXPERTS and model.experts is not None:
            held = model.experts.total * model.expert_parameters() / split.expert_ranks
            routed += count * held * model.quantisation.bits / 8
    unevenness = EXPERT_EVENNESS if split.experts else 1.0
    return max(total - routed, 0.0) + table, routed / unevenness


def _passing(model: Model, split: Split, kind: Kind, links: Links) -> tuple[float, float]:
    """Seconds of a step that do not depend on its tokens, and those that each token adds."""
    layers = len(model.layers)
    constant = 0.0 if kind.vendor is Vendor.CPU else LAYER_S * layers
    per_token = 0.0
    row = 2.0 * model.hidden
    if split.tensor > 1:
        constant += 2 * layers * _ALPHA_S[links.inner]
        share = 2 * (split.tensor - 1) / split.tensor
        per_token += 2 * layers * share * row / links.bandwidth(links.inner, kind)
    outer = links.bandwidth(links.outer, kind)
    if split.pipeline > 1:
        constant += (split.pipeline - 1) * _ALPHA_S[links.outer]
        per_token += (split.pipeline - 1) * row / outer
    if split.data > 1 and model.experts is not None:
        routed = sum(layer.feed_forward is FeedForward.EXPERTS for layer in model.layers)
        constant += 2 * routed * _ALPHA_S[links.outer]
        rows = min(model.experts.active, split.data) if split.experts else split.data
        per_token += 2 * routed * rows * row / outer
    return constant, per_token


def _cache_line(
    model: Model, split: Split, kv_bits: int
) -> tuple[float, tuple[float, float, float]]:
    """What a sequence of n tokens keeps on one lane's GPUs in line: the window, and bytes as
    a + b n + c min(n, window)."""
    window = float(model.window or 0)
    whole = Split(split.tensor)

    def kept(tokens: float) -> float:
        return sequence_bytes(model, whole, kv_bits, tokens)

    state = kept(0)
    far = max(window, 1.0) * 2
    slope = (kept(2 * far) - kept(far)) / far
    inside = (kept(window) - state) / window - slope if window else 0.0
    return window, (state, slope, inside)


@dataclass(frozen=True, slots=True)
class Paced:
    """A timing brought to a prefill rate that is known better than it is: all steps alike."""

    timing: Timing
    factor: float

    def seconds(self, work: StepWork) -> float:
        """The duration of one step."""
        return self.factor * self.timing.seconds(work)


def paced(timing: Timing, tokens_per_s: float, demand: Demand) -> Paced:
    """`timing`, so that prompts of the demand's length are prefilled at the rate."""
    alone = timing.seconds(StepWork(demand.prompt, demand.prompt**2 / 2))
    return Paced(timing, demand.prompt / tokens_per_s / alone)


@dataclass(frozen=True, slots=True)
class Lane:
    """One batch's way through a replica, and how many such a replica has."""

    timing: Timing
    count: int
    most_sequences: float
    """That find room in the cache and in the batch, per lane."""
    budget: Budget
    arrival_s: float = 0.0
    """Of no step: a request's way in, and its first token's way out."""

    def at(self, sequences: float, demand: Demand) -> Prediction:
        """In balance with so many sequences decoding at once."""
        tpot = self._step(sequences, demand)
        rate = sequences / (demand.output * tpot)
        return Prediction(
            rate * self.count, self._ttft(rate, sequences, tpot, demand), tpot,
            sequences * self.count,
        )  # fmt: skip

    def _step(self, sequences: float, demand: Demand) -> float:
        arriving = sequences / demand.output
        present = max(sequences, 1.0)
        return self.timing.seconds(
            StepWork(
                arriving * demand.prompt,
                arriving * demand.prompt**2 / 2,
                present,
                present * (demand.prompt + demand.output / 2),
            )
        )

    def _prefill_s(self, prompt: float, sequences: float, demand: Demand) -> float:
        """A prompt from its first chunk to its last, others decoding beside it."""
        room = max(self.budget.max_num_batched_tokens - sequences, 1.0)
        chunks = math.ceil(prompt / room)
        context = sequences * (demand.prompt + demand.output / 2)
        one = StepWork(prompt / chunks, prompt**2 / 2 / chunks, sequences, context)
        return chunks * self.timing.seconds(one)

    def _ttft(self, rate: float, sequences: float, tpot: float, demand: Demand) -> float:
        service = self._prefill_s(demand.prompt, sequences, demand)
        # What a prompt adds to the steps it shares is what keeps the next one waiting.
        bare = self.timing.seconds(
            StepWork(0, 0, sequences, sequences * (demand.prompt + demand.output / 2))
        )
        own = max(service - bare, 0.0)
        busy = rate * own
        if busy >= BUSIEST:
            return math.inf
        wait = busy * service / (2 * (1 - busy))
        own_s = self._prefill_s(demand.long_prompt, sequences, demand)
        return self.arrival_s + wait + tpot / 2 + own_s

    def capacity(self, demand: Demand) -> Prediction | None:
        """The greatest rate at which both objectives hold; None where they hold at no rate."""

        def holds(sequences: float) -> bool:
            seen = self.at(sequences, demand)
            return (
                seen.ttft_s <= demand.objectives.ttft_s and seen.tpot_s <= demand.objectives.tpot_s
            )

        best = _greatest(holds, self.most_sequences)
        return None if best is None else self.at(best, demand)

    def at_rate(self, rate: float, demand: Demand) -> Prediction:
        """A replica that is sent so many requests a second, at most its capacity."""
        found = _greatest(
            lambda sequences: self.at(sequences, demand).rate <= rate, self.most_sequences
        )
        return self.at(found or _LEAST, demand)


_LEAST: Final = 1e-3


def _greatest(holds: Callable[[float], bool], limit: float) -> float | None:
    """The greatest number up to `limit` of which it holds, to one in ten thousand; it holds of all
    smaller ones. None: not even of the least."""
    if limit < _LEAST or not holds(_LEAST):
        return None
    if holds(limit):
        return limit
    low, high = _LEAST, limit
    while high > low * 1.0001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
