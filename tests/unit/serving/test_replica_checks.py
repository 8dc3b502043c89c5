"""A plan and what is found: every contradiction is said, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine_args import EngineKind, Node, Parallelism
from serving.machine import GIB, Gpu
from serving.replica.checks import Findings, Plan, contradictions, degrees_of
from serving.replica.settings import Gpus

H200 = Gpu("NVIDIA H200", 140 * GIB)
SLICE = Gpu("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 40 * GIB)
TWO = Plan(EngineKind.VLLM, Parallelism(tensor=2), Gpus("H200", 2, 141.0))
FOUND = Findings((H200, H200), cores=16)


def test_what_fits_is_not_complained_of() -> None:
    assert contradictions(TWO, FOUND) == []


@pytest.mark.parametrize(
    ("plan", "found", "said"),
    [
        (TWO, replace(FOUND, gpus=(H200,)), "the plan needs 2 GPUs, 1 found"),
        (TWO, replace(FOUND, gpus=(SLICE, SLICE)), "the plan is for H200, found NVIDIA H100"),
        (
            replace(TWO, gpus=Gpus(count=4)),
            replace(FOUND, gpus=(H200,) * 4),
            "the plan counts on 4 GPUs here, its parallelism needs 2",
        ),
        (
            replace(TWO, gpus=Gpus(memory_gib=180.0)),
            FOUND,
            "the plan counts on 180 GiB a GPU, NVIDIA H200 has 140",
        ),
        (
            replace(TWO, gpus=Gpus()),
            replace(FOUND, gpus=(SLICE, SLICE)),
            "MIG slices cannot reach each other",
        ),
        (
            replace(TWO, degrees=Parallelism(tensor=3), node=Node(0, 2, "a"), gpus=Gpus()),
            FOUND,
            "3 devices cannot be shared evenly by 2 nodes",
        ),
        (replace(TWO, kind=EngineKind.VLLM_CPU), FOUND, "the engine is vllm-cpu"),
        (
            Plan(EngineKind.VLLM_CPU, Parallelism(tensor=2), Gpus(), threads="0-1"),
            FOUND,
            "cpu.threads names 1 groups of cores for 2 ranks",
        ),
        (
            Plan(EngineKind.VLLM_CPU, Parallelism(tensor=4), Gpus()),
            replace(FOUND, cores=2),
            "4 ranks need a core each, 2 found",
        ),
        (replace(TWO, shm_mib=1024), replace(FOUND, shm_mib=64), "/dev/shm has 64 MiB"),
        (TWO, replace(FOUND, model={"num_attention_heads": 9}), "9 attention heads"),
        (
            replace(TWO, degrees=Parallelism(tensor=2, pipeline=1)),
            replace(FOUND, model={"num_attention_heads": 6, "num_key_value_heads": 3}),
            "3 KV heads can neither be shared nor copied to 2 ranks",
        ),
        (
            Plan(EngineKind.SIM, Parallelism(pipeline=3), Gpus()),
            replace(FOUND, model={"text_config": {"num_hidden_layers": 2}}),
            "2 layers are too few for 3 pipeline stages",
        ),
    ],
)
def test_a_contradiction_is_said(plan: Plan, found: Findings, said: str) -> None:
    assert said in "; ".join(contradictions(plan, found))


def test_each_node_needs_its_share_of_the_gpus() -> None:
    across = Plan(EngineKind.VLLM, Parallelism(tensor=2, pipeline=2), Gpus(), Node(1, 2, "a"))
    assert contradictions(across, FOUND) == []


@pytest.mark.parametrize(
    ("args", "degrees"),
    [
        ((), Parallelism(tensor=4, expert=True)),
        (("--tensor-parallel-size", "2"), Parallelism(tensor=2, expert=True)),
        (("--tensor-parallel-size=2", "-pp", "3"), Parallelism(2, 3, expert=True)),
        (("--tp-size", "8", "--dp-size=2"), Parallelism(8, data=2, expert=True)),
        (("--seed", "-tp"), Parallelism(tensor=4, expert=True)),
    ],
)
def test_arguments_win_over_the_settings(args: tuple[str, ...], degrees: Parallelism) -> None:
    assert degrees_of(Parallelism(tensor=4, expert=True), args) == degrees


@pytest.mark.parametrize("value", ["0", "-1", "two", ""])
def test_a_degree_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="not a degree"):
        degrees_of(Parallelism(), ("-tp", value))


configs = st.dictionaries(
    st.sampled_from(["num_attention_heads", "num_key_value_heads", "num_hidden_layers"]),
    st.none() | st.integers(-1, 64) | st.text(max_size=3),
)


@given(configs, st.integers(1, 8), st.sampled_from(list(EngineKind)), st.integers(0, 8))
def test_any_findings_can_be_judged(
    config: dict[str, Any], tensor: int, kind: EngineKind, gpus: int
) -> None:
    plan = Plan(kind, Parallelism(tensor=tensor), Gpus())
    said = contradictions(plan, Findings((H200,) * gpus, 8, model=config))
    assert all("\n" not in line for line in said)
    if kind is EngineKind.VLLM and gpus < tensor:
        assert f"the plan needs {tensor} GPUs, {gpus} found" in said
