"""A replica's file and its place among nodes: what is read, and what is said of mistakes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serving.engine_args import EngineKind, Node, Parallelism
from serving.launch import Kit, Served
from serving.replica.command import command, engine_of, settings_of
from serving.replica.nodes import node_of
from serving.replica.settings import ReplicaSettings, SettingsError, parse, read_file

FILE = """
model: Qwen/Qwen3-32B
engine: vllm
served_name: qwen
host: 0.0.0.0
port: 8000
health_port: 8001
parallelism: {tensor: 4, pipeline: 2}
gpus: {name: H200, count: 8}
kv_events: {}
prefix_caching: {hash: xxhash_cbor, seed: 7}
lora: {adapters: {support: /adapters/support}}
quantisation: {weights: fp8}
supervision: {restarts: 0}
args: [--max-num-seqs, "64"]
"""


def _args(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_a_file_says_what_the_engine_is_asked_to_do(tmp_path: Path) -> None:
    path = tmp_path / "replica.yaml"
    path.write_text(FILE)
    settings = settings_of(_args("--settings", str(path)))
    kit = Kit(EngineKind.VLLM, "py", (Served("Qwen/Qwen3-32B", "Qwen/Qwen3-32B", None, False),))
    engine = engine_of(settings, kit, None)
    assert (engine.served_name, engine.host, engine.port) == ("qwen", "0.0.0.0", 8000)
    assert engine.parallelism == Parallelism(tensor=4, pipeline=2)
    assert engine.kv_events_ports == (5557, 5558)
    assert engine.prefix_caching is not None
    assert (engine.prefix_caching.hash, engine.prefix_caching.seed) == ("xxhash_cbor", 7)
    assert engine.quantisation.weights == "fp8"
    assert engine.extra == ("--max-num-seqs", "64")
    assert settings.supervision.restarts == 0


def test_the_command_line_wins_over_the_file_and_adds_to_its_arguments(tmp_path: Path) -> None:
    path = tmp_path / "replica.yaml"
    path.write_text(FILE)
    settings = settings_of(_args("--settings", str(path), "--port", "9", "--engine-arg=--seed=1"))
    assert (settings.port, settings.host) == (9, "0.0.0.0")
    assert settings.args == ("--max-num-seqs", "64", "--seed=1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engine: vllm", "missing required field `model`"),
        ("model: m\nbogus: 1", "unknown field `bogus`"),
        ("model: m\nport: 70000", "$.port"),
        ("model: m\nparallelism: {tensor: 0}", "$.parallelism.tensor"),
        ("model: m\nparallelism: {tensors: 2}", "$.parallelism"),
        ("model: m\nengine: tgi", "$.engine"),
        ("- model", "expected keys and values"),
        ("model: [", "while parsing"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "replica.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        settings_of(_args("--settings", str(path)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_file(str(tmp_path / "nothing.yaml"))


def _complaint(keys: dict[str, Any]) -> str:
    """What is said against settings; nothing if they are some."""
    try:
        assert isinstance(parse(keys), ReplicaSettings)
    except SettingsError as error:
        return str(error)
    return ""


@given(st.text())
def test_any_text_is_settings_or_a_one_line_complaint(text: str) -> None:
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return
    if isinstance(document, dict):
        assert "\n" not in _complaint(document)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(ReplicaSettings.__struct_fields__), json_like))
def test_any_value_of_a_known_key_is_settings_or_a_complaint(keys: dict[str, Any]) -> None:
    assert "\n" not in _complaint({"model": "m", **keys})


def test_a_group_of_pods_says_who_leads() -> None:
    environ = {"LWS_LEADER_ADDRESS": "a.b", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}
    assert node_of(environ) == Node(1, 2, "a.b")
    assert node_of({}) is None
    assert node_of({**environ, "LWS_GROUP_SIZE": "1", "LWS_WORKER_INDEX": "0"}) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"LWS_WORKER_INDEX": "2"}, "LWS_WORKER_INDEX is 2 in a group of 2"),
        ({"LWS_WORKER_INDEX": ""}, "LWS_WORKER_INDEX is ''"),
        ({"LWS_GROUP_SIZE": "two"}, "LWS_GROUP_SIZE is 'two'"),
        ({"LWS_GROUP_SIZE": "²"}, "LWS_GROUP_SIZE"),
    ],
)
def test_half_an_answer_about_the_group_is_refused(changed: dict[str, str], said: str) -> None:
    environ = {"LWS_LEADER_ADDRESS": "a", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}
    with pytest.raises(SettingsError, match=said):
        node_of({**environ, **changed})
