"""What a batch costs interactive requests: latency with a batch running, and without, in pairs.

    python -m tests.bench.batches --requests 600 --rate 8 --lines 10000

Simulated replicas (processes of their own) with a GPU's proportions, one gateway, and one load: the
same Poisson arrivals of streamed chats with and without a batch beside them, turn by turn. Figures
are TTFT and end-to-end latency as the client sees them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import httpx

PROFILE: Final = {
    "name": "gpu-like",
    "basis": "assumed",
    "note": "25 000 prompt tokens a second, 10 ms a decode step.",
    "timing": {
        "base_s": 0.001,
        "prefill_token_s": 4e-5,
        "prefill_token_pair_s": 0.0,
        "decode_s": 0.009,
        "decode_sequence_s": 5e-5,
        "decode_context_token_s": 2e-8,
    },
    "engine": {
        "block_size": 16,
        "blocks": 8192,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 2048,
        "max_model_len": 16384,
    },
}
PROMPT_WORDS: Final = 400
OUTPUT_TOKENS: Final = 60


@dataclass(frozen=True, slots=True)
class Run:
    """What one run's clients saw, in seconds, sorted."""

    ttft_s: list[float]
    total_s: list[float]


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def a_process(http: httpx.AsyncClient, path: str, *words: str) -> AsyncIterator[str]:
    """One `headrace` command that listens, once it answers 200 at `path`; gives its URL."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *words, "--port", str(port)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(url + path)).status_code == 200:
                        break
                await asyncio.sleep(0.1)
        yield url
    finally:
        process.kill()
        await process.wait()


def a_prompt(rng: random.Random) -> str:
    """One that shares nothing with any other."""
    return " ".join(f"{rng.getrandbits(24):x}" for _ in range(PROMPT_WORDS))


def a_body(rng: random.Random, *, stream: bool) -> dict[str, object]:
    """A chat of a fixed length."""
    return {
        "model": "sim",
        "messages": [{"role": "user", "content": a_prompt(rng)}],
        "max_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
        "stream": stream,
    }


async def interactive(
    http: httpx.AsyncClient, url: str, args: argparse.Namespace, seed: int
) -> Run:
    """Poisson arrivals, whatever the replies do."""
    rng = random.Random(seed)
    run = Run([], [])

    async def one(body: dict[str, object]) -> None:
        began = perf_counter()
        async with http.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
            assert reply.status_code == 200, reply.status_code
            first = None
            async for _ in reply.aiter_raw():
                first = first or perf_counter()
        assert first is not None
        run.ttft_s.append(first - began)
        run.total_s.append(perf_counter() - began)

    async with asyncio.TaskGroup() as tasks:
        at = perf_counter()
        for _ in range(args.requests):
            at += rng.expovariate(args.rate)
            await asyncio.sleep(max(0.0, at - perf_counter()))
            tasks.create_task(one(a_body(rng, stream=True)))
    run.ttft_s.sort()
    run.total_s.sort()
    return run


async def a_batch(http: httpx.AsyncClient, url: str, lines: int) -> str:
    """Begin a batch; gives its id once it is under way."""
    rng = random.Random(7)
    content = "\n".join(
        json.dumps(
            {
                "custom_id": f"{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": a_body(rng, stream=False),
            }
        )
        for number in range(lines)
    )
    form = {"purpose": "batch"}
    made = await http.post(f"{url}/v1/files", data=form, files={"file": ("in", content)})
    asked = {
        "input_file_id": made.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch_id = str((await http.post(f"{url}/v1/batches", json=asked)).json()["id"])
    while (await done(http, url, batch_id))[1] < 20:
        await asyncio.sleep(0.2)
    return batch_id


async def done(http: httpx.AsyncClient, url: str, batch_id: str) -> tuple[str, int]:
    """(status, lines completed) of a batch."""
    batch = (await http.get(f"{url}/v1/batches/{batch_id}")).json()
    return batch["status"], batch["request_counts"]["completed"]


def at(values: list[float], share: float) -> float:
    """The value below which `share` of them are, in ms."""
    return values[min(len(values) - 1, int(share * len(values)))] * 1000


async def measure(args: argparse.Namespace, folder: str) -> None:
    """Print a table: one line a run."""
    profile = f"{folder}/profile.json"
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            httpx.AsyncClient(trust_env=False, timeout=None, limits=httpx.Limits())
        )
        words = ["gateway", "--batch-folder", folder, "--access-log", "off"]
        words += ["--settings", args.settings] if args.settings else []
        for _ in range(args.replicas):
            sim = a_process(http, "/health", "sim", "--profile", profile)
            words += ["--replica", await stack.enter_async_context(sim)]
        url = await stack.enter_async_context(a_process(http, "/readyz", *words))
        await interactive(http, url, args, 0)  # warms up
        print("run      ttft p50  p90  p99   total p50  p90  p99 (ms)   lines/s")
        for turn in range(1, args.turns + 1):
            alone = await interactive(http, url, args, turn)
            show("alone", alone, 0.0)
            batch_id = await a_batch(http, url, args.lines)
            before, began = (await done(http, url, batch_id))[1], perf_counter()
            beside = await interactive(http, url, args, turn)
            status, after = await done(http, url, batch_id)
            show("beside", beside, (after - before) / (perf_counter() - began))
            assert status == "in_progress", "the batch was too short"
            await http.post(f"{url}/v1/batches/{batch_id}/cancel")
            while (await done(http, url, batch_id))[0] != "cancelled":
                await asyncio.sleep(0.2)
            change = [at(beside.ttft_s, 0.99) / at(alone.ttft_s, 0.99) - 1]
            change.append(at(beside.total_s, 0.99) / at(alone.total_s, 0.99) - 1)
            print(f"p99 moved: ttft {change[0]:+.1%}, total {change[1]:+.1%}", flush=True)


def show(name: str, run: Run, lines_per_s: float) -> None:
    """One line of the table."""
    figures = [at(values, q) for values in (run.ttft_s, run.total_s) for q in (0.5, 0.9, 0.99)]
    print(f"{name:8}", *(f"{figure:8.1f}" for figure in figures), f"{lines_per_s:8.1f}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="what a batch costs interactive requests")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--requests", type=int, default=600, help="a run")
    parser.add_argument("--rate", type=float, default=8.0, help="a second")
    parser.add_argument("--lines", type=int, default=10_000, help="of the batch")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--settings", help="of the gateway")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "profile.json").write_text(json.dumps(PROFILE))
        asyncio.run(measure(args, folder))


if __name__ == "__main__":
    main()
