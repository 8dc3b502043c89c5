"""A gateway that is killed in the middle of a batch, and whoever goes on with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from openai.types import Batch
from prometheus_client.parser import text_string_to_metric_families

from serving.sim.server import running_sim
from tests.builders import MODEL
from tests.house import a_sim, run, until

LEASE = {"GATEWAY__BATCH__LEASE_S": "1.5", "GATEWAY__FLEET__PROBE_EVERY_S": "0.2"}


@asynccontextmanager
async def a_gateway(
    folder: Path, *replicas: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, AsyncOpenAI]]:
    """A process of its own over the shared folder; killed at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--port", str(port), "--batch-folder", str(folder), "--access-log", "off"]
    for replica in replicas:
        arguments += ["--replica", replica]
    with (folder / f"{port}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "gateway", *arguments), env=LEASE, stderr=log
        )
    client = AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key="none",
        max_retries=0,
        http_client=DefaultAsyncHttpxClient(trust_env=False),
    )
    try:
        async with client, asyncio.timeout(60):
            while True:
                with contextlib.suppress(Exception):
                    if (await client.models.list()).data:
                        break
                await asyncio.sleep(0.1)
            yield process, client
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def a_file(count: int) -> bytes:
    """Lines in twenty groups that share a beginning, mixed."""
    lines = []
    for number in range(count):
        text = f"{number % 20} " * 100 + str(number)
        body = {"model": MODEL, "prompt": text, "max_tokens": 2}
        line = {"custom_id": f"{number}", "method": "POST", "url": "/v1/completions", "body": body}
        lines.append(json.dumps(line))
    return "\n".join(lines).encode()


async def made(client: AsyncOpenAI, count: int) -> Batch:
    file = await client.files.create(file=("in.jsonl", a_file(count)), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )


async def progress(client: AsyncOpenAI, batch: Batch, least: int) -> int:
    """Wait until so many lines are done."""
    while True:
        counts = (await client.batches.retrieve(batch.id)).request_counts
        if counts is not None and counts.completed >= least:
            return counts.completed
        await asyncio.sleep(0.02)


async def check(client: AsyncOpenAI, batch: Batch, count: int) -> None:
    """Its end: each custom_id exactly once, in the order of the input."""
    while batch.status != "completed":
        assert batch.status in ("validating", "in_progress", "finalizing")
        await asyncio.sleep(0.1)
        batch = await client.batches.retrieve(batch.id)
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (count, count, 0)
    assert batch.output_file_id is not None
    output = (await client.files.content(batch.output_file_id)).text.splitlines()
    assert [json.loads(line)["custom_id"] for line in output] == [str(n) for n in range(count)]


def test_a_batch_of_a_gateway_that_is_killed_goes_on_where_it_stood(tmp_path: Path) -> None:
    async def law() -> None:
        async with running_sim(a_sim()) as one, running_sim(a_sim()) as two:
            urls = one.url, two.url
            async with a_gateway(tmp_path, *urls) as (process, client):
                batch = await made(client, 2000)
                done = await progress(client, batch, 500)
                process.kill()
                await process.wait()
            assert done < 2000
            await until(lambda: not one.engine.running and not two.engine.running)
            async with a_gateway(tmp_path, *urls) as (_, client):
                await check(client, batch, 2000)
            served = await requests_of(one.url) + await requests_of(two.url)
            assert 2000 <= served <= 2000 + 100 + 2 * 32  # not written down, or still in flight

    run(law(), within_s=60)


async def requests_of(url: str) -> float:
    """How many requests a replica has served to the end."""
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"{url}/metrics")).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "vllm:request_success_total"
    )


def test_gateways_that_share_a_store_share_the_work_of_one_that_dies(tmp_path: Path) -> None:
    async def law() -> None:
        async with (
            running_sim(a_sim()) as sim,
            a_gateway(tmp_path, sim.url) as (first, client),
            a_gateway(tmp_path, sim.url) as (_, another),
        ):
            batches = [await made(client, 150) for _ in range(6)]
            await progress(client, batches[0], 20)
            first.kill()
            await first.wait()
            for batch in batches:
                await check(another, batch, 150)

    run(law(), within_s=60)
