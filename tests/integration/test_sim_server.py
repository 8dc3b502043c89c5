"""The simulated replica over loopback: the official clients, raw bytes, events and faults."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import openai
import pytest
import zmq
from openai.types.chat import ChatCompletionMessageParam
from prometheus_client.parser import text_string_to_metric_families

from serving.sim.server import KvEventSettings, Sim, SimSettings, running_sim

USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "tell me of the sea " * 20}]
EXACT: dict[str, Any] = {"ignore_eos": True}
SLOW = SimSettings(profile="cpu-tiny", block_size=16, blocks=4096)
"""Steps of some 30 ms: long enough to do something in the middle of a reply."""


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """The test on its own event loop; nothing of it may be left behind."""

    async def body() -> None:
        await asyncio.wait_for(test(), 30.0)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []

    asyncio.run(body())


@asynccontextmanager
async def clients(
    settings: SimSettings | None = None,
) -> AsyncIterator[tuple[Sim, httpx.AsyncClient]]:
    """A replica and a plain client of it."""
    async with running_sim(settings) as sim, httpx.AsyncClient(base_url=sim.url, timeout=10) as web:
        yield sim, web


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> float:
    """Seconds until the condition held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within_s, "waited too long"
        await asyncio.sleep(0.002)
    return time.monotonic() - start


def chat(stream: bool = False, tokens: int = 5, **more: object) -> dict[str, Any]:
    limits = {"max_tokens": tokens, "ignore_eos": True}
    return {"model": "sim", "messages": USER, "stream": stream, **limits, **more}


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
            assert sim.engine.totals.finished["abort"] == 1  # type: ignore[index]
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


async def raw_answer(sim: Sim, body: dict[str, Any]) -> tuple[bytes, bool]:
    """Everything the replica sends, and whether it ended in a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
    content = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content)
    writer.write(head + content)
    received, is_reset = b"", False
    try:
        while data := await reader.read(65536):
            received += data
    except ConnectionResetError:
        is_reset = True
    writer.close()
    await asyncio.wait({asyncio.ensure_future(_closed(writer))})
    return received, is_reset


async def _closed(writer: asyncio.StreamWriter) -> None:
    try:
        await writer.wait_closed()
    except ConnectionResetError:
        return


def test_a_reset_comes_after_so_many_events() -> None:
    async def test() -> None:
        async with running_sim(SimSettings()) as sim:
            sim.faults.merge({"reset": {"after_chunks": 3, "next": 1}})
            received, is_reset = await raw_answer(sim, chat(True))
            assert is_reset
            assert received.count(b"data: {") == 3
            await until(lambda: not sim.engine.has_work)
            received, is_reset = await raw_answer(sim, chat(True))
            assert not is_reset
            assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")

    run(test)


@pytest.mark.parametrize("stream", [True, False])
def test_a_truncated_answer_ends_inside_what_it_announced(stream: bool) -> None:
    async def test() -> None:
        async with running_sim(SimSettings()) as sim:
            sim.faults.merge({"truncate": {"after_chunks": 2}})
            received, is_reset = await raw_answer(sim, chat(stream))
            assert not is_reset
            head, _, body = received.partition(b"\r\n\r\n")
            if stream:
                assert body.count(b"data: {") == 3
                announced, _, rest = body.split(b"\n\n\r\n")[-1].partition(b"\r\n")
                assert 0 < len(rest) < int(announced, 16)
            else:
                announced = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                assert 0 < len(body) < int(announced)

    run(test)


def test_garbage_and_dropped_connections_hold_no_http() -> None:
    async def test() -> None:
        async with running_sim(SimSettings()) as sim:
            sim.faults.merge({"garbage": {"next": 1}, "drop": {"next": 1}})
            assert await raw_answer(sim, chat()) == (b"", False)
            received, _ = await raw_answer(sim, chat())
            assert received
            assert not received.startswith(b"HTTP")

    run(test)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("where", ["before_head", "after_head"])
def test_a_stuck_request_hangs_until_its_client_leaves(where: str, stream: bool) -> None:
    async def test() -> None:
        async with clients() as (sim, web):
            sim.faults.merge({"stuck": {"where": where, "next": 1}})
            got_head = asyncio.Event()

            async def ask() -> None:
                async with web.stream("POST", "/v1/chat/completions", json=chat(stream)) as answer:
                    got_head.set()
                    async for _ in answer.aiter_bytes():
                        raise AssertionError("a stuck request sent a body")

            asking = asyncio.create_task(ask())
            done, _ = await asyncio.wait({asking}, timeout=0.2)
            assert not done
            assert got_head.is_set() == (where == "after_head")
            asking.cancel()
            await asyncio.wait({asking})
            assert (await web.post("/v1/chat/completions", json=chat())).status_code == 200
            await until(lambda: not sim.engine.has_work)

    run(test)


def test_faults_are_set_over_http_and_struck_requests_are_refused() -> None:
    async def test() -> None:
        async with clients() as (_, web):
            set_to = await web.post("/sim/faults", json={"refuse": {"status": 500, "next": 2}})
            assert set_to.json() == {"refuse": {"next": 2, "ratio": 1.0, "status": 500}}
            statuses = [
                (await web.post("/v1/chat/completions", json=chat())).status_code for _ in range(3)
            ]
            assert statuses == [500, 500, 200]
            assert (await web.post("/sim/faults", json={"nonsense": 1})).status_code == 400
            await web.post("/sim/faults", json={"health": {"status": 503}})
            assert (await web.get("/health")).status_code == 503
            await web.delete("/sim/faults")
            assert (await web.get("/health")).status_code == 200
            await web.post("/sim/faults", json={"health": {"hangs": True}})
            with pytest.raises(httpx.ReadTimeout):
                await web.get("/health", timeout=0.1)

    run(test)


def test_a_crashed_replica_refuses_connections_until_it_is_revived() -> None:
    async def test() -> None:
        async with clients(SLOW) as (sim, web):
            asking = asyncio.create_task(
                web.post("/v1/chat/completions", json=chat(True, tokens=500))
            )
            await until(lambda: sim.engine.running == 1)
            sim.crash("exit")
            with pytest.raises(httpx.RemoteProtocolError):
                await asking
            with pytest.raises(httpx.ConnectError):
                await web.get("/health")
            await until(lambda: not sim.engine.has_work)
            await sim.revive()
            assert (await web.get("/health")).status_code == 200

    run(test)


def test_dropped_connections_end_but_new_ones_are_served() -> None:
    async def test() -> None:
        async with clients(SLOW) as (sim, web):
            asking = asyncio.create_task(
                web.post("/v1/chat/completions", json=chat(True, tokens=500))
            )
            await until(lambda: sim.engine.running == 1)
            async with httpx.AsyncClient(base_url=sim.url) as admin:
                await admin.post("/sim/faults", json={"crash": "drop"})
            with pytest.raises(httpx.HTTPError):
                await asking
            assert (await web.get("/health")).status_code == 200

    run(test)


def test_a_replica_leaves_in_the_middle_of_its_work_without_a_trace() -> None:
    async def test() -> None:
        async with clients(SLOW) as (sim, web):
            asking = [
                asyncio.create_task(web.post("/v1/chat/completions", json=chat(stream, tokens=900)))
                for stream in (True, False)
            ]
            await until(lambda: sim.engine.running == 2)
        done, _ = await asyncio.wait(asking)
        assert all(task.exception() for task in done)
        assert not sim.engine.has_work

    run(test)


EVENTS = SimSettings(
    block_size=4,
    blocks=64,
    kv_events=KvEventSettings("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", topic="kv@here"),
)


async def received_frames(peer: zmq.Socket[bytes], within_s: float = 5.0) -> list[bytes]:
    await until(lambda: bool(peer.poll(0)), within_s)
    return peer.recv_multipart(zmq.NOBLOCK)


def test_kv_events_are_published_in_vllms_frames_and_replayed_from_any_number() -> None:
    async def test() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        async with clients(EVENTS) as (sim, web):
            source = (await web.get("/kv_event_sources")).json()["0"]
            assert source["endpoint"] == sim.kv_events_endpoint
            live = context.socket(zmq.SUB)
            live.subscribe(b"kv@")
            live.connect(source["endpoint"])
            asking = context.socket(zmq.DEALER)
            asking.connect(source["replay_endpoint"])
            try:
                await asyncio.sleep(0.1)
                body = {"prompt": list(range(9)), "max_tokens": 4, "ignore_eos": True}
                await web.post("/v1/completions", json=body)
                batches = [await received_frames(live) for _ in range(2)]
                topic, number, payload = batches[0]
                assert (topic, number) == (b"kv@here", bytes(8))
                instant, events, rank = msgspec.msgpack.decode(payload)
                assert abs(instant - time.time()) < 60
                assert rank == 0
                (event,) = events
                assert event["type"] == "BlockStored"
                assert event["token_ids"] == list(range(8))
                assert event["parent_block_hash"] is None
                assert event["block_size"] == 4
                assert event["medium"] == "GPU"
                assert event["extra_keys"] == [None, None]
                assert "session_id" not in event
                follows = msgspec.msgpack.decode(batches[1][2])[1][0]
                assert follows["parent_block_hash"] == event["block_hashes"][1]
                assert (await web.post("/reset_prefix_cache")).status_code == 200
                batches.append(await received_frames(live))
                assert msgspec.msgpack.decode(batches[2][2])[1] == [{"type": "AllBlocksCleared"}]
                asking.send_multipart((b"", (1).to_bytes(8, "big")))
                for batch in batches[1:]:
                    assert await received_frames(asking) == [b"", *batch]
                assert await received_frames(asking) == [b"", b"", b"\xff" * 8, b""]
                asking.send_multipart((b"not", b"a", b"request", b"at all"))
                asking.send_multipart((b"", (99).to_bytes(8, "big")))
                assert await received_frames(asking) == [b"", b"", b"\xff" * 8, b""]
            finally:
                live.close(linger=0)
                asking.close(linger=0)
                context.term()

    run(test)


def test_a_taken_endpoint_is_an_error_and_leaves_nothing_open() -> None:
    async def test() -> None:
        async with running_sim(EVENTS) as sim:
            taken = SimSettings(kv_events=KvEventSettings(sim.kv_events_endpoint))
            with pytest.raises(OSError, match="in use"):
                async with running_sim(taken):
                    pass
            with pytest.raises(OSError, match="in use"):
                async with running_sim(SimSettings(port=sim.port)):
                    pass

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
