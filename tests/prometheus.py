"""A real Prometheus for tests, where its binary is installed."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

EVERY = "200ms"
"""How often it scrapes."""


def binary(name: str) -> str:
    """`prometheus` or `promtool`. Skips the test where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed here (Debian: apt-get install prometheus)")
    return found


class Prometheus:
    """One that runs."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def query(self, promql: str) -> list[float]:
        """The values of an instant query, one for each series."""
        # Not verified, for there is no TLS: to read the machine's certificates takes a while.
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            reply = await client.get(f"{self.url}/api/v1/query", params={"query": promql})
        assert reply.status_code == 200, reply.text
        return [float(sample["value"][1]) for sample in reply.json()["data"]["result"]]


@contextmanager
def running_prometheus(
    folder: Path, targets: Sequence[str], labels: dict[str, str], rules: Sequence[Path]
) -> Iterator[Prometheus]:
    """It scrapes `targets`, host:port, and puts `labels` on what they say."""
    config: dict[str, Any] = {
        "global": {"scrape_interval": EVERY, "scrape_timeout": EVERY},
        "rule_files": [str(_hurried(path, folder)) for path in rules],
        "scrape_configs": [
            {"job_name": "gateways", "static_configs": [{"targets": [*targets], "labels": labels}]}
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        binary("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={where}",
    ]
    with (folder / "prometheus.log").open("wb") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=sink)
    try:
        _until_it_is_ready(f"http://{where}/-/ready", server)
        yield Prometheus(f"http://{where}")
    finally:
        server.terminate()
        server.wait(10)


def _hurried(rules: Path, folder: Path) -> Path:
    """The same rules, evaluated as often as is scraped."""
    document = yaml.safe_load(rules.read_text())
    for group in document["groups"]:
        group["interval"] = EVERY
    copy = folder / rules.name
    copy.write_text(yaml.safe_dump(document))
    return copy


def _until_it_is_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        assert server.poll() is None, "Prometheus has ended"
        assert time.monotonic() < deadline, "Prometheus is not ready"
        time.sleep(0.05)
