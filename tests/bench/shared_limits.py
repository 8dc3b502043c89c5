"""`python -m tests.bench.shared_limits`: are a tenant's limits kept by several gateways together?

Gateways that tell each other, each a process, before one simulated replica; a tenant with one limit
asks all of them at once, far more than it may. What it was let have is counted at the client: over
a limit by the minute, requests or tokens against what a full bucket and its inflow come to in that
time; of a limit at once, the most streams that were open at any moment. Prints what was had over
what was allowed, for each limit, round by round; `--record` keeps a dated copy under
docs/benchmarks.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import orjson
import yaml

from tests.bench.figures import Spread
from tests.bench.keep import ROOT, keep
from tests.bench.measure import wait_ready
from tests.bench.processes import free_ports, running
from tests.keyed import ACME, a_document

LIMITS: Final[Mapping[str, int]] = {
    "requests_per_minute": 240,
    "tokens_per_minute": 12_000,
    "max_concurrent": 16,
}
TASKS: Final = 16
"""Clients of each gateway."""
OUTPUT_TOKENS: Final = 40
REST_S: Final = 0.02
"""After a refusal. Its `Retry-After` is not waited for."""


@dataclass(slots=True)
class Had:
    """What the tenant was let have so far."""

    requests: int = 0
    refused: int = 0
    tokens: int = 0
    open: int = 0
    most_open: int = 0

    def share(self, limit: str, took_s: float) -> float:
        """Of what was allowed in that time."""
        allowed = LIMITS[limit]
        if limit == "max_concurrent":
            return self.most_open / allowed
        had = self.requests if limit == "requests_per_minute" else self.tokens
        return had / (allowed * (1 + took_s / 60))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.shared_limits", description=__doc__
    )
    parser.add_argument("--gateways", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each limit in each round")
    parser.add_argument("--record", action="store_true", help="keep a copy in docs/benchmarks")
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(words)
    began_s, found = time.monotonic(), dict[str, list[float]]()
    for number in range(args.rounds):
        for limit in LIMITS:
            had, took_s = measure(limit, args.gateways, args.seconds)
            found.setdefault(limit, []).append(had.share(limit, took_s))
            print(f"round {number + 1}, {limit}: {found[limit][-1]:.3f} of it, {had}", flush=True)
    print(text := table(found))
    if args.record:
        set_up = {
            "command": " ".join(["python -m tests.bench.shared_limits", *words]),
            "gateways": args.gateways,
            "seconds": args.seconds,
            "took_s": round(time.monotonic() - began_s),
        }
        title = "Limits of several gateways"
        print(keep("shared-limits", title, __doc__ or "", text, found, set_up))
    return 0


def measure(limit: str, gateways: int, lasting_s: float) -> tuple[Had, float]:
    """Start everything, ask for so long, and end it: what was had, and in what time."""
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        tenants = folder / "tenants.yaml"
        tenants.write_text(a_document({limit: LIMITS[limit]}))
        (replica,) = free_ports(1)
        line = (sys.executable, "-m", "gateway", "sim", "--port", str(replica))
        child = stack.enter_context(
            running("replica", line, core=cores[-1], folder=folder, root=ROOT)
        )
        wait_ready(child, replica, "/health")
        ports, links = free_ports(gateways), free_ports(gateways)
        for at, port in enumerate(ports):
            settings = {
                "accept": {"port": port},
                "fleet": {"replicas": [f"http://127.0.0.1:{replica}"]},
                "tenants": {"path": str(tenants)},
                "peers": {
                    "host": "127.0.0.1",
                    "port": links[at],
                    "addresses": [f"127.0.0.1:{each}" for each in links if each != links[at]],
                },
            }
            file = folder / f"gateway-{at}.yaml"
            file.write_text(yaml.safe_dump(settings))
            line = (sys.executable, "-m", "gateway", "gateway", "--settings", str(file))
            name = f"gateway-{at}"
            core = cores[at % len(cores)]
            child = stack.enter_context(running(name, line, core=core, folder=folder, root=ROOT))
            wait_ready(child, port, "/readyz")
        time.sleep(1.0)  # they have heard each other by then
        return asyncio.run(_ask_all(ports, lasting_s))


async def _ask_all(ports: Sequence[int], lasting_s: float) -> tuple[Had, float]:
    had, began_s = Had(), time.monotonic()
    until_s = began_s + lasting_s
    most = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=most, timeout=30.0, trust_env=False) as client:
        await asyncio.gather(
            *[_ask(client, port, had, until_s) for port in ports for _ in range(TASKS)]
        )
    return had, lasting_s


async def _ask(client: httpx.AsyncClient, port: int, had: Had, until_s: float) -> None:
    """One after the other; who was let in before the end is counted whole."""
    body = {
        "model": "sim",
        "messages": [{"role": "user", "content": "How much of it may I have?"}],
        "max_tokens": OUTPUT_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    keys = {"authorization": f"Bearer {ACME.key}"}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    while time.monotonic() < until_s:
        async with client.stream("POST", url, json=body, headers=keys) as response:
            if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
                had.refused += 1
                await response.aread()
                await asyncio.sleep(REST_S)
                continue
            response.raise_for_status()
            had.requests += 1
            had.open += 1
            had.most_open = max(had.most_open, had.open)
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    usage = orjson.loads(line.removeprefix("data: ")).get("usage")
                    had.tokens += usage["total_tokens"] if usage else 0
            had.open -= 1


def table(found: Mapping[str, Sequence[float]]) -> str:
    """Medians over the rounds, range in brackets."""
    lines = ["| limit | | had, of what was allowed |", "|---|---:|---:|"]
    for limit, shares in found.items():
        spread = Spread.of(shares)
        lines.append(
            f"| {limit} | {LIMITS[limit]} "
            f"| {spread.median:.3f} ({spread.low:.3f}-{spread.high:.3f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
