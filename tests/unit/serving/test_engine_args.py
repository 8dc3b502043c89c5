"""Settings in, command line and environment out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from serving.engine_args import (
    EngineKind,
    EngineSettings,
    Lora,
    Node,
    Parallelism,
    PrefixCaching,
    Quantisation,
    TlsFiles,
)
from serving.engine_command import command, environment

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


def test_tls_is_served_from_files_that_change_and_asks_for_a_certificate() -> None:
    said = command(replace(CPU, tls=TlsFiles("svid.pem", "authorities.pem")), "py")
    assert _value(said, "--ssl-certfile") == _value(said, "--ssl-keyfile") == "svid.pem"
    assert _value(said, "--ssl-ca-certs") == "authorities.pem"
    assert _value(said, "--ssl-cert-reqs") == "2"
    assert "--enable-ssl-refresh" in said
    assert not any(word.startswith("--ssl") for word in command(CPU, "py"))


def test_a_gpu_replica_compiles_and_is_told_its_gpu() -> None:
    gpu = replace(CPU, kind=EngineKind.VLLM, gpus=(1,), kv_cache_mib=None)
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


FULL = replace(
    CPU,
    kind=EngineKind.VLLM,
    parallelism=Parallelism(tensor=4, pipeline=2, data=2, expert=True),
    prefix_caching=PrefixCaching(seed=7),
    lora=Lora(adapters={"support": "/adapters/support"}, most_loaded=2, at_runtime=True),
    quantisation=Quantisation(weights="fp8", kv_cache="fp8_e5m2", compute="bfloat16"),
    sleep_mode=True,
)


def test_vllm_is_told_everything_in_its_words() -> None:
    said = command(FULL, "py")
    for flag, value in (
        ("--tensor-parallel-size", "4"),
        ("--pipeline-parallel-size", "2"),
        ("--data-parallel-size", "2"),
        ("--prefix-caching-hash-algo", "sha256_cbor"),
        ("--lora-modules", "support=/adapters/support"),
        ("--max-loras", "2"),
        ("--quantization", "fp8"),
        ("--kv-cache-dtype", "fp8_e5m2"),
        ("--dtype", "bfloat16"),
    ):
        assert _value(said, flag) == value
    assert {"--enable-expert-parallel", "--enable-sleep-mode", "--enable-lora"} <= set(said)
    added = environment(FULL)
    assert added["PYTHONHASHSEED"] == "7"
    assert added["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == added["VLLM_SERVER_DEV_MODE"] == "1"


def test_ranks_on_cpu_get_the_cores_that_are_named() -> None:
    two = replace(CPU, parallelism=Parallelism(tensor=2), threads="0|1")
    assert environment(two)["VLLM_CPU_OMP_THREADS_BIND"] == "0|1"


@pytest.mark.parametrize(
    ("enabled", "said"),
    [
        (None, ["--prefix-caching-hash-algo", "xxhash_cbor"]),
        (True, ["--enable-prefix-caching", "--prefix-caching-hash-algo", "xxhash_cbor"]),
        (False, ["--no-enable-prefix-caching"]),
    ],
)
def test_whether_prefixes_are_cached_is_the_engines_choice_unless_it_is_told(
    enabled: bool | None,
    said: list[str],
) -> None:
    caching = PrefixCaching(enabled=enabled, hash="xxhash_cbor")
    words = command(replace(CPU, prefix_caching=caching), "py")
    assert [word for word in words if "prefix-caching" in word or word == "xxhash_cbor"] == said


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_nodes_only_the_leader_answers_and_publishes(rank: int) -> None:
    node = replace(FULL, node=Node(rank, 2, "leader.svc"), kv_events_ports=(7001, 7005))
    said = command(node, "py")
    assert _value(said, "--nnodes") == "2"
    assert _value(said, "--node-rank") == str(rank)
    assert _value(said, "--master-addr") == "leader.svc"
    assert ("--headless" in said) == (rank == 1)
    assert ("--kv-events-config" in said) == (rank == 0)
    assert said[2] == (
        "vllm.entrypoints.cli.main" if rank else "vllm.entrypoints.openai.api_server"
    )


def test_sglang_is_told_everything_in_its_words() -> None:
    node = Node(1, 2, "leader.svc", 20000)
    sglang = replace(FULL, kind=EngineKind.SGLANG, node=node, kv_events_ports=(7001, 7005))
    said = command(sglang, "py")
    assert said[:3] == ["py", "-m", "sglang.launch_server"]
    for flag, value in (
        ("--model-path", "some/folder"),
        ("--served-model-name", "little"),
        ("--context-length", "2048"),
        ("--tp-size", "4"),
        ("--pp-size", "2"),
        ("--dp-size", "2"),
        ("--ep-size", "8"),
        ("--nnodes", "2"),
        ("--node-rank", "1"),
        ("--dist-init-addr", "leader.svc:20000"),
        ("--quantization", "fp8"),
        ("--lora-paths", "support=/adapters/support"),
        ("--max-loras-per-batch", "2"),
    ):
        assert _value(said, flag) == value
    assert {"--enable-metrics", "--enable-cache-report", "--enable-memory-saver"} <= set(said)
    assert json.loads(_value(said, "--kv-events-config"))["replay_endpoint"] == "tcp://*:7005"
    assert "VLLM_NO_USAGE_STATS" not in environment(sglang)
    assert "--disable-radix-cache" not in said
    off = replace(sglang, prefix_caching=PrefixCaching(enabled=False))
    assert "--disable-radix-cache" in command(off, "py")


def test_what_the_user_puts_into_the_environment_wins() -> None:
    assert environment(replace(FULL, environ={"PYTHONHASHSEED": "9"}))["PYTHONHASHSEED"] == "9"
