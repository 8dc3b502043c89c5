"""`headrace bench` before real vLLM replicas: its figures, and vLLM's own of the same run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.record import ReplicaFigures, read_record
from tests.bench.processes import engines_give_way, tree_of
from tests.e2e.conftest import CHAT, EMBEDDINGS, Stack, another_gateway

CLOSE = 0.05
BETWEEN_S = 0.15
"""What a first token may spend between vLLM's clock and ours. Seen: 5 to 73 ms."""

# vLLM's clock starts when its server has read a request and stops when a token has come out of the
# engine, ours is the client's. Two engines take both cores of a small machine, and whatever stands
# between the clocks would wait for one, a request's way in and a first token's way out: hundreds of
# milliseconds while both compute, so engines give way to their servers. And where the first token
# is half a character, its text comes with the second: one in ten here, some 150 ms each. So prompts
# and answers are long; two prompts together are within what the gateway lets a replica owe, so that
# it holds neither back.
CHATS = """\
question: Do our figures agree with vLLM's own?
duration_s: 30
warm_up_s: 2
patience_s: 120
allowed_late_s: 1
arrivals: {kind: users, users: 2}
workload: {kind: long-context, prompt_tokens: 800, output_tokens: 48}
objectives: {ttft_s: 20}
"""

TEXTS = """\
question: Are texts embedded?
duration_s: 6
warm_up_s: 0
patience_s: 60
allowed_late_s: 1
arrivals: {kind: poisson, rate_per_s: 2}
workload: {kind: embeddings, inputs: 2, tokens: 20}
"""


def bench(url: str, folder: Path, scenario: str, model: str) -> Path:
    """The JSON record of one run."""
    path = folder / "scenario.yaml"
    path.write_text(scenario)
    words = [url, "--scenario", str(path), "--model", model, "--out", str(folder)]
    command = [sys.executable, "-m", "gateway", "bench", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.json")
    return found


def test_chats_are_counted_and_timed_as_vllm_does(stack: Stack, tmp_path: Path) -> None:
    for replica in stack.chat_replicas:
        engines_give_way(tree_of(replica.pid))
    # In turns, so that there are figures of both, whatever a policy would think of them.
    with another_gateway(stack, tmp_path / "gateway.log", "--policy", "round-robin") as (_, url):
        (run,) = read_record(bench(url, tmp_path, CHATS, CHAT).read_bytes()).runs
    ours = run.everything
    chats = [each for each in run.replicas if each.output_tokens]
    assert ours.errors == {}
    assert ours.requests >= 2
    assert not ours.are_tokens_counted
    assert sum(each.requests for each in chats) == ours.requests
    assert sum(each.output_tokens for each in chats) == ours.output_tokens == 48 * ours.requests
    assert sum(each.prompt_tokens for each in chats) == ours.prompt_tokens
    assert len(chats) == 2, "one replica had everything"
    told = {"tpot": ours.tpot_s, "e2e": ours.e2e_s}
    means = {name: each.mean for name, each in told.items() if each is not None}
    theirs = {name: mean_of(chats, f"{name}_mean_s") for name in told}
    assert means == pytest.approx(theirs, rel=CLOSE)
    assert ours.ttft_s is not None
    assert 0 < ours.ttft_s.mean - mean_of(chats, "ttft_mean_s") < BETWEEN_S


def mean_of(replicas: list[ReplicaFigures], figure: str) -> float:
    """Over all requests of all replicas."""
    weighed = (float(getattr(each, figure)) * each.requests for each in replicas)
    return sum(weighed) / sum(each.requests for each in replicas)


def test_embeddings(stack: Stack, tmp_path: Path) -> None:
    (run,) = read_record(bench(stack.url, tmp_path, TEXTS, EMBEDDINGS).read_bytes()).runs
    assert run.everything.errors == {}
    assert run.everything.ttft_s is None
    assert run.everything.e2e_s is not None
    assert run.everything.prompt_tokens > 0
