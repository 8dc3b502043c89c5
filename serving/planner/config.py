"""From a Hugging Face config.json to a `Model`.

Every family has its own words for the same thing; this is the table of them. Invariant: what is
missing or makes no sense is a PlanError that names the field, never a guess that changes the plan.
The families' shapes are those of vLLM 0.32's model definitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from serving.planner.model import (
    Experts,
    FeedForward,
    Latent,
    Layer,
    Mixer,
    Model,
    PlanError,
    Quantisation,
    Recurrent,
)
from serving.planner.quantised import read_quantisation

Config = Mapping[str, Any]

_TIED_BY_DEFAULT: Final = ("gemma", "gpt2", "opt", "falcon", "bloom", "cohere", "t5")
_UNGATED: Final = (
    "gpt2", "opt", "falcon", "bloom", "gptj", "gpt_neox", "phi", "starcoder2", "nemotron",
    "nemotron_h", "mpt",
)  # fmt: skip
_NESTED: Final = ("text_config", "llm_config", "language_config", "thinker_config")

_MIXERS: Final = {
    "full_attention": Mixer.FULL,
    "attention": Mixer.FULL,
    "global": Mixer.FULL,
    "sliding_attention": Mixer.WINDOW,
    "chunked_attention": Mixer.WINDOW,
    "local": Mixer.WINDOW,
    "linear_attention": Mixer.RECURRENT,
    "mamba": Mixer.RECURRENT,
    "mamba2": Mixer.RECURRENT,
    "recurrent": Mixer.RECURRENT,
}
_PATTERN_LAYERS: Final = {
    "M": Layer(Mixer.RECURRENT, FeedForward.NONE),
    "*": Layer(Mixer.FULL, FeedForward.NONE),
    "-": Layer(Mixer.NONE, FeedForward.DENSE),
    "E": Layer(Mixer.NONE, FeedForward.EXPERTS),
}


def read_config(name: str, document: object) -> Model:
    """The model that a config.json describes. Raises PlanError."""
    if not isinstance(document, Mapping):
        raise PlanError(f"{name}: config.json is not an object")
    text = _text_part(document)
    heads = _need(name, text, "num_attention_heads", "n_head", "num_heads", default=0)
    hidden = _need(name, text, "hidden_size", "n_embd", "d_model", "dim")
    latent = _latent(name, text)
    experts = _experts(name, text)
    recurrent = _recurrent(name, text, hidden)
    if not heads and recurrent is None:
        raise PlanError(f"{name}: config.json has no num_attention_heads")
    layers = _layers(name, text, experts)
    head_dim = _number(text, "head_dim", "attention_head_dim") or (hidden // heads if heads else 0)
    return Model(
        name=name,
        architecture=_architecture(name, document, text),
        hidden=hidden,
        vocabulary=_need(name, text, "vocab_size"),
        heads=heads,
        kv_heads=_kv_heads(text, heads),
        head_dim=head_dim,
        width=_width(name, text, hidden, layers),
        layers=layers,
        max_len=_number(text, "max_position_embeddings", "n_positions", "max_seq_len") or 2048,
        window=_number(text, "sliding_window", "attention_chunk_size"),
        is_tied=_is_tied(document, text),
        is_gated=_family(text) not in _UNGATED,
        has_output_gate=bool(text.get("attn_output_gate", _family(text) == "qwen3_next")),
        latent=latent,
        experts=experts,
        recurrent=recurrent,
        quantisation=_quantisation(name, document, text),
        vision_parameters=_vision(document),
    )


def _text_part(document: Config) -> Config:
    for key in _NESTED:
        part = document.get(key)
        if isinstance(part, Mapping):
            return _text_part(part)
    return document


def _architecture(name: str, document: Config, text: Config) -> str:
    for part in (document, text):
        known = part.get("architectures")
        if isinstance(known, list) and known and isinstance(known[0], str):
            return known[0]
    raise PlanError(f"{name}: config.json names no architectures")


def _family(text: Config) -> str:
    return str(text.get("model_type", ""))


def _number(text: Config, *keys: str) -> int:
    """The first of them that is a whole number of at least one; else 0."""
    for key in keys:
        value = text.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _need(name: str, text: Config, *keys: str, default: int | None = None) -> int:
    found = _number(text, *keys)
    if found:
        return found
    if default is not None and all(text.get(key) is None for key in keys):
        return default
    raise PlanError(f"{name}: config.json has no {keys[0]} of at least 1")


def _kv_heads(text: Config, heads: int) -> int:
    if text.get("multi_query") is True and not text.get("new_decoder_architecture"):
        return 1
    return _number(text, "num_key_value_heads", "num_kv_heads", "n_head_kv") or heads


def _width(name: str, text: Config, hidden: int, layers: tuple[Layer, ...]) -> int:
    found = _number(
        text, "intermediate_size_mlp", "intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim"
    )
    if found:
        return found
    if any(layer.feed_forward is FeedForward.DENSE for layer in layers):
        if _family(text) in _UNGATED:
            return 4 * hidden
        raise PlanError(f"{name}: config.json has no intermediate_size")
    return 0


def _is_tied(document: Config, text: Config) -> bool:
    for part in (text, document):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return _family(text).startswith(_TIED_BY_DEFAULT)


def _latent(name: str, text: Config) -> Latent | None:
    if not _number(text, "kv_lora_rank"):
        return None
    index_dim = _number(text, "index_head_dim")
    return Latent(
        kv_rank=_need(name, text, "kv_lora_rank"),
        q_rank=_number(text, "q_lora_rank"),
        rope_dim=_need(name, text, "qk_rope_head_dim"),
        nope_dim=_need(name, text, "qk_nope_head_dim"),
        value_dim=_need(name, text, "v_head_dim"),
        index_bytes=index_dim + 4 * index_dim // 128,
    )


def _experts(name: str, text: Config) -> Experts | None:
    total = _number(text, "n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
    if total < 2:
        return None
    width = _need(name, text, "moe_intermediate_size", "intermediate_size")
    shared = _number(text, "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")
    if not shared:
        shared = width * _number(text, "n_shared_experts", "moe_num_shared_experts")
    if not shared and _family(text).startswith("llama4"):
        shared = width
    active = _need(
        name, text, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k"
    )
    return Experts(total, active, width, shared)


def _layers(name: str, text: Config, experts: Experts | None) -> tuple[Layer, ...]:
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        unknown = set(pattern) - set(_PATTERN_LAYERS)
        if unknown:
            raise PlanError(f"{name}: hybrid_override_pattern has unknown layers {sorted(unknown)}")
        return tuple(_PATTERN_LAYERS[letter] for letter in pattern)
    count = _need(name, text, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    mixers = _mixers(name, text, count)
    feeds = [_feed_forward(text, index, experts) for index in range(count)]
    return tuple(Layer(mixer, feed) for mixer, feed in zip(mixers, feeds, strict=True))


def _mixers(name: str, text: Config, count: int) -> list[Mixer]:
    types = text.get("layer_types") or text.get("layers_block_type")
    if isinstance(types, list):
        if len(types) != count:
            raise PlanError(f"{name}: {len(types)} layer_types for {count} layers")
        unknown = {str(kind) for kind in types} - set(_MIXERS)
        if unknown:
            raise PlanError(f"{name}: layer types not known: {', '.join(sorted(unknown))}")
        return [_MIXERS[kind] for kind in types]
    every = _number(text, "full_attention_interval")
    if every:
        return [Mixer.RECURRENT if (i + 1) % every else Mixer.FULL for i in range(count)]
    period = _number(text, "attn_layer_period")
    if period:
        offset = text.get("attn_layer_offset", 0)
        return [Mixer.FULL if i % period == offset else Mixer.RECURRENT for i in range(count)]
    if _number(text, "mamba_num_heads", "state_size") and not _number(text, "num_attention_heads"):
        return [Mixer.RECURRENT] * count
    return _windows(text, count)


def _windows(text: Config, count: int) -> list[Mixer]:
    """Which layers look at a window only, where `layer_types` does not say."""
    if not _number(text, "sliding_window", "attention_chunk_size"):
        return [Mixer.FULL] * count
    if text.get("use_sliding_window") is False:
        return [Mixer.FULL] * count
    first = text.get("max_window_layers")
    if isinstance(first, int) and "use_sliding_window" in text:
        return [Mixer.WINDOW if i >= first else Mixer.FULL for i in range(count)]
    every = _number(text, "sliding_window_pattern")
    if not every:
        every = {"gemma2": 2, "gemma3_text": 6, "llama4_text": 4}.get(_family(text), 0)
    if every:
        return [Mixer.WINDOW if (i + 1) % every else Mixer.FULL for i in range(count)]
    return [Mixer.WINDOW] * count


def _feed_forward(text: Config, index: int, experts: Experts | None) -> FeedForward:
    if experts is None:
        return FeedForward.DENSE
    dense_only = text.get("mlp_only_layers")
    if isinstance(dense_only, list) and index in dense_only:
        return FeedForward.DENSE
    if index < _number(text, "first_k_dense_replace", "moe_layer_start_index"):
        return FeedForward.DENSE
    frequency = text.get("moe_layer_freq")
    if isinstance(frequency, list) and index < len(frequency):
        return FeedForward.EXPERTS if frequency[index] else FeedForward.DENSE
    step = _number(
        text, "decoder_sparse_step", "interleave_moe_layer_step", "expert_layer_period",
        "moe_layer_interval", "moe_layer_freq",
    )  # fmt: skip
    offset = text.get("expert_layer_offset", step - 1 if _steps_from_the_end(text) else 0)
    if step > 1 and index % step != offset:
        return FeedForward.DENSE
    return FeedForward.EXPERTS


def _steps_from_the_end(text: Config) -> bool:
    """Of every `step` layers the last has experts, not the first."""
    return "interleave_moe_layer_step" in text or "decoder_sparse_step" in text


def _recurrent(name: str, text: Config, hidden: int) -> Recurrent | None:
    if _number(text, "linear_num_value_heads"):
        return _delta_net(name, text, hidden)
    heads = _number(text, "mamba_num_heads", "mamba_n_heads")
    state = _number(text, "ssm_state_size", "mamba_d_state", "state_size")
    if not state:
        return None
    inner = _number(text, "mamba_expand", "expand") * hidden or 2 * hidden
    groups = _number(text, "n_groups", "mamba_n_groups") or 1
    if heads:
        inner = heads * (_number(text, "mamba_head_dim", "mamba_d_head") or inner // heads)
    conv = inner + 2 * groups * state
    kernel = _number(text, "conv_kernel", "mamba_d_conv") or 4
    return Recurrent(
        parameters=hidden * (2 * inner + 2 * groups * state + heads) + inner * hidden,
        state_bytes=2 * (inner * state + conv * (kernel - 1)),
        head_counts=(heads,) if heads else (inner,),
    )


def _delta_net(name: str, text: Config, hidden: int) -> Recurrent:
    """Gated DeltaNet, as Qwen3-Next has it; its state is kept in 32 bits."""
    keys, values = _need(name, text, "linear_num_key_heads"), text["linear_num_value_heads"]
    key_dim = keys * _need(name, text, "linear_key_head_dim")
    value_head = _need(name, text, "linear_value_head_dim")
    value_dim = values * value_head
    kernel = _number(text, "linear_conv_kernel_dim") or 4
    return Recurrent(
        parameters=hidden * (2 * key_dim + 2 * value_dim + 2 * values) + value_dim * hidden,
        state_bytes=4 * value_dim * (key_dim // keys)
        + 2 * (2 * key_dim + value_dim) * (kernel - 1),
        head_counts=(keys, values),
    )


def _quantisation(name: str, document: Config, text: Config) -> Quantisation:
    for part in (document, text):
        found = part.get("quantization_config")
        if isinstance(found, Mapping):
            return read_quantisation(name, found)
    if str(text.get("torch_dtype", text.get("dtype", ""))).startswith("float8"):
        return Quantisation("fp8", 8.0)
    return Quantisation()


def _vision(document: Config) -> int:
    """Parameters of an image encoder, roughly: attention and two matrices per layer."""
    part = document.get("vision_config")
    if not isinstance(part, Mapping):
        return 0
    width = _number(part, "hidden_size", "embed_dim")
    depth = _number(part, "num_hidden_layers", "depth")
    inner = _number(part, "intermediate_size") or 4 * width
    return depth * (4 * width * width + 2 * width * inner)
