"""What must be known of a model to lay it over GPUs: shapes, layers, how its weights are written.

Only facts and counting; what they take in memory is `serving.planner.memory`, which splits are
allowed `serving.planner.legal`. Counts are of matrices: norms and biases are left out (under
0.1 % of any model here).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property


class PlanError(ValueError):
    """What was asked for cannot be planned; the text is for the user, one line."""


class Mixer(StrEnum):
    """How a layer looks at earlier tokens, and so what it keeps of them."""

    FULL = "full"
    WINDOW = "window"
    RECURRENT = "recurrent"
    NONE = "none"


class FeedForward(StrEnum):
    """What follows the mixer in a layer."""

    DENSE = "dense"
    EXPERTS = "experts"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer."""

    mixer: Mixer
    feed_forward: FeedForward


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention: keys and values kept as one compressed vector per token."""

    kv_rank: int
    q_rank: int
    """0: queries are not compressed."""
    rope_dim: int
    nope_dim: int
    value_dim: int
    index_bytes: int = 0
    """Kept beside it, per token, by sparse attention's indexer."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts; `shared` is the width of what every token passes."""

    total: int
    active: int
    width: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Recurrent:
    """A layer of linear attention or a state-space model: so many bytes, however long the text."""

    parameters: int
    state_bytes: int
    head_counts: tuple[int, ...]
    """Tensor parallelism must divide each."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How matrices are written. `bits` are those of one weight with its share of the scales.

    `in_group` and `out_group` are how many consecutive inputs and outputs share a scale, which a
    shard must not cut; 0: nothing to cut. `spares_attention`: only the feed-forward is quantised.
    """

    method: str = "none"
    bits: float = 16.0
    in_group: int = 0
    out_group: int = 0
    spares_attention: bool = False


@dataclass(frozen=True, eq=False)
class Model:
    """One model, as `serving.planner.config` reads it from its config.json. Equal to itself only,
    which makes it a quick key."""

    name: str
    architecture: str
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    """Of the dense feed-forward: vLLM calls it the intermediate size."""
    layers: tuple[Layer, ...]
    max_len: int
    """Tokens, prompt and answer together."""
    window: int = 0
    is_tied: bool = False
    is_gated: bool = True
    has_output_gate: bool = False
    latent: Latent | None = None
    experts: Experts | None = None
    recurrent: Recurrent | None = None
    quantisation: Quantisation = Quantisation()
    vision_parameters: int = 0

    @property
    def padded_vocabulary(self) -> int:
        """vLLM pads it to a multiple of 64 before it is split."""
        return -(-self.vocabulary // 64) * 64

    @property
    def embedding_parameters(self) -> int:
        """Of one of the two tables, input or output."""
        return self.vocabulary * self.hidden

    @property
    def matrices_per_feed_forward(self) -> int:
        """Up, down and, where there is one, gate."""
        return 3 if self.is_gated else 2

    def kv_heads_at(self, tp: int) -> int:
        """KV heads on each GPU of a tensor-parallel group: at least one, so some are copies."""
        return max(1, self.kv_heads // tp)

    def attention_parameters(self, tp: int) -> float:
        """Of one attention layer on one GPU of a tensor-parallel group."""
        if self.latent is None:
            queries = self.heads * self.head_dim * (3 if self.has_output_gate else 2) / tp
            return self.hidden * (queries + 2 * self.kv_heads_at(tp) * self.head_dim)
        m, heads = self.latent, self.heads / tp
        q_in = m.q_rank or self.hidden
        split = heads * (
            q_in * (m.nope_dim + m.rope_dim)
            + m.kv_rank * (m.nope_dim + m.value_dim)
            + self.hidden * m.value_dim
        )
        return split + self.hidden * (m.q_rank + m.kv_rank + m.rope_dim)

    def expert_parameters(self) -> int:
        """Of one expert."""
        if self.experts is None:
            return 0
        return self.matrices_per_feed_forward * self.hidden * self.experts.width

    def shared_parameters(self) -> int:
        """Of what every token passes in a layer of experts, the router left out."""
        if self.experts is None:
            return 0
        return self.matrices_per_feed_forward * self.hidden * self.experts.shared

    def dense_parameters(self) -> int:
        """Of a dense feed-forward."""
        return self.matrices_per_feed_forward * self.hidden * self.width

    def mixer_parameters(self, mixer: Mixer, tp: int) -> float:
        """Of one layer's mixer on one GPU of a tensor-parallel group."""
        if mixer is Mixer.NONE:
            return 0.0
        if mixer is Mixer.RECURRENT:
            return self.recurrent.parameters / tp if self.recurrent else 0.0
        return self.attention_parameters(tp)

    @cached_property
    def parameters(self) -> int:
        """All of them."""
        return self._count(active=False)

    @cached_property
    def active_parameters(self) -> int:
        """Those that one token meets; the input table is only looked up in, and does not count."""
        return self._count(active=True)

    def _count(self, *, active: bool) -> int:
        tables = 1 if active or self.is_tied else 2
        total = float(tables * self.embedding_parameters)
        for layer in self.layers:
            total += self.mixer_parameters(layer.mixer, 1)
            if layer.feed_forward is FeedForward.DENSE:
                total += self.dense_parameters()
            elif layer.feed_forward is FeedForward.EXPERTS and self.experts is not None:
                met = self.experts.active if active else self.experts.total
                total += met * self.expert_parameters() + self.shared_parameters()
                total += self.experts.total * self.hidden
        return round(total) + (0 if active else self.vision_parameters)
