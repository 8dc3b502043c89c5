"""Real processes: `headrace up` with two vLLM replicas of a chat model and one of embeddings."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import httpx
import pytest
from openai import DefaultHttpxClient, OpenAI
from prometheus_client.parser import text_string_to_metric_families

from serving.engine_args import EngineKind
from serving.local_models import CHAT_MODEL, EMBEDDING_MODEL
from serving.machine import choose_engine, look

START_LIMIT_S = 1200.0
"""The first start on a machine installs the engine."""

LOG_END_CHARS: Final = 4000

CHAT = CHAT_MODEL.name
EMBEDDINGS = EMBEDDING_MODEL.name


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """End-to-end tests come last, so that engines do not take the cores from other tests."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(START_LIMIT_S + 300))
    items.sort(key=lambda item: item.get_closest_marker("e2e") is not None)


@runtime_checkable
class Logging(Protocol):
    """A fixture's value whose processes write to files."""

    def logs(self) -> list[Path]:
        """Those files."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure, the ends of the logs of the processes that the test had asked for."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Logging):
                report.sections += [(str(log), _end_of(log)) for log in value.logs()]
    return report


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-LOG_END_CHARS:]


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the stack, as its supervisor announced it."""

    url: str
    pid: int

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry `labels`, over its models."""
        reply = httpx.get(f"{self.url}/metrics", trust_env=False)
        return sum(
            sample.value
            for family in text_string_to_metric_families(reply.text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@dataclass(frozen=True, slots=True)
class Stack:
    """A running `headrace up`."""

    url: str
    output: Path

    def logs(self) -> list[Path]:
        """What a test that fails shows the end of."""
        return [self.output]

    def processes(self) -> dict[str, Process]:
        """Everything that is up by now; a replica that came back shows as it is now."""
        said = re.findall(r"(\S+): ready at (\S+), pid (\d+)", self.output.read_text())
        return {name: Process(url, int(pid)) for name, url, pid in said}

    @property
    def chat_replicas(self) -> list[Process]:
        """The two replicas of the chat model."""
        known = self.processes()
        return [known["replica-1"], known["replica-2"]]

    def openai(self) -> OpenAI:
        """The official client, pointed at the gateway; it must not hide failures by retrying."""
        http = DefaultHttpxClient(trust_env=False)
        return OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60.0, http_client=http
        )


def until(what: str, holds: Callable[[], bool], limit_s: float, every_s: float = 0.02) -> float:
    """Wait for `holds()`; returns the seconds it took. Fails, saying `what`, after `limit_s`."""
    start = time.monotonic()
    while not holds():
        waited = time.monotonic() - start
        assert waited < limit_s, f"not within {limit_s} s: {what}"
        time.sleep(every_s)
    return time.monotonic() - start


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_well(url: str, path: str) -> bool:
    try:
        return httpx.get(f"{url}{path}", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def another_gateway(
    stack: Stack, log: Path, *flags: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A gateway of our own over the stack's chat replicas."""
    port = free_port()
    command = [sys.executable, "-m", "gateway", "gateway", "--port", str(port), *flags]
    for replica in stack.chat_replicas:
        command += ["--replica", replica.url]
    with log.open("wb") as sink:
        gateway = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        until("the second gateway is ready", lambda: is_well(url, "/readyz"), 30.0)
        yield gateway, url
    finally:
        if gateway.poll() is None:
            gateway.kill()
        gateway.wait(10)


def group_is_gone(pid: int) -> bool:
    """True if no process of the group that `pid` led is left."""
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for all tests; at the end nothing of it may be left."""
    choice = choose_engine(look(), None)
    if choice.kind is EngineKind.SIM:
        pytest.skip(f"no real engine here: {choice.reason}")
    output = tmp_path_factory.mktemp("stack") / "up.log"
    port = free_port()
    command = [sys.executable, "-m", "serving.up", "--embeddings", "--port", str(port)]
    with output.open("w") as sink:
        up = subprocess.Popen(
            [*command, "--kv-cache-mib", "256", "--engine-arg=--block-size=32"],
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    stack = Stack(f"http://127.0.0.1:{port}", output)
    try:

        def started() -> bool:
            return "Headrace is up" in output.read_text() or up.poll() is not None

        until("headrace up is up", started, START_LIMIT_S, every_s=0.2)
        assert up.poll() is None, output.read_text()
        yield stack
        groups = [process.pid for process in stack.processes().values()]
        up.send_signal(signal.SIGTERM)
        assert up.wait(60) == 0, output.read_text()
        assert all(group_is_gone(pid) for pid in groups), "headrace up left processes behind"
    finally:
        if up.poll() is None:
            up.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                up.wait(60)
        up.kill()


@pytest.fixture
def client(stack: Stack) -> Iterator[OpenAI]:
    """The official client."""
    with stack.openai() as client:
        yield client


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    """Plain HTTP to the gateway."""
    with httpx.Client(base_url=stack.url, trust_env=False, timeout=60.0) as client:
        yield client
