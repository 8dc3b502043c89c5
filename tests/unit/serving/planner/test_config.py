"""What is read off a config.json: one test for each way that families say a thing."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.planner.config import read_config
from serving.planner.hardware import kind
from serving.planner.legal import Split, read_split, refusals
from serving.planner.memory import kv_token_bytes, layer_weights, sequence_bytes
from serving.planner.model import FeedForward, Layer, Mixer, PlanError
from serving.planner.sources import catalogue, read_model

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "vocab_size": 1000,
}


def with_(**changed: Any) -> dict[str, Any]:
    return {**LLAMA, **changed}


def test_kv_bytes_of_a_token_for_each_kind_of_attention() -> None:
    # Llama 3.1 8B: 2 x 8 heads x 128 x 2 bytes in each of 32 layers: 128 KiB, as is well known.
    llama = read_model("Llama-3.1-8B-Instruct")
    assert kv_token_bytes(llama, 1, 16) * 32 == 128 * 1024
    assert kv_token_bytes(llama, 8, 16) * 32 == 16 * 1024
    assert kv_token_bytes(llama, 16, 16) == kv_token_bytes(llama, 8, 16)  # copies
    assert kv_token_bytes(llama, 1, 8) * 2 == kv_token_bytes(llama, 1, 16)
    # One latent of 512 + 64 in each layer, however many GPUs.
    deepseek = read_model("DeepSeek-V3")
    assert kv_token_bytes(deepseek, 1, 16) == kv_token_bytes(deepseek, 8, 16) == 1152
    # Multi-query: one head of 64.
    assert kv_token_bytes(read_model("falcon-7b"), 1, 16) == 2 * 64 * 2


def test_windows_and_recurrent_layers_stop_growing() -> None:
    windowed = read_model("Mistral-7B-Instruct-v0.1")
    one = Split()
    assert sequence_bytes(windowed, one, 16, 4096) == sequence_bytes(windowed, one, 16, 30000)
    half = read_model("gpt-oss-20b")
    growth = sequence_bytes(half, one, 16, 20000) - sequence_bytes(half, one, 16, 10000)
    assert growth == 12 * 10000 * kv_token_bytes(half, 1, 16)
    hybrid = read_model("NVIDIA-Nemotron-Nano-9B-v2")
    assert sequence_bytes(hybrid, one, 16, 0) > 0
    growth = sequence_bytes(hybrid, one, 16, 2000) - sequence_bytes(hybrid, one, 16, 1000)
    assert growth == 4 * 1000 * kv_token_bytes(hybrid, 1, 16)


@pytest.mark.parametrize(
    ("changed", "full"),
    [
        ({}, 8),
        ({"sliding_window": 128}, 0),
        ({"sliding_window": 128, "use_sliding_window": False}, 8),
        ({"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 6}, 6),
        ({"sliding_window": 128, "sliding_window_pattern": 4}, 2),
        ({"sliding_window": 128, "model_type": "gemma2"}, 4),
        ({"layer_types": ["full_attention", "sliding_attention"] * 4, "sliding_window": 9}, 4),
        ({"full_attention_interval": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
          "linear_key_head_dim": 8, "linear_value_head_dim": 8}, 2),
        ({"attn_layer_period": 8, "attn_layer_offset": 4, "mamba_d_state": 16}, 1),
    ],
)  # fmt: skip
def test_layers_that_look_at_everything(changed: dict[str, Any], full: int) -> None:
    model = read_config("m", with_(**changed))
    assert sum(layer.mixer is Mixer.FULL for layer in model.layers) == full
    assert len(model.layers) == 8


@pytest.mark.parametrize(
    ("changed", "expert_layers"),
    [
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, 8),
        ({"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
          "first_k_dense_replace": 3}, 5),
        ({"num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 2,
          "mlp_only_layers": [1]}, 3),
        ({"num_local_experts": 8, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}, 4),
        ({"num_experts": 8, "num_experts_per_tok": 2, "moe_layer_freq": [0] * 6 + [1] * 2}, 2),
    ],
)  # fmt: skip
def test_layers_that_have_experts(changed: dict[str, Any], expert_layers: int) -> None:
    model = read_config("m", with_(**changed))
    found = sum(layer.feed_forward is FeedForward.EXPERTS for layer in model.layers)
    assert found == expert_layers


@pytest.mark.parametrize(
    ("quantisation", "method", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq", 4.16),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq", 8),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, "awq", 4.31),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", 8.0),
        ({"quant_method": "fbgemm_fp8"}, "fp8", 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", 4.5),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", 8),
        ({"quant_method": "mxfp4"}, "mxfp4", 4.25),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", 4.5),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {
            "num_bits": 4, "type": "int", "group_size": 128}}}}, "w4", 4.125),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {
            "num_bits": 4, "type": "float", "group_size": 16}}}}, "nvfp4", 4.5),
    ],
)  # fmt: skip
def test_how_weights_are_written(quantisation: dict[str, Any], method: str, bits: float) -> None:
    model = read_config("m", with_(quantization_config=quantisation))
    assert model.quantisation.method == method
    assert model.quantisation.bits == pytest.approx(bits, abs=0.01)


def test_a_shard_that_cuts_a_group_is_refused_and_experts_that_stay_whole_are_not() -> None:
    model = read_model("Qwen3-Coder-480B-A35B-Instruct-FP8")
    [refused] = refusals(model, Split(8), kind("h200"), 8)
    assert "320" in refused.reason
    assert refusals(model, Split(8, experts=True), kind("h200"), 8) == []


def test_weights_of_a_layer_are_cut_copied_or_left_whole() -> None:
    llama, layer = read_model("Llama-3.1-8B-Instruct"), Layer(Mixer.FULL, FeedForward.DENSE)
    whole = layer_weights(llama, layer, Split())
    assert layer_weights(llama, layer, Split(8)) == whole / 8
    # From 16 on the 8 KV heads are copied: two matrices of 4096 x 128 more than a sixteenth.
    more = layer_weights(llama, layer, Split(16)) - whole / 16
    assert more == 2 * 4096 * 128 * 2 / 2
    # 256 experts over 8 GPUs: 32 on each, or an eighth of each.
    deepseek, layer = read_model("DeepSeek-V3"), Layer(Mixer.NONE, FeedForward.EXPERTS)
    cut = layer_weights(deepseek, layer, Split(8))
    dealt = layer_weights(deepseek, layer, Split(8, experts=True))
    assert cut == dealt


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "not an object"),
        ({}, "no hidden_size"),
        (with_(architectures=[]), "names no architectures"),
        (with_(hidden_size=0), "no hidden_size"),
        (with_(num_attention_heads=None), "no num_attention_heads"),
        (with_(intermediate_size="wide"), "no intermediate_size"),
        (with_(layer_types=["full_attention"]), "1 layer_types for 8 layers"),
        (with_(layer_types=["odd"] * 8), "not known: odd"),
        (with_(hybrid_override_pattern="M?"), "unknown layers"),
        (with_(kv_lora_rank=512), "no qk_rope_head_dim"),
        (with_(quantization_config={"quant_method": "magic"}), "magic is not known"),
        (with_(quantization_config={"quant_method": "gptq"}), "no bits"),
        (with_(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 0}), "sense"),
    ],
)
def test_what_makes_no_sense_is_named(document: object, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        read_config("m", document)


@given(st.builds(Split, *[st.integers(1, 64)] * 3, st.booleans()), st.randoms())
def test_a_split_is_read_as_it_is_written(split: Split, dice: random.Random) -> None:
    parts = str(split).split()
    dice.shuffle(parts)
    assert read_split("-".join(parts).lower()) == split


@given(st.text("TPDE123 -0x", max_size=12))
def test_any_text_is_a_split_or_a_plan_error(text: str) -> None:
    try:
        split = read_split(text)
    except PlanError:
        return
    assert split.gpus >= 1


_VALUES: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-3, 5000) | st.text(max_size=5) | st.just([])
)
_KEYS = sorted({key for config in catalogue().values() for key in config})


@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=6))
def test_any_config_is_a_model_or_a_plan_error(changed: dict[str, Any]) -> None:
    try:
        model = read_config("m", with_(**changed))
    except PlanError:
        return
    assert model.parameters > 0


_JSON = st.recursive(
    _VALUES | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(_JSON)
def test_any_document_at_all_is_a_plan_error(document: object) -> None:
    with pytest.raises(PlanError):
        read_config("m", document)


_MEMBERS = (
    "quant_method", "quant_algo", "bits", "group_size", "weight_block_size", "config_groups",
    "modules_to_not_convert", "ignore",
)  # fmt: skip
_METHODS = ("gptq", "awq", "fp8", "modelopt", "compressed-tensors", "mxfp4")


@given(st.dictionaries(st.sampled_from(_MEMBERS), _JSON | st.sampled_from(_METHODS)))
def test_any_quantisation_is_read_or_a_plan_error(quantisation: dict[str, Any]) -> None:
    try:
        model = read_config("m", with_(quantization_config=quantisation))
    except PlanError:
        return
    assert 1 < model.quantisation.bits <= 24
