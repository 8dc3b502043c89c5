"""Facts about a machine in, engine and reason out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine_args import EngineKind
from serving.machine import (
    GIB,
    Gpu,
    Machine,
    choose_engine,
    look,
    read_gpus,
    read_slices,
    share_cores,
)

PLAIN = Machine("Linux", "x86_64", 16 * GIB, (0, 1), (), (3, 11))
GPU = replace(PLAIN, gpus=(Gpu("H100", 80 * GIB),) * 2, memory_bytes=4 * GIB)

CHOICES = [
    (PLAIN, EngineKind.VLLM_CPU, "no NVIDIA GPU"),
    (replace(PLAIN, memory_bytes=None), EngineKind.VLLM_CPU, "no NVIDIA GPU"),
    (GPU, EngineKind.VLLM, "2 x H100"),
    (replace(PLAIN, memory_bytes=10 * GIB - 1), EngineKind.SIM, "10 GB"),
    (replace(PLAIN, memory_bytes=10 * GIB), EngineKind.VLLM_CPU, "vllm-cpu"),
    (replace(PLAIN, system="Darwin", architecture="arm64"), EngineKind.SIM, "Darwin on arm64"),
    (replace(PLAIN, architecture="aarch64"), EngineKind.SIM, "Linux on aarch64"),
    (replace(PLAIN, python=(3, 14)), EngineKind.SIM, "Python 3.14"),
]


@pytest.mark.parametrize(("machine", "kind", "said"), CHOICES)
def test_the_best_engine_the_machine_can_run_is_chosen_and_the_reason_said(
    machine: Machine, kind: EngineKind, said: str
) -> None:
    choice = choose_engine(machine, None)
    assert choice.kind is kind
    assert said in choice.reason


@pytest.mark.parametrize("kind", list(EngineKind))
def test_what_the_user_asks_for_is_not_argued_with(kind: EngineKind) -> None:
    assert choose_engine(replace(PLAIN, system="Plan 9"), kind).kind is kind


@given(st.integers(1, 40), st.integers(1, 20))
def test_cores_are_shared_evenly_and_never_twice_while_they_last(cores: int, replicas: int) -> None:
    shares = share_cores(tuple(range(cores)), replicas)
    assert len(shares) == replicas
    assert len({len(share) for share in shares}) == 1
    given_out = [core for share in shares for core in share]
    assert set(given_out) <= set(range(cores))
    if replicas <= cores:
        assert len(given_out) == len(set(given_out))
        assert len(given_out) > cores - replicas


def test_a_machine_that_tells_no_cores_leaves_them_to_the_engine() -> None:
    assert share_cores((), 2) == [(), ()]


def test_this_machine_can_be_looked_at() -> None:
    machine = look()
    assert machine.cores
    assert machine.memory_bytes is None or machine.memory_bytes > GIB / 4


def test_gpus_are_read_as_the_driver_lists_them() -> None:
    listing = "NVIDIA H200, 143771\nNVIDIA GB10, [N/A]\n"
    assert read_gpus(listing) == (Gpu("NVIDIA H200", 143771 * 1024**2), Gpu("NVIDIA GB10", 0))
    assert read_gpus("") == ()


def test_slices_are_read_in_place_of_the_gpus_they_were_cut_from() -> None:
    listing = (
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n"
        "  MIG 3g.40gb     Device  0: (UUID: MIG-2)\n"
        "  MIG 1g.10gb+me  Device  1: (UUID: MIG-3)\n"
    )
    name = "NVIDIA H100 80GB HBM3 MIG"
    assert read_slices(listing) == (
        Gpu(f"{name} 3g.40gb", 40 * GIB),
        Gpu(f"{name} 1g.10gb+me", 10 * GIB),
    )
    assert read_slices("GPU 0: NVIDIA H200 (UUID: GPU-1)\n") == ()


@given(st.text())
def test_any_listing_is_read(listing: str) -> None:
    assert all(gpu.memory_bytes >= 0 for gpu in (*read_gpus(listing), *read_slices(listing)))
