"""`headrace replica` as a process, with the simulator as its engine: how each trouble ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

LIMIT_S = 30.0
MODEL = "tiny"


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Replica:
    """One `headrace replica` of ours."""

    def __init__(self, folder: Path, keys: dict[str, Any]) -> None:
        self.port, self.health_port = _port(), _port()
        settings = {
            "model": MODEL,
            "engine": "sim",
            "port": self.port,
            "health_port": self.health_port,
            **keys,
        }
        self.settings = folder / "replica.yaml"
        self.settings.write_text(json.dumps(settings))
        self.output = folder / "output"
        with self.output.open("w") as sink:
            self.process = subprocess.Popen(
                [*COMMAND, "--settings", str(self.settings)], stdout=sink, stderr=sink
            )
        self.engine = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False)
        self.health = httpx.Client(base_url=f"http://127.0.0.1:{self.health_port}", trust_env=False)

    def said(self) -> list[str]:
        """The messages of its log, whoever wrote them."""
        lines = self.output.read_text().splitlines()
        return [json.loads(line)["message"] if line[:1] == "{" else line for line in lines]

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < deadline, f"not {what}: {self.said()}"
            time.sleep(0.02)

    def until_said(self, text: str) -> None:
        self.until(f"said {text!r}", lambda: any(text in line for line in self.said()))

    def until_ready(self) -> None:
        self.until("ready", self.is_ready)

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self.health.get("/ready").status_code == 200
        return False

    def engine_pid(self) -> int:
        pid = self.health.get("/status").json()["pid"]
        assert isinstance(pid, int)
        return pid

    def complete(self, tokens: int, **more: Any) -> httpx.Response:
        body = {"model": MODEL, "prompt": "Hi", "max_tokens": tokens, "ignore_eos": True, **more}
        return self.engine.post("/v1/completions", json=body, timeout=LIMIT_S)

    def fault(self, table: dict[str, Any]) -> None:
        with contextlib.suppress(httpx.HTTPError):  # a crash answers nobody
            self.engine.post("/sim/faults", json=table)

    def ends(self) -> int:
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        self.process.kill()
        self.process.wait()
        self.engine.close()
        self.health.close()


COMMAND = (sys.executable, "-m", "serving.replica.command")


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Callable[..., Replica]]:
    """Starts replicas; none outlives the test."""
    started: list[Replica] = []

    def start(**keys: Any) -> Replica:
        started.append(Replica(tmp_path, keys))
        return started[-1]

    yield start
    for each in started:
        each.close()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_replica_is_ready_once_a_warm_up_request_was_answered_and_stops_when_asked(
    replica: Callable[..., Replica],
) -> None:
    one = replica()
    one.until_ready()
    done = [line for line in one.engine.get("/metrics").text.splitlines() if "success" in line]
    assert any(line.endswith(" 1.0") for line in done), "the warm-up request"
    assert one.health.get("/live").status_code == 200
    assert one.health.get("/nothing").status_code == 404
    assert one.health.post("/ready").status_code == 405
    pid = one.engine_pid()
    one.process.terminate()
    assert one.ends() == 0
    assert not _alive(pid)


def test_it_is_alive_but_not_ready_while_the_engine_loads(replica: Callable[..., Replica]) -> None:
    one = replica(args=["--load-s", "3600"])
    one.until("alive", lambda: "engine: sim, as asked" in one.said() and _answers(one, "/live"))
    assert one.health.get("/ready").status_code == 503
    assert one.health.get("/status").json()["standing"] == "starting"


def _answers(one: Replica, path: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return one.health.get(path).status_code == 200
    return False


@pytest.mark.parametrize(
    "said", [b"", b"GET", b"\xff\x00 \r\n\r\n", b"\r\n\r\n", b"GET /live\r\n\r\n", b"x" * 20_000]
)
def test_what_is_no_request_does_the_health_port_no_harm(
    replica: Callable[..., Replica], said: bytes
) -> None:
    one = replica()
    one.until("alive", lambda: _answers(one, "/live"))
    with socket.create_connection(("127.0.0.1", one.health_port), timeout=LIMIT_S) as peer:
        peer.sendall(said)
        with contextlib.suppress(OSError):  # it may not wait for the end of so long a head
            peer.shutdown(socket.SHUT_WR)
            assert peer.recv(100)[:12] in (b"", b"HTTP/1.1 404")
    assert _answers(one, "/live")
    one.process.terminate()
    assert one.ends() == 0
    assert "Traceback" not in one.output.read_text()


def test_every_line_of_its_log_is_json(replica: Callable[..., Replica]) -> None:
    one = replica()
    one.until_ready()
    lines = [json.loads(line) for line in one.output.read_text().splitlines()]
    assert {line["source"] for line in lines} == {"engine", "headrace"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"parallelism": {"tensor": 0}}, "$.parallelism.tensor"),
        ({"engine": "vllm", "gpus": {"count": 64}}, "the plan counts on 64 GPUs here"),
        ({"engine": "vllm-cpu", "parallelism": {"tensor": 4096}}, "4096 ranks need a core each"),
        ({"args": ["--tensor-parallel-size", "none"]}, "not a degree of parallelism"),
    ],
)
def test_bad_settings_end_it_at_once_with_one_line_and_2(
    replica: Callable[..., Replica], keys: dict[str, Any], said: str
) -> None:
    one = replica(**keys)
    assert one.ends() == 2
    assert said in one.said()[-1]
    assert sum(line.startswith("headrace replica: ") for line in one.said()) == 1


def test_what_the_engine_does_not_understand_ends_it_with_the_engines_code(
    replica: Callable[..., Replica],
) -> None:
    one = replica(args=["--no-such-option"])
    assert one.ends() == 2
    assert any("unrecognized arguments: --no-such-option" in line for line in one.said())


def test_an_engine_that_dies_is_started_again_and_in_the_end_the_replica_fails(
    replica: Callable[..., Replica],
) -> None:
    one = replica(supervision={"restarts": 2, "pause_s": 0.05})
    one.until_ready()
    for count in (1, 2):
        one.fault({"crash": "exit"})
        one.until_said(f"({count} of 2)")
        one.until("back", lambda: one.is_ready() and _answers(one, "/live"))
    os.kill(one.engine_pid(), signal.SIGKILL)
    assert one.ends() == 128 + signal.SIGKILL
    one.until_said("the engine ended (signal 9), for good")


def test_an_engine_that_ends_well_unasked_is_a_failure_too(
    replica: Callable[..., Replica],
) -> None:
    one = replica(supervision={"restarts": 0})
    one.until_ready()
    os.kill(one.engine_pid(), signal.SIGTERM)
    assert one.ends() == 1


@pytest.mark.parametrize("how", ["stopped", "no tokens"])
def test_an_engine_that_hangs_is_ended_and_started_again(
    replica: Callable[..., Replica], how: str
) -> None:
    one = replica(supervision={"hang_s": 1.0, "pause_s": 0.05})
    one.until_ready()
    pid = one.engine_pid()
    if how == "stopped":
        os.kill(pid, signal.SIGSTOP)
    else:
        one.fault({"slow": 1e9})
        with pytest.raises(httpx.ReadTimeout):
            one.engine.post("/v1/completions", json={"model": MODEL, "prompt": "Hi"}, timeout=0.2)
        asked = threading.Thread(target=_asks_and_is_cut_off, args=(one,))
        asked.start()
    one.until_said("the engine hangs: no life for 1 s; ending it")
    one.until_said("the engine ended (signal 9): starting it again in 0.05 s (1 of 3)")
    one.until("back", lambda: one.is_ready() and one.engine_pid() != pid)
    assert not _alive(pid)
    assert one.complete(1).status_code == 200


def _asks_and_is_cut_off(one: Replica) -> None:
    with contextlib.suppress(httpx.HTTPError):
        one.complete(4)


def test_an_engine_that_never_becomes_ready_is_ended(replica: Callable[..., Replica]) -> None:
    one = replica(args=["--load-s", "3600"], supervision={"start_s": 1.5})
    assert one.ends() == 128 + signal.SIGKILL
    one.until_said("the engine hangs: not ready within 1.5 s; ending it")


def test_a_model_that_answers_nothing_never_makes_it_ready(
    replica: Callable[..., Replica],
) -> None:
    one = replica(served_name="another", args=["--model", MODEL, "--speed", "1e-9"],
                  warm_up={"timeout_s": 0.3}, supervision={"start_s": 2.5})  # fmt: skip
    one.until_said("not warmed up: /v1/completions was not answered within 0.3 s")
    assert not one.is_ready()
    assert one.ends() == 128 + signal.SIGKILL


SLOW = {"args": ["--profile", "cpu-tiny"]}  # some 30 tokens a second


def _stream(one: Replica, tokens: int, heard: list[str]) -> None:
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": tokens, "ignore_eos": True}
    with one.engine.stream(
        "POST", "/v1/completions", json={**body, "stream": True}, timeout=LIMIT_S
    ) as reply:
        heard.extend(line for line in reply.iter_lines() if line)


@pytest.mark.parametrize("first", ["drain", "SIGTERM"])
def test_under_load_running_requests_end_well_and_then_the_replica_does(
    replica: Callable[..., Replica], first: str
) -> None:
    one = replica(drain_s=20, settle_s=0.3, **SLOW)
    one.until_ready()
    heard: list[str] = []
    asking = threading.Thread(target=_stream, args=(one, 60, heard))
    asking.start()
    one.until("running", lambda: "requests_running" in _busy(one))
    if first == "drain":
        drained = subprocess.run(
            [*COMMAND, "drain", "--settings", str(one.settings)], check=True, stdout=subprocess.PIPE
        )
        assert json.loads(drained.stdout) == {"idle": True}
        assert not asking.is_alive() or heard, "drained only after the stream"
        assert not one.is_ready()
        assert _answers(one, "/live")
    one.process.terminate()
    assert one.ends() == 0
    asking.join()
    assert heard[-1] == "data: [DONE]"
    assert len(heard) > 60


def _busy(one: Replica) -> str:
    page = one.engine.get("/metrics").text
    return "".join(
        line for line in page.splitlines() if "requests_running" in line and "1.0" in line
    )


def test_a_drain_ends_when_its_time_is_up(replica: Callable[..., Replica]) -> None:
    one = replica(drain_s=1, settle_s=0.2, **SLOW)
    one.until_ready()
    asking = threading.Thread(target=_asks_for_long, args=(one,))
    asking.start()
    one.until("running", lambda: bool(_busy(one)))
    assert one.health.post("/drain", timeout=LIMIT_S).json() == {"idle": False}
    one.process.terminate()
    assert one.ends() in (0, 128 + signal.SIGKILL)
    asking.join()


def _asks_for_long(one: Replica) -> None:
    with contextlib.suppress(httpx.HTTPError):
        one.complete(1900)


def test_nobody_to_drain_is_said(tmp_path: Path) -> None:
    path = tmp_path / "replica.yaml"
    path.write_text(json.dumps({"model": MODEL, "health_port": _port()}))
    run = subprocess.run(
        [*COMMAND, "drain", "--settings", str(path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "no replica answers" in run.stderr


def test_a_health_port_that_is_taken_is_said(replica: Callable[..., Replica]) -> None:
    one = replica()
    one.until_ready()
    run = subprocess.run(
        [*COMMAND, "--engine", "sim", "--port", str(_port()), "--health-port",
         str(one.health_port)], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert "cannot start" in run.stderr
