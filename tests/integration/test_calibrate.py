"""`headrace calibrate` as a process finds out how fast a simulated replica is, which we know."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.sim.settings import load_profile
from serving.sim.timing import StepTiming, StepWork

TRUE = {
    "base_s": 0.03,
    "prefill_token_s": 1e-3,
    "prefill_token_pair_s": 2e-7,
    "decode_s": 0.02,
    "decode_sequence_s": 4e-3,
    "decode_context_token_s": 2e-5,
}
SHAPE = {
    "block_size": 16,
    "blocks": 400,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 256,
    "max_model_len": 600,
}
COMMAND = (sys.executable, "-m", "serving.calibration.command")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[str]:
    """A simulated replica of known timing, as a process; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    profile = tmp_path / "true.json"
    said = {"name": "true", "basis": "assumed", "note": "", "timing": TRUE, "engine": SHAPE}
    profile.write_text(json.dumps(said))
    words = [sys.executable, "-m", "serving.sim.server", "--port", str(port)]
    process = subprocess.Popen(
        [*words, "--profile", str(profile), "--speed", "2"], stdout=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _until_it_answers(url)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 20.0
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_profile_is_measured_that_the_simulator_reads(engine: str, tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    words = [*COMMAND, engine, "--seconds", "60", "--write", str(target)]
    words += ["--max-num-seqs", "8", "--max-num-batched-tokens", "256"]
    run = subprocess.run(words, capture_output=True, text=True, check=False, timeout=110)
    assert run.returncode == 0, run.stderr
    found = load_profile(str(target))
    assert found.basis == "measured"
    assert found.origin is not None
    assert found.origin.points > 20
    assert (found.origin.engine[:12], found.origin.tensor_parallel) == ("vllm-0.32.0-", 1)
    assert (found.engine.block_size, found.engine.blocks) == (16, 400)
    assert found.engine.max_model_len == 600
    assert (found.engine.max_num_seqs, found.engine.max_num_batched_tokens) == (8, 256)
    true = StepTiming(**TRUE)
    for work in (
        StepWork(200, 20_000.0),
        StepWork(decode_sequences=1, decode_context_tokens=300),
        StepWork(decode_sequences=8, decode_context_tokens=2400),
        StepWork(100, 5_000.0, 4, 1200),
    ):
        twice_as_fast = true.seconds(work) / 2
        assert found.timing.seconds(work) == pytest.approx(twice_as_fast, rel=0.25), work


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("http://127.0.0.1:1",), 1, "no engine answers"),
        (("ftp://x",), 2, "expected http://HOST:PORT"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    words: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    run = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert run.returncode == code
    assert said in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_served_is_said_in_the_engines_words(
    engine: str, tmp_path: Path
) -> None:
    run = subprocess.run(
        [*COMMAND, engine, "--model", "nobody", "--seconds", "5"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 1
    assert "nobody" in run.stderr
