"""Settings in, command line and environment out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from serving.engine_args import EngineKind, EngineSettings, command, environment

CPU = EngineSettings(
    kind=EngineKind.VLLM_CPU,
    model="some/folder",
    served_name="little",
    port=9001,
    max_model_len_tokens=2048,
    kv_cache_mib=256,
    cores=(2, 3),
    offline=True,
)


def _value(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_the_engine_is_run_as_a_module_for_its_script_fails_on_the_cpu_build() -> None:
    assert command(CPU, "py")[:3] == ["py", "-m", "vllm.entrypoints.openai.api_server"]


def test_a_cpu_replica_says_all_that_vllm_must_know() -> None:
    said = command(CPU, "py")[3:]
    assert _value(said, "--model") == "some/folder"
    assert _value(said, "--served-model-name") == "little"
    assert _value(said, "--host") == "127.0.0.1"
    assert _value(said, "--port") == "9001"
    assert _value(said, "--max-model-len") == "2048"
    assert _value(said, "--kv-cache-memory-bytes") == "268435456"
    assert "--enforce-eager" in said
    assert "--enable-prompt-tokens-details" in said


def test_a_gpu_replica_compiles_and_is_told_its_gpu() -> None:
    gpu = replace(CPU, kind=EngineKind.VLLM, gpu=1, kv_cache_mib=None)
    assert "--enforce-eager" not in command(gpu, "py")
    assert "--kv-cache-memory-bytes" not in command(gpu, "py")
    assert environment(gpu)["CUDA_VISIBLE_DEVICES"] == "1"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment(gpu)


def test_what_is_unknown_is_left_to_the_engine() -> None:
    bare = EngineSettings(EngineKind.VLLM_CPU, "m", "m", 9001)
    said = command(bare, "py")
    unsaid = {"--max-model-len", "--kv-cache-memory-bytes", "--block-size", "--kv-events-config"}
    assert not unsaid.intersection(said)
    assert not {"HF_HUB_OFFLINE", "VLLM_CPU_OMP_THREADS_BIND"}.intersection(environment(bare))


def test_the_replica_computes_on_its_own_cores_and_tells_nobody_about_it() -> None:
    added = environment(CPU)
    assert added["VLLM_CPU_OMP_THREADS_BIND"] == "2,3"
    assert added["VLLM_NO_USAGE_STATS"] == added["DO_NOT_TRACK"] == "1"
    assert added["HF_HUB_OFFLINE"] == "1"


def test_kv_events_are_published_where_an_engine_binds_and_replayed_on_its_host() -> None:
    said = command(replace(CPU, kv_events_ports=(7001, 7005)), "py")
    events = json.loads(_value(said, "--kv-events-config"))
    assert events == {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": "ipc://@headrace-7001",
        "replay_endpoint": "tcp://127.0.0.1:7005",
        "topic": "kv@127.0.0.1:9001@little",
    }
    said = command(replace(CPU, host="0.0.0.0", kv_events_ports=(7001, 7005)), "py")
    assert json.loads(_value(said, "--kv-events-config"))["endpoint"] == "tcp://*:7001"


@pytest.mark.parametrize("kind", list(EngineKind))
def test_arguments_of_the_users_come_last_so_that_they_win(kind: EngineKind) -> None:
    said = command(replace(CPU, kind=kind, extra=("--seed", "7")), "py")
    assert said[-2:] == ["--seed", "7"]


def test_the_simulator_takes_the_same_place_name_and_events() -> None:
    said = command(replace(CPU, kind=EngineKind.SIM, kv_events_ports=(7001, 7005)), "py")
    assert said[:3] == ["py", "-m", "serving.sim.server"]
    assert _value(said, "--port") == "9001"
    assert _value(said, "--model") == "little"
    assert _value(said, "--kv-events-endpoint") == "tcp://127.0.0.1:7001"
    assert _value(said, "--kv-replay-endpoint") == "tcp://127.0.0.1:7005"
    assert environment(replace(CPU, kind=EngineKind.SIM)) == {}
