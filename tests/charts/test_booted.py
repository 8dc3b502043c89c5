"""What the charts write is not only read: a replica and a gateway start from it, and answer."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from tests.charts.tools import CHARTS, KUBERNETES, Charts, find, read_values


def test_a_request_is_answered(charts: Charts, tmp_path: Path) -> None:
    """By the simulator of the example; only addresses and ports are this machine's own."""
    engine, health, front = free_ports(3)
    model = charts.rendered(
        "model", read_values(CHARTS / "model/ci/sim-values.yaml"), KUBERNETES[-1]
    )
    replica_file, gateway_file = tmp_path / "replica.yaml", tmp_path / "settings.yaml"
    replica_file.write_text(find(model, "ConfigMap")["data"]["replica.yaml"], encoding="utf-8")
    values = {
        "settings": {
            "tenants": {"anonymous": True},
            "fleet": {"replicas": [f"http://127.0.0.1:{engine}"], "kubernetes": {"enabled": False}},
            "scale": {"keda": {"port": None}},
        }
    }
    gateway = charts.rendered("gateway", values, KUBERNETES[-1])
    gateway_file.write_text(find(gateway, "ConfigMap")["data"]["settings.yaml"], encoding="utf-8")
    local = ["--host", "127.0.0.1", "--port"]
    ports = [*local, str(engine), "--health-port", str(health)]
    with ExitStack() as running:
        running.enter_context(headrace("replica", "--settings", str(replica_file), *ports))
        running.enter_context(
            headrace("gateway", "--settings", str(gateway_file), *local, str(front))
        )
        until_ok(f"http://127.0.0.1:{health}/ready")
        until_ok(f"http://127.0.0.1:{front}/readyz")
        body = {"model": "sim-model", "prompt": "Hello", "max_tokens": 3}
        asked = Request(
            f"http://127.0.0.1:{front}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urlopen(asked, timeout=20) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 3


@contextmanager
def headrace(*words: str) -> Iterator[None]:
    """The command, until the end of the `with`."""
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=CHARTS.parent,
    ) as child:  # fmt: skip
        try:
            yield
        finally:
            child.terminate()


def free_ports(count: int) -> list[int]:
    """Of this machine, a moment ago."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def until_ok(url: str) -> None:
    """Within half a minute, or the last failure is raised."""
    end = time.monotonic() + 30
    while True:
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, ConnectionError):
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
