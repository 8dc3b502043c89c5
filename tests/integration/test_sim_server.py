"""The simulated replica over loopback, with the official clients."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.sim.engine import FinishReason
from serving.sim.server import SimSettings, running_sim
from tests.integration.sim_clients import EXACT, SLOW, USER, chat, clients, run, until


def sse(text: str) -> list[tuple[str | None, str]]:
    """(event name, data) of each event."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((lines.get("event"), lines["data"]))
    return found


def test_the_openai_client_gets_the_same_chat_streamed_and_unary() -> None:
    async def test() -> None:
        async with (
            running_sim(SimSettings()) as sim,
            openai.AsyncOpenAI(base_url=f"{sim.url}/v1", api_key="none", max_retries=0) as client,
        ):
            unary = await client.chat.completions.create(
                model="sim", messages=USER, max_tokens=9, extra_body=EXACT
            )
            assert unary.usage is not None
            assert unary.usage.completion_tokens == 9
            assert unary.choices[0].finish_reason == "length"
            stream = await client.chat.completions.create(
                model="sim",
                messages=USER,
                max_tokens=9,
                extra_body=EXACT,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            assert chunks[0].choices[0].delta.role == "assistant"
            texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
            assert "".join(texts) == unary.choices[0].message.content
            assert len(chunks) == 1 + 9 + 1
            assert chunks[-2].choices[0].finish_reason == "length"
            last = chunks[-1]
            assert last.usage is not None
            assert last.usage.prompt_tokens == unary.usage.prompt_tokens
            assert last.usage.prompt_tokens_details is not None
            cached = (unary.usage.prompt_tokens - 1) // 16 * 16
            assert last.usage.prompt_tokens_details.cached_tokens == cached
            assert last.system_fingerprint == unary.system_fingerprint
            assert str(last.system_fingerprint).startswith("vllm-0.32.0-")

    run(test)


def test_every_chunk_carries_usage_when_that_is_asked() -> None:
    async def test() -> None:
        async with clients() as (_, web):
            options = {"include_usage": True, "continuous_usage_stats": True}
            answer = await web.post("/v1/chat/completions", json=chat(True, stream_options=options))
            chunks = [json.loads(data) for _, data in sse(answer.text)[:-1]]
            counted = [chunk["usage"]["completion_tokens"] for chunk in chunks]
            assert counted == [0, 1, 2, 3, 4, 5, 5]
            assert sse(answer.text)[-1] == (None, "[DONE]")
            plain = await web.post("/v1/chat/completions", json=chat(True))
            chunks = [json.loads(data) for _, data in sse(plain.text)[:-1]]
            assert not any("usage" in chunk for chunk in chunks)
            assert chunks[-1]["system_fingerprint"]

    run(test)


def test_the_openai_client_gets_completions_embeddings_responses_and_models() -> None:
    async def test() -> None:
        settings = SimSettings(models=("llama", "alias"), loras=("support=adapters/support",))
        async with (
            running_sim(settings) as sim,
            openai.AsyncOpenAI(base_url=f"{sim.url}/v1", api_key="none", max_retries=0) as client,
        ):
            both = await client.completions.create(
                model="alias", prompt=["one", "two"], max_tokens=3, extra_body=EXACT
            )
            assert [choice.index for choice in both.choices] == [0, 1]
            assert both.usage is not None
            assert both.usage.completion_tokens == 6
            other = await client.completions.create(
                model="support", prompt=["one", "two"], max_tokens=3, extra_body=EXACT
            )
            assert other.model == "support"
            assert other.choices[0].text != both.choices[0].text
            vectors = await client.embeddings.create(model="llama", input=["a", "b", "a"])
            first, second, third = (item.embedding for item in vectors.data)
            assert first == third != second
            assert sum(value * value for value in first) == pytest.approx(1.0, abs=1e-5)
            answer = await client.responses.create(
                model="llama", input="hello", max_output_tokens=4, extra_body=EXACT
            )
            assert answer.status == "incomplete"
            assert answer.usage is not None
            assert answer.usage.output_tokens == 4
            async with await client.responses.create(
                model="llama", input="hello", max_output_tokens=4, extra_body=EXACT, stream=True
            ) as events:
                kinds = [event.type async for event in events]
            assert kinds == [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                *["response.output_text.delta"] * 4,
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.completed",
            ]
            models = {model.id: model async for model in client.models.list()}
            assert list(models) == ["llama", "alias", "support"]
            assert models["support"].parent == "llama"  # type: ignore[attr-defined]
            transcript = await client.audio.transcriptions.create(
                model="llama", file=("a.wav", b"\0" * 64_000)
            )
            assert transcript.text

    run(test)


def test_the_messages_route_speaks_anthropics_events() -> None:
    async def test() -> None:
        async with clients() as (_, web):
            body = {"model": "sim", "messages": USER, "max_tokens": 3, "system": "be brief"}
            unary = (await web.post("/v1/messages", json=body)).json()
            assert unary["stop_reason"] == "max_tokens"
            assert unary["usage"]["output_tokens"] == 3
            events = sse((await web.post("/v1/messages", json={**body, "stream": True})).text)
            assert [name for name, _ in events] == [
                "message_start",
                "content_block_start",
                *["content_block_delta"] * 3,
                "content_block_stop",
                "message_delta",
                "message_stop",
            ]
            assert all(json.loads(data)["type"] == name for name, data in events)
            deltas = [json.loads(data) for name, data in events if name == "content_block_delta"]
            text = "".join(delta["delta"]["text"] for delta in deltas)
            assert text == unary["content"][0]["text"]
            counted = (await web.post("/v1/messages/count_tokens", json=body)).json()
            usage = unary["usage"]
            assert counted["input_tokens"] == (
                usage["input_tokens"] + usage["cache_read_input_tokens"]
            )

    run(test)


def test_the_pooling_and_text_routes_answer_in_vllms_shapes() -> None:
    async def test() -> None:
        async with clients() as (_, web):
            for path in ("/score", "/v1/score"):
                pair = {"model": "sim", "text_1": "q", "text_2": ["a", "b"]}
                scores = (await web.post(path, json=pair)).json()
                assert [item["object"] for item in scores["data"]] == ["score", "score"]
            for path in ("/rerank", "/v1/rerank"):
                asked = {"query": "q", "documents": ["a", "b", "c"], "top_n": 2}
                ranked = (await web.post(path, json=asked)).json()["results"]
                assert len(ranked) == 2
                assert ranked[0]["relevance_score"] >= ranked[1]["relevance_score"]
            pooled = (await web.post("/pooling", json={"input": "x"})).json()
            assert len(pooled["data"][0]["data"]) == 64
            classed = (await web.post("/classify", json={"input": ["x", "y"]})).json()["data"]
            assert sum(classed[1]["probs"]) == pytest.approx(1.0)
            tokens = (await web.post("/tokenize", json={"prompt": "Grüße, Welt"})).json()
            assert tokens["count"] == len(tokens["tokens"]) == 4
            text = await web.post("/detokenize", json={"tokens": tokens["tokens"]})
            assert text.json() == {"prompt": "Grüße, Welt"}

    run(test)


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "param"),
    [
        ("/v1/chat/completions", chat(model="no"), 404, "NotFoundError", "model"),
        ("/v1/chat/completions", chat(tokens=0), 400, "BadRequestError", "max_tokens"),
        ("/v1/chat/completions", chat(n=2), 400, "BadRequestError", "n"),
        ("/v1/chat/completions", {"model": "sim"}, 400, "Bad Request", "body"),
        ("/v1/chat/completions", chat(model=7), 400, "Bad Request", "body.model"),
        ("/v1/chat/completions", chat(messages=[]), 400, "BadRequestError", "messages"),
        ("/v1/completions", {"prompt": "x" * 300_000}, 400, "BadRequestError", "input_tokens"),
        ("/v1/completions", {"prompt": [2**40]}, 400, "Bad Request", "prompt"),
        ("/nothing/here", {}, 404, "Not Found", None),
        ("/health", {}, 405, "Method Not Allowed", None),
    ],
)
def test_a_bad_request_is_told_in_openais_error_shape(
    path: str, body: dict[str, Any], status: int, kind: str, param: str | None
) -> None:
    async def test() -> None:
        async with clients() as (_, web):
            answer = await web.post(path, json=body)
            assert answer.status_code == status
            error = answer.json()["error"]
            assert (error["type"], error["param"], error["code"]) == (kind, param, status)

    run(test)


def test_a_body_that_is_no_json_is_a_bad_request() -> None:
    async def test() -> None:
        async with clients() as (_, web):
            as_json = {"content-type": "application/json"}
            for content, headers in ((b"{", as_json), (b"[1]", as_json), (b"{}", {})):
                answer = await web.post("/v1/completions", content=content, headers=headers)
                assert answer.status_code == 400
                assert answer.json()["error"]["type"] == "Bad Request"
            assert (await web.get("/v1/completions")).status_code == 405
            anthropic = await web.post("/v1/messages", json={"model": "sim"})
            assert anthropic.json()["type"] == "error"

    run(test)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_aborts_its_request_at_once(stream: bool) -> None:
    async def test() -> None:
        async with clients(SLOW) as (sim, web):
            asking = asyncio.create_task(
                web.post("/v1/chat/completions", json=chat(stream, tokens=1000))
            )
            await until(lambda: sim.engine.totals.generated_tokens >= 2)
            asking.cancel()
            assert await until(lambda: not sim.engine.has_work) < 0.1
            assert sim.engine.pool.used == 0
            assert sim.engine.totals.finished[FinishReason.ABORT] == 1
            await asyncio.wait({asking})

    run(test)


def test_metrics_show_a_running_request_and_what_it_left() -> None:
    async def page(web: httpx.AsyncClient) -> dict[str, float]:
        text = (await web.get("/metrics")).text
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def test() -> None:
        async with clients(SLOW) as (sim, web):
            async with web.stream("POST", "/v1/chat/completions", json=chat(True, tokens=6)) as r:
                lines = r.aiter_lines()
                await anext(lines)
                during = await page(web)
                assert during["vllm:num_requests_running"] == 1
                assert during["vllm:kv_cache_usage_perc"] > 0
                assert (await web.get("/load")).json() == {"server_load": 1}
                async for _ in lines:
                    pass
            await until(lambda: not sim.engine.has_work)
            after = await page(web)
            assert after["vllm:num_requests_running"] == 0
            assert after["vllm:generation_tokens_total"] == 6
            assert after["vllm:time_to_first_token_seconds_count"] == 1
            assert after["vllm:inter_token_latency_seconds_count"] == 5
            assert (await web.get("/load")).json() == {"server_load": 0}

    run(test)


def test_an_idle_connection_is_closed_after_the_keep_alive_time() -> None:
    async def test() -> None:
        async with running_sim(SimSettings(keep_alive_s=0.1)) as sim:
            reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\ndate: ")
            assert b"server: uvicorn\r\n" in head
            start = time.monotonic()
            assert await reader.read() == b""
            assert 0.05 < time.monotonic() - start < 2.0
            writer.close()
            await writer.wait_closed()

    run(test)


def test_connections_are_refused_while_it_loads() -> None:
    async def test() -> None:
        async with clients(SimSettings(load_s=0.2)) as (sim, web):
            with pytest.raises(httpx.ConnectError):
                await web.get("/health")
            await sim.wait_listening()
            assert (await web.get("/health")).status_code == 200

    run(test)


def test_speed_and_the_slow_fault_change_how_long_a_reply_takes() -> None:
    async def took(web: httpx.AsyncClient) -> float:
        start = time.monotonic()
        await web.post("/v1/completions", json={"prompt": "x", "max_tokens": 8, **EXACT})
        return time.monotonic() - start

    async def test() -> None:
        async with clients(SimSettings(profile="cpu-tiny", speed=4.0)) as (sim, web):
            await took(web)
            plain_s = await took(web)
            assert plain_s >= 8 * 0.03 / 4
            sim.faults.merge({"slow": 4})
            assert await took(web) > 2 * plain_s

    run(test)
