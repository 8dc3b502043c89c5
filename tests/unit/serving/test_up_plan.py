"""What `headrace up` decides before it starts anything."""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
from pathlib import Path

import pytest

from serving.child import Patience
from serving.engine_args import EngineKind
from serving.launch import Kit, Served
from serving.machine import GIB, Gpu, Machine
from serving.up import banner_for, command, first_error, free_ports, parts_of, plan, sees_all

CHAT = Served("models/chat", "chat", 2048, offline=True)
EMBED = Served("models/embed", "embed", 256, offline=True)
LOGS = Path("logs")


def _args(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def _machine(cores: int = 2, gpus: int = 0) -> Machine:
    return Machine(
        "Linux", "x86_64", 24 * GIB, tuple(range(cores)), (Gpu("H100", 80 * GIB),) * gpus, (3, 11)
    )


def test_two_replicas_get_a_core_each_and_the_embeddings_share() -> None:
    kit = Kit(EngineKind.VLLM_CPU, "py", (CHAT, EMBED))
    engines = plan(kit, _machine(), itertools.count(9000), _args("--embeddings"))
    assert [engine.served_name for engine in engines] == ["chat", "chat", "embed"]
    assert [engine.cores for engine in engines] == [(0,), (1,), (1,)]
    assert [engine.max_model_len_tokens for engine in engines] == [2048, 2048, 256]


def test_no_two_engines_meet_on_a_port() -> None:
    kit = Kit(EngineKind.VLLM_CPU, "py", (CHAT, EMBED))
    engines = plan(kit, _machine(), itertools.count(9000), _args("--replicas", "4"))
    ports = [port for engine in engines for port in (engine.port, *(engine.kv_events_ports or ()))]
    assert len(ports) == len(set(ports)) == 13


def test_every_engine_on_cpu_has_a_figure_for_its_cache() -> None:
    kit = Kit(EngineKind.VLLM_CPU, "py", (CHAT, EMBED))
    engines = plan(kit, _machine(), itertools.count(9000), _args())
    assert [engine.kv_cache_mib for engine in engines] == [1024, 1024, 256]


def test_replicas_go_round_the_gpus_and_the_cache_is_the_engines_affair() -> None:
    kit = Kit(EngineKind.VLLM, "py", (CHAT, EMBED))
    engines = plan(kit, _machine(8, gpus=2), itertools.count(9000), _args("--replicas", "3"))
    assert [engine.gpus for engine in engines] == [(0,), (1,), (0,), (1,)]
    assert {engine.kv_cache_mib for engine in engines} == {None}


def test_options_about_the_model_do_not_reach_the_embeddings() -> None:
    kit = Kit(EngineKind.VLLM_CPU, "py", (CHAT, EMBED))
    args = _args("--max-model-len", "4096", "--kv-cache-mib", "512", "--engine-arg=--seed=1")
    chat, _, embed = plan(kit, _machine(), itertools.count(9000), args)
    assert (chat.max_model_len_tokens, chat.kv_cache_mib, chat.extra) == (4096, 512, ("--seed=1",))
    assert (embed.max_model_len_tokens, embed.kv_cache_mib, embed.extra) == (256, 256, ())


def test_the_gateway_is_told_every_replica_and_outlives_none() -> None:
    kit = Kit(EngineKind.SIM, "py", (CHAT,))
    args = _args("--port", "8001", "--policy", "random")
    engines = plan(kit, _machine(), itertools.count(9000), args)
    *replicas, gateway = parts_of(engines, kit, LOGS, args)
    words = list(gateway.child.command)
    told = [words[at + 1] for at, word in enumerate(words) if word == "--replica"]
    assert told == [engine.url for engine in engines]
    assert words[words.index("--policy") + 1] == "random"
    assert (gateway.child.port, gateway.child.health_path) == (8001, "/readyz")
    assert not gateway.may_restart
    assert all(replica.may_restart for replica in replicas)


def test_the_lines_to_paste_are_whole_commands() -> None:
    kit = Kit(EngineKind.SIM, "py", (CHAT, EMBED))
    engines = plan(kit, _machine(), itertools.count(9000), _args())
    banner = banner_for(engines, kit, LOGS, _args())
    assert "with 2 x chat on sim" in banner
    chat, embed = (shlex.split(line) for line in banner.splitlines() if line.startswith("curl"))
    assert chat[2] == "http://127.0.0.1:8000/v1/chat/completions"
    assert json.loads(chat[-1])["model"] == "chat"
    assert json.loads(embed[-1]) == {"model": "embed", "input": "a river"}


def test_the_group_is_up_only_when_the_gateway_calls_every_replica_healthy() -> None:
    def fleet(*health: str) -> bytes:
        replicas = [{"url": f"u{at}", "health": word} for at, word in enumerate(health)]
        return json.dumps({"is_ready": True, "replicas": replicas}).encode()

    assert sees_all(fleet("healthy", "healthy", "ejected"), {"u0", "u1"})
    assert not sees_all(fleet("healthy", "joining"), {"u0", "u1"})
    assert not sees_all(fleet("healthy"), {"u0", "u1"})
    assert not sees_all(None, {"u0"})


def test_free_ports_never_repeat() -> None:
    ports = list(itertools.islice(free_ports("127.0.0.1"), 50))
    assert len(set(ports)) == 50


def test_trouble_is_quoted_from_where_it_began() -> None:
    log = "fine\nE 1: ValueError: too little memory\nstack\nRuntimeError: see root cause above\n"
    assert first_error(log) == "ValueError: too little memory"
    assert first_error("all is well\n") is None


@pytest.mark.parametrize("word", ["0", "-1", "two"])
def test_a_group_of_no_replicas_is_refused(word: str) -> None:
    with pytest.raises(SystemExit):
        _args("--replicas", word)


def test_a_second_wish_to_stop_is_told_from_the_echo_of_the_first() -> None:
    now = iter([10.0, 10.2, 11.0])
    patience = Patience(lambda: next(now))
    assert [patience.asked_again() for _ in range(3)] == [False, False, True]
