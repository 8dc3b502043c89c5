"""What the replicas see: requests on both, bodies unchanged, clients that leave."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.conftest import CHAT, Process, Stack, until

RUNNING = "vllm:num_requests_running"
DONE = "vllm:request_success_total"
MADE = "vllm:generation_tokens_total"


def _chat(text: str, **more: object) -> dict[str, object]:
    messages = [{"role": "user", "content": text}]
    return {"model": CHAT, "messages": messages, "temperature": 0, "max_tokens": 24, **more}


def test_requests_are_seen_on_both_replicas(stack: Stack, http: httpx.Client) -> None:
    before = [replica.metric(DONE) for replica in stack.chat_replicas]

    def ask(number: int) -> int:
        return http.post("/v1/chat/completions", json=_chat(f"Say {number}.")).status_code

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == [200] * 8
    after = [replica.metric(DONE) for replica in stack.chat_replicas]
    served = [now - then for now, then in zip(after, before, strict=True)]
    assert sum(served) == 8
    assert min(served) >= 2, f"least work first spreads eight at once: {served}"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
def test_a_reply_through_the_gateway_is_the_replicas_reply_byte_for_byte(
    path: str, stack: Stack, http: httpx.Client
) -> None:
    body = _chat("What is water?")
    if path != "/v1/chat/completions":
        body = {"model": CHAT, "prompt": "Water is", "temperature": 0, "max_tokens": 24}
    ours = http.post(path, json=body)
    direct = httpx.post(f"{stack.chat_replicas[0].url}{path}", json=body, trust_env=False)
    assert ours.status_code == direct.status_code == 200
    assert _same(ours.content) == _same(direct.content)
    assert ours.headers["content-type"] == direct.headers["content-type"]


def test_a_stream_through_the_gateway_is_the_replicas_stream(
    stack: Stack, http: httpx.Client
) -> None:
    body = _chat("What is water?", stream=True, stream_options={"include_usage": True})
    ours = http.post("/v1/chat/completions", json=body)
    url = f"{stack.chat_replicas[0].url}/v1/chat/completions"
    direct = httpx.post(url, json=body, trust_env=False, timeout=60.0)
    assert ours.text.endswith("data: [DONE]\n\n")
    assert _told(ours.text) == _told(direct.text)


def _same(body: bytes) -> bytes:
    """A reply without what differs from call to call: ids, the time, and what was cached."""
    body = re.sub(rb'"(created_cache|cached)_tokens":\d+', b'"cached":0', body)
    body = re.sub(rb'"id":"[^"]*"', b'"id":"*"', body)
    return re.sub(rb'"created":\d+', b'"created":0', body)


def _told(stream: str) -> tuple[str, object]:
    """A stream's text and usage; how tokens fall into events depends on the engine's load."""
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    usage = {**events[-1]["usage"], "prompt_tokens_details": None}  # the second finds a cache
    return "".join(delta.get("content") or "" for delta in deltas), usage


def _busy(replicas: list[Process]) -> float:
    return sum(replica.metric(RUNNING) for replica in replicas)


def test_a_client_that_walks_away_mid_stream_frees_its_replica(
    stack: Stack, http: httpx.Client, record_property: Callable[[str, object], None]
) -> None:
    replicas = stack.chat_replicas
    made = sum(replica.metric(MADE) for replica in replicas)
    body = _chat("Tell a long story.", stream=True, max_tokens=1900, ignore_eos=True)
    with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = (line for line in reply.iter_lines() if line.startswith("data: "))
        for _ in range(5):
            next(lines)
        assert _busy(replicas) == 1
    took_s = until("the replica is idle again", lambda: _busy(replicas) == 0, 2.0, every_s=0.005)
    record_property("idle_after_s", took_s)
    print(f"running fell to 0 after {took_s * 1e3:.0f} ms")
    # vLLM does not count a client that left as a finished request of any kind: its tokens tell.
    assert 0 < sum(replica.metric(MADE) for replica in replicas) - made < 500


def test_a_client_that_leaves_before_the_first_token_frees_its_replica(
    stack: Stack, http: httpx.Client
) -> None:
    replicas = stack.chat_replicas
    body = _chat("Tell a long story.", max_tokens=1900, ignore_eos=True)  # nothing until the end
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=body, timeout=httpx.Timeout(10.0, read=1.0))
    until("the replica is idle again", lambda: _busy(replicas) == 0, 2.0)
