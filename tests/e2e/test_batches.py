"""The Batch API by the official client, on real replicas; a gateway is killed in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from openai import DefaultHttpxClient, OpenAI
from openai.types import Batch

from tests.e2e.conftest import CHAT, EMBEDDINGS, Stack, free_port, until

LINES = 60


@contextmanager
def a_gateway(stack: Stack, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], OpenAI]]:
    """A gateway of our own over the stack's chat replicas, that we may kill."""
    port = free_port()
    command = [sys.executable, "-m", "gateway", "gateway", "--port", str(port)]
    for replica in stack.chat_replicas:
        command += ["--replica", replica.url]
    command += ["--batch-folder", str(folder / "kept")]
    environ = {**os.environ, "GATEWAY__BATCH__LEASE_S": "2"}
    with (folder / f"gateway-{port}.log").open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env=environ)
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
        return False

    try:
        until("the gateway is ready", is_ready, 30.0)
        http = DefaultHttpxClient(trust_env=False)
        with OpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http
        ) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


def a_batch(client: OpenAI, url: str, bodies: list[dict[str, Any]]) -> Batch:
    lines = [
        json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body})
        for number, body in enumerate(bodies)
    ]
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    endpoint: Any = url
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"test": "e2e"}
    )


def completed(client: OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    return counts.completed if counts is not None else 0


def answers(client: OpenAI, batch_id: str) -> list[dict[str, Any]]:
    """Wait for the end; the lines of the output file, when there is no other."""

    def has_ended() -> bool:
        return client.batches.retrieve(batch_id).status in ("completed", "failed", "expired")

    until("the batch ends", has_ended, 120.0, every_s=0.2)
    batch = client.batches.retrieve(batch_id)
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert batch.output_file_id is not None
    content = client.files.content(batch.output_file_id).text
    return [json.loads(line) for line in content.splitlines()]


def test_a_batch_outlives_the_gateway_that_is_killed_under_it(stack: Stack, tmp_path: Path) -> None:
    bodies = [
        {
            "model": CHAT,
            "messages": [{"role": "user", "content": f"What is {number} plus one?"}],
            "max_tokens": 12,
            "temperature": 0,
        }
        for number in range(LINES)
    ]
    with a_gateway(stack, tmp_path) as (process, client):
        batch = a_batch(client, "/v1/chat/completions", bodies)
        until("some lines are done", lambda: completed(client, batch.id) > 5, 60.0, every_s=0.05)
        process.kill()
        process.wait()
    with a_gateway(stack, tmp_path) as (_, client):
        done = completed(client, batch.id)
        assert 5 < done < LINES, "it was killed too late to show anything"
        output = answers(client, batch.id)
        assert [line["custom_id"] for line in output] == [f"line-{n}" for n in range(LINES)]
        for line in output:
            assert line["response"]["status_code"] == 200
            body = line["response"]["body"]
            assert body["choices"][0]["message"]["content"]
            assert 0 < body["usage"]["completion_tokens"] <= 12


def test_a_batch_of_embeddings_has_the_vectors_that_single_requests_have(client: OpenAI) -> None:
    texts = [f"a river, number {number}" for number in range(8)]
    batch = a_batch(
        client, "/v1/embeddings", [{"model": EMBEDDINGS, "input": text} for text in texts]
    )
    output = answers(client, batch.id)
    single = client.embeddings.create(model=EMBEDDINGS, input=texts[3], encoding_format="float")
    batched = output[3]["response"]["body"]["data"][0]["embedding"]
    assert max(abs(a - b) for a, b in zip(batched, single.data[0].embedding, strict=True)) < 1e-3
