"""Placements and rules that others have published: the planner must come to the same.

Each row says where it was published. `fits` is whether the weights and one sequence of
`max_len` tokens find room; `rule` is a word of the reason for which a split is refused. Where
the planner differs from what was published, `differs` says why.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from serving.planner.hardware import GIB, kind
from serving.planner.legal import Split, refusals
from serving.planner.memory import Budget, footprint
from serving.planner.sources import catalogue, read_model

RECIPES = "vLLM recipes"


@dataclass(frozen=True)
class Row:
    """One published placement or rule."""

    model: str
    gpu: str
    split: Split
    source: str
    max_len: int = 8192
    fits: bool = True
    rule: str = ""
    per_node: int = 8
    kv_bits: int = 16
    differs: str = ""


def tp(size: int, pipeline: int = 1) -> Split:
    return Split(size, pipeline)


V3, R1, FP4 = "DeepSeek-V3", "DeepSeek-R1-0528", "DeepSeek-R1-FP4"
CODER, CODER8 = "Qwen3-Coder-480B-A35B-Instruct", "Qwen3-Coder-480B-A35B-Instruct-FP8"
Q235, Q235_8 = "Qwen3-235B-A22B-Instruct-2507", "Qwen3-235B-A22B-Instruct-2507-FP8"
L8, L70, L405 = "Llama-3.1-8B-Instruct", "Llama-3.3-70B-Instruct", "Llama-3.1-405B-Instruct"
L70_8, L70_4 = "nvidia/Llama-3.3-70B-Instruct-FP8", "nvidia/Llama-3.3-70B-Instruct-FP4"
OSS20, OSS120, M2 = "gpt-oss-20b", "gpt-oss-120b", "MiniMax-M2"
BLOG405 = "vLLM blog 2024-07-23, Announcing Llama 3.1 Support in vLLM"
HEADS = "vllm-project/vllm issue 11797, non divisible attention heads"
LLAMA4 = "vLLM blog 2025-04-05, Llama 4 in vLLM"
GLM = "zai-org/GLM-4.5 README, inference"
SCOUT, MAVERICK = "Llama-4-Scout-17B-16E-Instruct", "Llama-4-Maverick-17B-128E-Instruct-FP8"
MIG = "NVIDIA MIG User Guide: no peer access, NVLink or PCIe, between instances"

ROWS = (
    # DeepSeek, 671B
    Row(R1, "h200", Split(8, experts=True), f"{RECIPES}, DeepSeek-V3: 8xH200 FP8 TP8+EP"),
    Row(R1, "h200", Split(1, data=8, experts=True), f"{RECIPES}, DeepSeek-V3: 8xH200 DP8+EP"),
    Row(FP4, "b200", Split(4, experts=True), f"{RECIPES}, DeepSeek-V3: 4xB200 FP4 TP4+EP"),
    Row(FP4, "b200", Split(1, data=4, experts=True), f"{RECIPES}, DeepSeek-V3: 4xB200 DP4+EP"),
    Row("DeepSeek-V3.2-Exp", "h200", tp(8), f"{RECIPES}, DeepSeek-V3.2-Exp: -tp 8 on 8xH200"),
    Row("DeepSeek-V3.2-Exp", "h200", Split(1, data=8, experts=True),
        f"{RECIPES}, DeepSeek-V3.2-Exp: -dp 8 --enable-expert-parallel on 8xH200"),
    Row("DeepSeek-V3.2-Exp", "b200", tp(8), f"{RECIPES}, DeepSeek-V3.2-Exp: 8xB200, the same"),
    Row(V3, "h100", tp(8), "dzhsurf, deepseek-v3-r1-deploy-and-benchmarks: 640 GB are too few",
        fits=False),
    Row("DeepSeek-V3-AWQ", "h100", tp(8),
        "dzhsurf, deepseek-v3-r1-deploy-and-benchmarks: AWQ on 8xH100"),
    Row(V3, "h100", tp(8, 2), "vLLM documentation, Parallelism and Scaling: TP per node, PP nodes"),
    Row(V3, "h100", tp(16), "vLLM documentation, Parallelism and Scaling: TP within a node",
        rule="does not fit into a node"),
    # Kimi-K2, 1T
    Row("Kimi-K2-Instruct", "h100", tp(8), f"{RECIPES}, Kimi-K2: 16 GPUs of 80 GB are the least",
        fits=False),
    Row("Kimi-K2-Instruct", "h100", tp(8, 2), f"{RECIPES}, Kimi-K2: TP8 PP2 on 16xH800",
        max_len=2048),
    Row("Kimi-K2-Instruct", "h200", Split(1, data=16, experts=True),
        f"{RECIPES}, Kimi-K2: DP16+EP on two nodes"),
    # Qwen3 mixtures
    Row(CODER, "h200", tp(8), f"{RECIPES}, Qwen3-Coder: BF16 TP8 on 8xH200", max_len=32000),
    Row(CODER, "h200", tp(8), f"{RECIPES}, Qwen3-Coder: one node cannot serve 262144 tokens",
        max_len=262144, fits=True,
        differs="the recipe says so of H20 with its settings; by our count 14.9 GiB a GPU are "
        "left and one such sequence takes 7.75"),
    Row(CODER8, "h200", Split(1, data=8, experts=True), f"{RECIPES}, Qwen3-Coder: FP8 DP8+EP"),
    Row(CODER8, "h200", tp(8), f"{RECIPES}, Qwen3-Coder: FP8 TP8 fails, 320 % 128", rule="320"),
    Row(Q235_8, "h200", tp(4), f"{RECIPES}, Qwen3-235B: FP8, TP at most 4"),
    Row(Q235_8, "h200", tp(8), f"{RECIPES}, Qwen3-235B: FP8, TP at most 4", rule="192"),
    Row(Q235, "h200", tp(4), f"{RECIPES}, Qwen3-235B: BF16 requires 4xH200"),
    Row(Q235, "mi300x", tp(4), f"{RECIPES}, Qwen3-235B: BF16 -tp 4 on MI300X", max_len=32768),
    Row(Q235_8, "mi300x", tp(4), f"{RECIPES}, Qwen3-235B: FP8 -tp 4 on MI300X", max_len=32768),
    Row(Q235, "h100", tp(4), f"{RECIPES}, Qwen3-235B: BF16 needs 564 GB", fits=False),
    Row("Qwen3-Next-80B-A3B-Instruct", "h200", tp(4), f"{RECIPES}, Qwen3-Next: 4xH200",
        max_len=262144),
    Row("Qwen3-Next-80B-A3B-Instruct", "a100-80gb", tp(4), f"{RECIPES}, Qwen3-Next: 4xA100",
        max_len=262144),
    Row("Qwen3-30B-A3B", "a100-80gb", tp(1), f"{RECIPES}, Qwen3-30B-A3B: 74 GB at least"),
    Row("Qwen3-30B-A3B", "l40s", tp(1), f"{RECIPES}, Qwen3-30B-A3B: 74 GB at least", fits=False),
    # Dense Qwen
    Row("Qwen2.5-0.5B-Instruct", "l4", tp(2), "vllm-project/vllm-ascend 2139: TP 2 for 14 heads"),
    Row("Qwen2.5-0.5B-Instruct", "l4", tp(4), "vllm-project/vllm-ascend 2139: not TP 4",
        rule="14 attention heads"),
    Row("Qwen2.5-0.5B-Instruct", "l4", Split(2, experts=True),
        "vllm-project/vllm-ascend 2139: no expert parallelism", rule="no experts"),
    Row("Qwen2.5-0.5B-Instruct", "h100-1g.10gb", tp(1), f"{MIG}; one instance, one replica"),
    Row("Qwen2.5-0.5B-Instruct", "h100-1g.10gb", tp(2), MIG, rule="no peer access"),
    Row("Qwen2.5-7B-Instruct", "a100-80gb", tp(4), HEADS),
    Row("Qwen2.5-7B-Instruct", "a100-80gb", tp(8), HEADS, rule="28 attention heads"),
    Row("Qwen2.5-7B-Instruct", "a100-80gb", tp(7),
        "THU-KEG/AdaptThink issue 1: 7 divides 28 heads", rule="KV heads",
        differs="it speaks of attention heads alone; 4 KV heads cannot be dealt over 7 GPUs"),
    Row("Qwen2.5-72B-Instruct-GPTQ-Int4", "a100-80gb", tp(2),
        "Qwen documentation, Quantization: padded to 29696 for tensor parallelism"),
    Row("Qwen2.5-72B-Instruct-AWQ", "a100-40gb", tp(2),
        "Qwen documentation, Quantization: padded to 29696 for tensor parallelism"),
    Row("Qwen2.5-72B-Instruct", "h100", tp(4), f"{RECIPES}, Qwen2.5-VL: 72B BF16 at TP 4"),
    Row("Qwen2.5-72B-Instruct", "a100-80gb", tp(2), "Qwen documentation, Performance: 2xA100"),
    Row("Qwen2.5-72B-Instruct", "a100-80gb", tp(1), "Qwen documentation, Performance: 144.7 GB",
        fits=False),
    Row("Qwen2.5-72B-Instruct-GPTQ-Int4", "a100-80gb", tp(1),
        "Qwen documentation, Performance: Int4 on one A100"),
    Row("Qwen2.5-72B-Instruct", "l40s", tp(8), "ai-hpc, Qwen2.5-72B FP16: 8 x L40S"),
    Row("Qwen2.5-72B-Instruct", "mi300x", tp(4), "ai-hpc, Qwen2.5-72B FP16: 4 x MI300X"),
    # Dense Llama
    Row(L8, "mi300x", tp(1), f"{RECIPES}, Llama3.1: 1xMI300X", max_len=131072),
    Row(L8, "a10g", tp(1), "vllm-project/vllm issue 10517: 20000 tokens on a 24 GB card",
        max_len=20000),
    Row(L8, "l4", tp(1), "vllm-project/vllm issue 10517: 20000 tokens on a 24 GB card",
        max_len=20000),
    Row(L8, "a10g", tp(1), "Graph-COM/SubgraphRAG issue 19: not 131072 tokens on 24 GB cards",
        max_len=131072, fits=False),
    Row(L8, "h100-1g.10gb", tp(1), f"{MIG}; 16 GB of weights in 10", fits=False),
    Row(L8, "h100-3g.40gb", tp(1), f"{MIG}; 16 GB of weights in 40"),
    Row(L70, "a100-80gb", tp(8), "evokernel, Llama 3.3 70B on 8x A100: TP 8", max_len=32768),
    Row(L70, "a100-80gb", tp(1), "hamel.dev, vLLM & large models: 70B is not for one A100",
        fits=False),
    Row(L70, "h100", tp(2), "basetenlabs/truss-examples 279: Llama 3 70B needs 2 H100, not 4",
        max_len=8192),
    Row(L70_8, "h100", tp(1), f"{RECIPES}, Llama 3.3 70B: FP8 TP1 on Hopper, FP8 KV",
        max_len=10240, kv_bits=8),
    Row(L70_4, "b200", tp(1), f"{RECIPES}, Llama 3.3 70B: FP4 TP1 on Blackwell", max_len=10240,
        kv_bits=8),
    Row(L70_8, "b200", tp(8), f"{RECIPES}, Llama 3.3 70B: TP 2, 4 or 8 for latency"),
    Row(L70_4, "mi300x", tp(1), "vLLM documentation, Quantization: NVFP4 is NVIDIA's",
        rule="NVFP4"),
    Row("Llama-3.1-405B-Instruct-FP8", "h100", tp(8), BLOG405),
    Row("Llama-3.1-405B-Instruct-FP8", "a100-80gb", tp(8), BLOG405),
    Row(L405, "h100", tp(8), BLOG405, fits=False),
    Row(L405, "h100", tp(8, 2), BLOG405),
    Row(L405, "h200", tp(8), BLOG405),
    Row(L405, "mi300x", tp(8), BLOG405, max_len=131072),
    Row("TinyLlama-1.1B-Chat-v1.0", "l4", tp(8), "vLLM rule: KV heads are copied, 4 to 8 GPUs",
        max_len=2048),
    Row("SmolLM2-135M-Instruct", "cpu", tp(2), "tried: 9 heads, TP 2 is refused",
        rule="9 attention heads"),
    Row("falcon-7b", "l40s", tp(2), "vLLM rule: 71 heads", max_len=2048, rule="71 attention"),
    # Other mixtures
    Row("Mixtral-8x7B-Instruct-v0.1", "h100", tp(2), "axiomlogica: 2 x H100 80 GB at least"),
    Row("Mixtral-8x7B-Instruct-v0.1", "h100", tp(1), "axiomlogica: 2 x H100 80 GB at least",
        fits=False),
    Row("Mixtral-8x22B-Instruct-v0.1", "h100", tp(4), "axiomlogica: 4 to 8 GPUs"),
    Row(SCOUT, "h100", tp(8), f"{LLAMA4}: Scout on 8xH100 up to 1M", max_len=1_000_000),
    Row(SCOUT, "h200", tp(8), f"{LLAMA4}: Scout on 8xH200 up to 3.6M", max_len=3_600_000),
    Row(MAVERICK, "h100", tp(8), f"{LLAMA4}: Maverick on 8xH100 up to 430K", max_len=430_000),
    Row(MAVERICK, "h200", tp(8), f"{LLAMA4}: Maverick on 8xH200 up to 1M", max_len=1_000_000),
    Row(OSS20, "a100-40gb", tp(1), f"{RECIPES}, GPT-OSS: 20b on a single A100", max_len=131072),
    Row(OSS120, "a100-80gb", tp(1), f"{RECIPES}, GPT-OSS: 120b on a single A100 80 GB"),
    Row(OSS120, "a100-80gb", tp(4), f"{RECIPES}, GPT-OSS: 120b at TP 4"),
    Row(OSS120, "h100", tp(8), f"{RECIPES}, GPT-OSS: 120b at TP 8 on 8xH100", max_len=131072),
    Row(OSS120, "mi300x", tp(8), f"{RECIPES}, GPT-OSS: 120b at TP 8 on MI300X", max_len=131072),
    Row(OSS120, "l40s", tp(1), f"{RECIPES}, GPT-OSS: 120b needs 80 GB", fits=False),
    Row(M2, "a100-80gb", tp(4), f"{RECIPES}, MiniMax-M2: 4xA100"),
    Row(M2, "b200", tp(2), f"{RECIPES}, MiniMax-M2: 2xB200"),
    Row(M2, "mi300x", tp(2), f"{RECIPES}, MiniMax-M2: 2xMI300X", max_len=196608),
    Row(M2, "h200", tp(8), f"{RECIPES}, MiniMax-M2: pure TP8 is not supported", rule="192"),
    Row(M2, "h200", Split(8, experts=True), f"{RECIPES}, MiniMax-M2: TP8+EP"),
    Row(M2, "h200", Split(1, data=8, experts=True), f"{RECIPES}, MiniMax-M2: DP8+EP"),
    Row("GLM-4.5-Air-FP8", "h100", tp(8), f"{RECIPES}, GLM-4.X: TP 8", max_len=65536),
    Row("GLM-4.5", "h200", tp(8), f"{GLM}: BF16 on 8xH200"),
    Row("GLM-4.5", "h100", tp(8), f"{GLM}: BF16 needs 16xH100", fits=False),
    Row("GLM-4.5-FP8", "h100", tp(8), f"{GLM}: FP8 on 8xH100"),
    Row("GLM-4.5-FP8", "h200", tp(4), f"{GLM}: FP8 on 4xH200"),
    Row("GLM-4.5-Air", "h100", tp(4), f"{GLM}: Air BF16 on 4xH100"),
    Row("GLM-4.5-Air", "h200", tp(2), f"{GLM}: Air BF16 on 2xH200"),
    Row("GLM-4.5-Air-FP8", "h100", tp(2), f"{GLM}: Air FP8 on 2xH100"),
    Row("GLM-4.5-Air-FP8", "h200", tp(1), f"{GLM}: Air FP8 on one H200"),
    # Rules of pipelines and hybrids
    Row("NVIDIA-Nemotron-Nano-9B-v2", "a10g", tp(1),
        "arXiv 2508.14444, Nemotron Nano 2: 128k on one A10G", max_len=131072),
    Row("Qwen3-0.6B", "l4", tp(1, 64), "vLLM rule: a stage has a layer", rule="64 stages"),
)  # fmt: skip


def test_there_are_enough_rows_and_all_gpus_are_among_them() -> None:
    assert len(ROWS) >= 40
    named = {"l4", "a10g", "l40s", "a100-40gb", "a100-80gb", "h100", "h200", "b200", "mi300x"}
    assert named <= {row.gpu for row in ROWS}
    assert any(kind(row.gpu).is_slice for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.model}-{row.gpu}-{row.split}")
def test_the_planner_agrees(row: Row) -> None:
    model = read_model(row.model)
    reasons = [each.reason for each in refusals(model, row.split, kind(row.gpu), row.per_node)]
    if row.rule:
        assert any(row.rule in reason for reason in reasons), reasons
        return
    assert reasons == []
    budget = Budget(max_model_len=row.max_len, kv_bits=row.kv_bits)
    used = footprint(model, row.split, kind(row.gpu), budget)
    assert used.fits is row.fits, used


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen2.5-0.5B-Instruct", 0.49), ("Qwen2.5-7B-Instruct", 7.61),
        ("Qwen2.5-72B-Instruct", 72.7), ("Qwen3-0.6B", 0.6), ("Qwen3-32B", 32.8),
        ("Qwen3-30B-A3B", 30.5), ("Qwen3-235B-A22B-Instruct-2507", 235),
        ("Qwen3-Coder-480B-A35B-Instruct", 480), ("Qwen3-Next-80B-A3B-Instruct", 80),
        ("Llama-3.1-8B-Instruct", 8.03), ("Llama-3.3-70B-Instruct", 70.6),
        ("Llama-3.1-405B-Instruct", 405.9), ("Mixtral-8x7B-Instruct-v0.1", 46.7),
        ("Mixtral-8x22B-Instruct-v0.1", 141), ("gemma-2-9b-it", 9.24), ("phi-4", 14.7),
        ("Llama-4-Scout-17B-16E-Instruct", 109), ("DeepSeek-V3", 671),
        ("DeepSeek-V2-Lite-Chat", 15.7), ("Kimi-K2-Instruct", 1026), ("gpt-oss-20b", 20.9),
        ("gpt-oss-120b", 116.8), ("GLM-4.5-Air", 106), ("MiniMax-M2", 229),
        ("NVIDIA-Nemotron-Nano-9B-v2", 8.9), ("falcon-7b", 6.92),
    ],
)  # fmt: skip
def test_parameters_are_those_on_the_model_card(name: str, billions: float) -> None:
    assert read_model(name).parameters / 1e9 == pytest.approx(billions, rel=0.015)


@pytest.mark.parametrize(
    ("name", "split", "gib", "source"),
    [
        (L8, tp(1), 14.99, "vllm-project/vllm issue 10517"),
        ("Llama-3.1-405B-Instruct-FP8", tp(8), 57.75, "vllm-project/vllm issue 6746"),
    ],
)
def test_weights_take_what_an_engine_said(name: str, split: Split, gib: float, source: str) -> None:
    assert source
    used = footprint(read_model(name), split, kind("h100"), Budget())
    assert used.weights / GIB == pytest.approx(gib, rel=0.03)


def test_every_shipped_model_is_read_and_known_to_the_engine() -> None:
    for name in catalogue():
        assert read_model(name).parameters > 1e8
