"""One model on a replica of two ranks and on a replica of one, in one pool behind the gateway.

A small Llama of 8 heads whose weights the engine makes up: what it says is noise, how it is laid
over cores is real. Then SIGTERM in the middle of streams.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serving.engine_args import EngineKind
from serving.launch import prepare
from serving.local_models import CHAT_MODEL
from serving.machine import choose_engine, look
from tests.e2e.conftest import START_LIMIT_S, free_port, until

MODEL = "little-llama"
DRAIN_S = 60


@dataclass(frozen=True, slots=True)
class Replica:
    """One `headrace replica`."""

    process: subprocess.Popen[bytes]
    url: str
    health_url: str
    output: Path

    def is_ready(self) -> bool:
        """By what it says itself. Fails if it has ended."""
        assert self.process.poll() is None, self.output.read_text()[-4000:]
        try:
            return httpx.get(f"{self.health_url}/ready", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


@dataclass(frozen=True, slots=True)
class Pool:
    """Two of them, and the gateway."""

    gateway: str
    one_rank: Replica
    two_ranks: Replica

    def logs(self) -> list[Path]:
        """What a test that fails shows the ends of."""
        return [self.one_rank.output, self.two_ranks.output]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of a model we have, and a configuration that two can share."""
    choice = choose_engine(look(), None)
    if choice.kind is not EngineKind.VLLM_CPU:
        pytest.skip(f"tensor parallelism on cores needs vLLM's CPU build: {choice.reason}")
    source = Path(prepare(choice.kind, [CHAT_MODEL.name], print).models[0].model)
    folder = tmp_path_factory.mktemp("model") / MODEL
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, folder / name)
    config = json.loads((source / "config.json").read_text())
    config |= {
        "hidden_size": 256, "head_dim": 32, "num_attention_heads": 8, "num_key_value_heads": 4,
        "num_hidden_layers": 4, "intermediate_size": 512,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _planned(model: Path, folder: Path, split: str) -> dict[str, Any]:
    """The settings of a replica as `headrace plan` writes them for two cores of this machine."""
    target = folder / f"{split}.yaml"
    words = ["plan", str(model), "--gpu", "cpu", "--count", "2", "--split", split]
    words += ["--max-model-len", "1024", "--max-num-seqs", "16", "--max-num-batched-tokens", "1024"]
    words += ["--prompt-tokens", "100", "--output-tokens", "50", "--write", "replica", str(target)]
    subprocess.run([sys.executable, "-m", "gateway", *words], check=True)
    keys = yaml.safe_load(target.read_text())
    assert isinstance(keys, dict)
    return keys


def _start(folder: Path, name: str, keys: dict[str, Any]) -> Replica:
    """A replica of the plan's settings, with what a plan does not know of this machine."""
    port, health_port = free_port(), free_port()
    settings = folder / f"{name}.json"
    settings.write_text(json.dumps({
        **keys, "served_name": MODEL, "port": port, "health_port": health_port,
        "block_size": 32, "drain_s": DRAIN_S, "args": [*keys["args"], "--load-format=dummy"],
    }))  # fmt: skip
    output = folder / f"{name}.log"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.replica.command", "--settings", str(settings)],
            stdout=sink, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return Replica(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{health_port}", output)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(DRAIN_S + 20)
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def pool(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Both replicas, started from what the planner writes, and a gateway in front."""
    folder = tmp_path_factory.mktemp("pool")
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("two ranks need two cores")
    with contextlib.ExitStack() as stack:

        def start(name: str, split: str, threads: str) -> Replica:
            keys = _planned(model, folder, split) | {"cpu": {"threads": threads}}
            replica = _start(folder, name, keys)
            stack.callback(_end, replica.process)
            return replica

        one = start("one", "TP1", f"{cores[1]}")
        two = start("two", "TP2", f"{cores[0]}|{cores[1]}")
        for each in (one, two):
            until(f"{each.output.stem} is ready", each.is_ready, START_LIMIT_S, every_s=0.3)
        port = free_port()
        gateway = subprocess.Popen(
            [sys.executable, "-m", "gateway", "gateway", "--port", str(port), "--access-log", "off",
             "--replica", one.url, "--replica", two.url],
        )  # fmt: skip
        stack.callback(_end, gateway)
        url = f"http://127.0.0.1:{port}"
        until("the gateway sees both", lambda: len(_healthy(url)) == 2, 60.0)
        yield Pool(url, one, two)


def _healthy(gateway: str) -> dict[str, dict[str, Any]]:
    """What the gateway knows of each healthy replica, by URL."""
    try:
        document = httpx.get(f"{gateway}/debug/fleet", trust_env=False).json()
    except httpx.HTTPError:
        return {}
    replicas = document["replicas"]
    return {each["url"]: each for each in replicas if each["health"] == "healthy"}


def _ask(gateway: str, text: str) -> httpx.Response:
    body = {"model": MODEL, "prompt": text, "max_tokens": 16, "ignore_eos": True}
    return httpx.post(f"{gateway}/v1/completions", json=body, trust_env=False, timeout=120.0)


@dataclass(frozen=True, slots=True)
class Heard:
    """What the pool said while both replicas were in it."""

    statuses: list[int]
    fingerprints: set[str]
    known: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def heard(pool: Pool) -> Heard:
    """Several rounds of requests: the three ranks share two cores here, and who is too busy to say
    that it is well is left out for a while."""
    statuses: list[int] = []
    fingerprints: set[str] = set()
    for number in range(5):
        until("both are healthy", lambda: len(_healthy(pool.gateway)) == 2, 60.0)
        with ThreadPoolExecutor(8) as threads:
            replies = list(
                threads.map(
                    lambda n, first=24 * number: _ask(
                        pool.gateway, f"Number {first + n}: " + "so it goes. " * n
                    ),
                    range(24),
                )
            )
        statuses += [reply.status_code for reply in replies]
        fingerprints |= {reply.json().get("system_fingerprint", reply.text) for reply in replies}
        if len(fingerprints) == 2:
            break
    return Heard(statuses, fingerprints, _healthy(pool.gateway))


def test_both_answer_and_their_degrees_are_known_from_what_they_say(
    pool: Pool, heard: Heard
) -> None:
    assert set(heard.statuses) == {200}
    assert len(heard.fingerprints) == 2
    assert {"-tp2-" in fingerprint for fingerprint in heard.fingerprints} == {True, False}
    assert heard.known[pool.one_rank.url]["engine"]["tensor_parallel"] == 1
    assert heard.known[pool.two_ranks.url]["engine"]["tensor_parallel"] == 2


def test_heads_that_cannot_be_shared_are_refused_before_anything_starts(
    model: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "replica.json"
    keys = {"model": str(model), "engine": "vllm-cpu", "args": ["--tensor-parallel-size=3"]}
    settings.write_text(json.dumps(keys))
    run = subprocess.run(
        [sys.executable, "-m", "serving.replica.command", "--settings", str(settings)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert "8 attention heads cannot be shared by 3 ranks" in run.stderr


@pytest.mark.usefixtures("heard")
def test_sigterm_in_the_middle_of_streams_lets_them_end(pool: Pool) -> None:
    """It takes a replica of the pool away: whatever the order, the pool has been heard before."""
    replica, begun = pool.two_ranks, []

    def stream(number: int) -> list[str]:
        body = {"model": MODEL, "prompt": f"Go on, {number}.", "max_tokens": 900}
        asked = {**body, "ignore_eos": True, "stream": True}
        url, lines = f"{replica.url}/v1/completions", []
        with httpx.stream("POST", url, json=asked, trust_env=False, timeout=120.0) as reply:
            for line in reply.iter_lines():
                begun.append(number)
                lines.append(line)
        return [line for line in lines if line]

    with ThreadPoolExecutor(4) as threads:
        streams = [threads.submit(stream, number) for number in range(4)]
        until("all have begun", lambda: len(set(begun)) == 4, 60.0)
        assert not all(each.done() for each in streams)
        replica.process.terminate()
        ended = [each.result() for each in streams]
    assert all(lines[-1] == "data: [DONE]" for lines in ended)
    assert all(len(lines) > 100 for lines in ended)
    assert replica.process.wait(DRAIN_S + 20) == 0
    assert _ask(pool.gateway, "And now?").status_code == 200
