"""`headrace up` and `headrace replica` as processes, on the simulator."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LIMIT_S = 30.0


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Run:
    """One command of ours in a process of its own, its output in a file."""

    def __init__(self, folder: Path, module: str, *words: str) -> None:
        self.port = _port()
        self.output = folder / "output"
        command = [
            sys.executable,
            "-m",
            module,
            "--engine",
            "sim",
            "--port",
            str(self.port),
            *words,
        ]
        environ = {**os.environ, "HEADRACE_CACHE": str(folder / "cache")}
        with self.output.open("w") as sink:
            self.process = subprocess.Popen(
                command, stdout=sink, stderr=subprocess.STDOUT, env=environ
            )

    def said(self) -> str:
        return self.output.read_text()

    def until_said(self, text: str) -> None:
        self.until(f"said {text!r}", lambda: text in self.said())

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < deadline, f"not {what}:\n{self.said()}"
            time.sleep(0.02)

    def pids(self) -> dict[str, int]:
        """The last announced process of each name."""
        return {
            name: int(pid) for name, pid in re.findall(r"headrace: (\S+): .*pid (\d+)", self.said())
        }

    def ends(self) -> int:
        """Wait for its end; whatever it started must be gone by then."""
        code = self.process.wait(LIMIT_S)
        assert [name for name, pid in self.pids().items() if _alive(pid)] == []
        return code

    def chat(self) -> str:
        messages = [{"role": "user", "content": "Hi"}]
        body = {"model": "SmolLM2-135M-Instruct", "messages": messages, "max_tokens": 4}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            said: str = json.load(reply)["choices"][0]["message"]["content"]
            return said


def _alive(pid: int) -> bool:
    """True if the process runs; one that has ended but is not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts commands; none outlives the test."""
    runs: list[Run] = []

    def start(module: str, *words: str) -> Run:
        runs.append(Run(tmp_path, module, *words))
        return runs[-1]

    yield start
    for each in runs:
        if each.process.poll() is None:
            each.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.process.wait(10)
        each.process.kill()
        each.process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_group_comes_up_serves_and_leaves_nothing_when_stopped(
    run: Callable[..., Run], number: signal.Signals
) -> None:
    up = run("serving.up")
    up.until_said("Headrace is up at")
    assert up.chat()
    assert sorted(up.pids()) == ["gateway", "replica-1", "replica-2"]
    up.process.send_signal(number)
    assert up.ends() == 0


def test_a_replica_that_dies_is_started_again(run: Callable[..., Run]) -> None:
    up = run("serving.up")
    up.until_said("Headrace is up at")
    before = up.pids()["replica-1"]
    os.kill(before, signal.SIGKILL)
    up.until_said("replica-1 ended (signal 9): starting it again (1 of 3)")
    up.until("back", lambda: len(re.findall(r"replica-1: ready", up.said())) == 2)
    assert up.pids()["replica-1"] != before
    assert up.chat()


def test_a_replica_that_cannot_start_ends_the_group_with_its_own_words(
    run: Callable[..., Run],
) -> None:
    up = run("serving.up", "--engine-arg=--no-such-option")
    assert up.ends() == 1
    assert "ended (exit code 2)" in up.said()
    assert "unrecognized arguments: --no-such-option" in up.said()


def test_without_its_gateway_the_group_ends(run: Callable[..., Run]) -> None:
    up = run("serving.up")
    up.until_said("Headrace is up at")
    os.kill(up.pids()["gateway"], signal.SIGKILL)
    assert up.ends() == 1
    assert "gateway ended (signal 9)" in up.said()


def test_a_port_that_is_taken_is_said_before_anything_starts(run: Callable[..., Run]) -> None:
    first = run("serving.up", "--replicas", "1")
    first.until_said("Headrace is up at")
    second = run("serving.up", "--port", str(first.port))
    assert second.ends() == 1
    assert f"127.0.0.1:{first.port} is not to be had" in second.said()
    assert not second.pids()


def test_a_group_whose_supervisor_is_killed_stops_by_itself(run: Callable[..., Run]) -> None:
    up = run("serving.up")
    up.until_said("Headrace is up at")
    pids = list(up.pids().values())
    up.process.kill()
    up.until("all gone", lambda: not any(_alive(pid) for pid in pids))


def test_on_a_terminal_a_table_moves_and_the_banner_stays(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "serving.up", "--engine", "sim", "--port", str(_port())]
    environ = {**os.environ, "HEADRACE_CACHE": str(tmp_path), "TERM": "xterm", "COLUMNS": "100"}
    up = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    shown, asked = b"", False
    with contextlib.suppress(OSError):  # Linux says EIO when the other side has closed
        while data := os.read(ours, 65536):
            shown += data
            if b"Ctrl-C stops everything" in shown and not asked:
                asked = True
                up.send_signal(signal.SIGINT)
    os.close(ours)
    assert up.wait(LIMIT_S) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "starting, 0 s" in text
    assert "ready in" in text
    assert "stopping (Ctrl-C again" in text
