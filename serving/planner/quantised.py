"""How a config.json says that weights are quantised, in the many ways it is said.

Bits count the scales: 4-bit groups of 128 with a 16-bit scale and a 4-bit zero point are 4.16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from serving.planner.model import PlanError, Quantisation

_ATTENTION_WORDS: Final = ("self_attn", "attn", "attention")


def read_quantisation(name: str, config: Mapping[str, Any]) -> Quantisation:
    """What `quantization_config` comes to. Raises PlanError for a method we do not know."""
    method = str(config.get("quant_method", config.get("quant_algo", ""))).lower()
    spares = _spares_attention(config)
    if method in ("modelopt", "modelopt_fp4", "nvfp4") or "nvfp4" in _modelopt(config):
        fp4 = "fp4" in method or "fp4" in _modelopt(config)
        return Quantisation("nvfp4", 4.5, 16, 0, spares) if fp4 else Quantisation("fp8", 8.0)
    if method in ("gptq", "awq", "gptq_marlin", "awq_marlin"):
        return _grouped(name, method, config)
    if method in ("fp8", "fbgemm_fp8"):
        return _fp8(name, config, spares)
    if method == "mxfp4":
        return Quantisation("mxfp4", 4.25, 32, 0, True)
    if method in ("compressed-tensors", "quark"):
        return _compressed(name, config, spares)
    if method == "bitsandbytes":
        return Quantisation("bitsandbytes", 4.5 if config.get("load_in_4bit") else 8.25)
    raise PlanError(f"{name}: quantisation {method or '(unnamed)'} is not known to the planner")


def _spares_attention(config: Mapping[str, Any]) -> bool:
    skipped = config.get("modules_to_not_convert") or config.get("ignore") or ()
    words = " ".join(str(each) for each in skipped) if isinstance(skipped, list) else ""
    return any(word in words for word in _ATTENTION_WORDS)


def _modelopt(config: Mapping[str, Any]) -> str:
    return str(config.get("quant_algo", "")).lower()


def _bits(name: str, config: Mapping[str, Any], *keys: str) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and 1 < value <= 16:
            return value
    raise PlanError(f"{name}: quantization_config has no {keys[0]}")


def _grouped(name: str, method: str, config: Mapping[str, Any]) -> Quantisation:
    bits = _bits(name, config, "bits", "w_bit")
    group = config.get("group_size", config.get("q_group_size", 128))
    if not isinstance(group, int) or group == 0 or group < -1:
        raise PlanError(f"{name}: quantization_config.group_size {group!r} makes no sense")
    if group == -1:
        return Quantisation(method.removesuffix("_marlin"), float(bits))
    return Quantisation(method.removesuffix("_marlin"), bits + (16 + bits) / group, group)


def _fp8(name: str, config: Mapping[str, Any], spares: bool) -> Quantisation:
    block = config.get("weight_block_size")
    if block is None:
        return Quantisation("fp8", 8.0, spares_attention=spares)
    if not (isinstance(block, list) and len(block) == 2 and all(_is_size(side) for side in block)):
        raise PlanError(f"{name}: quantization_config.weight_block_size is not two sizes")
    out_group, in_group = block
    return Quantisation("fp8", 8 + 32 / (out_group * in_group), in_group, out_group, spares)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _compressed(name: str, config: Mapping[str, Any], spares: bool) -> Quantisation:
    groups = config.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        raise PlanError(f"{name}: quantization_config has no config_groups with weights")
    bits = _bits(name, weights, "num_bits")
    group = weights.get("group_size")
    size = group if isinstance(group, int) and group > 0 else 0
    if bits == 4 and weights.get("type") == "float":
        return Quantisation("nvfp4", 4.5, size or 16, 0, spares)
    method = "fp8" if weights.get("type") == "float" else f"w{bits}"
    scale = 16 / size if size else 0.0
    return Quantisation(method, bits + scale, size, 0, spares)
