"""Processes that die and processes that are asked to stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx

from tests.e2e.conftest import CHAT, Stack, another_gateway, is_well, until
from tests.e2e.conversations import talk
from tests.e2e.test_cache_hits import (
    LEAST_EXACT,
    Note,
    client,
    everybody,
    exact,
    gateway,
    share_foreseen,
    warm_up,
)


def _chat(http: httpx.Client, **more: object) -> httpx.Response:
    messages = [{"role": "user", "content": "Say hello."}]
    body = {"model": CHAT, "messages": messages, "max_tokens": 8, "temperature": 0, **more}
    return http.post("/v1/chat/completions", json=body)


def test_requests_go_on_when_a_replica_is_killed_and_it_comes_back(
    stack: Stack, http: httpx.Client, tmp_path: Path, record_property: Note
) -> None:
    """And a gateway that had told what its cache holds can do so again."""
    conversations = everybody("restart")
    with gateway(stack, tmp_path) as other, client(other) as chats:
        talk(chats, conversations, 2)
        victim = stack.processes()["replica-2"]
        os.killpg(victim.pid, signal.SIGKILL)
        answers = [_chat(http).status_code for _ in range(10)]

        def back() -> bool:
            return stack.processes()["replica-2"].pid != victim.pid

        until("headrace up has started the replica again", back, 120.0, every_s=0.2)
        again = stack.processes()["replica-2"]
        assert again.url == victim.url

        def used() -> bool:
            answers.append(_chat(http).status_code)
            return again.metric("vllm:request_success_total") > 0

        until("the gateway sends it requests again", used, 60.0)
        warm_up(again)
        until("its cache is known exactly", lambda: exact(other) == 2, 60.0, every_s=0.1)
        foreseen = share_foreseen(talk(chats, conversations, 3))
    record_property("foreseen_when_choosing", foreseen)
    print(f"after a restart: {foreseen:.1%} foreseen when choosing")
    assert foreseen >= LEAST_EXACT
    # Asked last, so that a failure leaves the replica up for the other tests.
    assert set(answers) == {200}


def test_a_gateway_asked_to_stop_finishes_its_stream_and_takes_no_new_work(
    stack: Stack, tmp_path: Path
) -> None:
    with another_gateway(stack, tmp_path / "gateway.log") as (gateway, url):
        messages = [{"role": "user", "content": "Count."}]
        body = {"model": CHAT, "messages": messages, "max_tokens": 200, "ignore_eos": True}
        options = {"stream": True, "stream_options": {"include_usage": True}}
        with (
            httpx.Client(base_url=url, trust_env=False, timeout=60.0) as http,
            http.stream("POST", "/v1/chat/completions", json=body | options) as reply,
        ):
            lines = reply.iter_lines()
            next(lines)
            gateway.send_signal(signal.SIGTERM)
            until("it is no longer ready", lambda: not is_well(url, "/readyz"), 5.0)
            rest = list(lines)
        assert "data: [DONE]" in rest
        assert any('"completion_tokens":200' in line for line in rest)
        assert gateway.wait(15) == 0
