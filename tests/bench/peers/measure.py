"""One run: replicas with empty caches, one gateway before them, one plan sent through it.

Everything is new for every run, so no subject finds what another left. The gateway has a core of
its own; replicas and load generator share the other, or have one each where there are three. Its
CPU time is read, over its whole process tree, just before the load generator starts and just after
it has ended.
"""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from tests.bench.load import LoadFailed
from tests.bench.peers.figures import Figures, capacity_tokens_s, figures
from tests.bench.peers.load import Outcome, Plan
from tests.bench.peers.replicas import MODEL
from tests.bench.peers.subjects import Behind, Contender, command
from tests.bench.peers.trace import Ask
from tests.bench.processes import Child, Cores, cpu_s, free_ports, running
from tests.bench.subjects import Surroundings

PATIENCE_S: Final = 30.0
_READY_S: Final = 40.0
_SETTLE_S: Final = 1.5  # for connections to event sockets and first polls; part of being at rest
_HITS: Final = re.compile(rb"^vllm:prefix_cache_hits_total\{[^}]*\} (\S+)$", re.MULTILINE)
_QUERIES: Final = re.compile(rb"^vllm:prefix_cache_queries_total\{[^}]*\} (\S+)$", re.MULTILINE)


class _EventSource(msgspec.Struct, frozen=True):
    endpoint: str


@dataclass(frozen=True, slots=True)
class Site:
    """Where a run takes place."""

    folder: Path
    cache: Path
    root: Path
    cores: Cores
    replicas: int = 8
    python: Path = Path(sys.executable)
    """The interpreter that has the Headrace to be measured."""


@contextmanager
def replicas_up(site: Site) -> Iterator[Behind]:
    """Fresh replicas. Raises LoadFailed when they do not come up."""
    ports = free_ports(site.replicas)
    line = [sys.executable, "-m", "tests.bench.peers.replicas"]
    line += [part for port in ports for part in ("--port", str(port))]
    core = site.cores.upstream
    with running("replicas", line, core=core, folder=site.folder, root=site.root) as child:
        for port in ports:
            _wait_for(child, port, "/health")
        yield Behind(
            urls=tuple(f"http://127.0.0.1:{port}" for port in ports),
            event_endpoints=tuple(map(_event_endpoint, ports)),
        )


def measure_capacity(site: Site, asks: Sequence[Ask]) -> float:
    """Prompt tokens a second that the replicas prefill when all of this is thrown at them."""
    with replicas_up(site) as behind:
        ports = tuple(map(_port_of, behind.urls))
        outcomes = _send(site, Plan(ports, MODEL, tuple(asks), PATIENCE_S))
    faults = [each.fault for each in outcomes if each.fault]
    if faults:
        raise LoadFailed(f"the replicas themselves failed: {faults[0]}")
    ttfts_s = [each.ttft_s or 0.0 for each in outcomes]
    return capacity_tokens_s([ask.prompt_tokens for ask in asks], ttfts_s, site.replicas)


def measure(site: Site, contender: Contender, asks: Sequence[Ask], ideal: float) -> Figures:
    """Run the plan through one gateway. Raises LoadFailed, and Unavailable."""
    with replicas_up(site) as behind:
        ports = tuple(map(_port_of, behind.urls))
        surroundings = Surroundings(ports, site.folder, site.cache, site.root, site.python)
        subject = command(contender, behind, surroundings)
        name = contender.name.replace("/", "-")
        with running(
            name, subject.command, core=site.cores.subject, folder=site.folder, root=site.root
        ) as child:
            _wait_for(child, subject.port, subject.ready_path)
            time.sleep(_SETTLE_S)
            hits, queries = _counted(behind)
            began_s, before_s = time.monotonic(), _cpu_s(child)
            outcomes = _send(site, Plan((subject.port,), MODEL, tuple(asks), PATIENCE_S))
            cpu, wall = _cpu_s(child) - before_s, time.monotonic() - began_s
            hits_after, queries_after = _counted(behind)
            if child.process.poll() is not None:
                raise LoadFailed(f"{contender.name} ended in the middle:\n{child.log_tail()}")
    looked_up = queries_after - queries
    hit_ratio = (hits_after - hits) / looked_up if looked_up else 0.0
    return figures(outcomes, hit_ratio=hit_ratio, ideal=ideal, cpu_s=cpu, wall_s=wall)


def _send(site: Site, plan: Plan) -> list[Outcome]:
    """Run the load generator on a plan, in a process of its own. Raises LoadFailed."""
    plan_path, outcomes_path = site.folder / "plan.json", site.folder / "outcomes.json"
    plan_path.write_bytes(msgspec.json.encode(plan))
    outcomes_path.unlink(missing_ok=True)
    line = [sys.executable, "-m", "tests.bench.peers.load", str(plan_path), str(outcomes_path)]
    core = site.cores.load
    with running("load", line, core=core, folder=site.folder, root=site.root) as child:
        try:
            status = child.process.wait(plan.asks[-1].at_s + plan.patience_s + _READY_S)
        except subprocess.TimeoutExpired:
            raise LoadFailed("the load generator never ended") from None
        if status:
            raise LoadFailed(f"the load generator failed:\n{child.log_tail()}")
    return msgspec.json.decode(outcomes_path.read_bytes(), type=list[Outcome])


def _cpu_s(child: Child) -> float:
    try:
        return cpu_s(child.pids())
    except OSError as error:
        raise LoadFailed(f"{child.name} is gone:\n{child.log_tail()}") from error


def _counted(behind: Behind) -> tuple[float, float]:
    """Prompt tokens found in the replicas' caches and looked up there, all of them together."""
    pages = [_get(_port_of(url), "/metrics")[1] for url in behind.urls]
    hits = sum(float(value) for page in pages for value in _HITS.findall(page))
    queries = sum(float(value) for page in pages for value in _QUERIES.findall(page))
    return hits, queries


def _event_endpoint(port: int) -> str:
    sources = msgspec.json.decode(_get(port, "/kv_event_sources")[1], type=dict[str, _EventSource])
    return sources["0"].endpoint


def _port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def _wait_for(child: Child, port: int, path: str) -> None:
    until_s = time.monotonic() + _READY_S
    while time.monotonic() < until_s:
        if child.process.poll() is not None:
            raise LoadFailed(f"{child.name} ended at once:\n{child.log_tail()}")
        try:
            if _get(port, path)[0] == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.05)
    raise LoadFailed(f"{child.name} is not ready after {_READY_S:.0f} s:\n{child.log_tail()}")


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()
