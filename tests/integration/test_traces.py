"""Traces, from a client's context to a collector, with a replica's part joined between."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.account import trace_export
from gateway.app import House
from gateway.section import SettingsError
from gateway.settings import Settings
from gateway.vocabulary import Outcome
from serving.sim.server import running_sim
from tests.builders import MODEL, a_chat, a_get, a_post
from tests.house import Behind, RunningHouse, a_sim, run, running_house, until
from tests.integration.test_batches import a_batch, a_client, a_file, a_line, ended
from tests.integration.test_cold_hold import Fleet
from tests.keyed import ACME, a_document
from tests.otlp import Collector, Received
from tests.scripted import STREAM_HEAD, Scripted, a_reply

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
STATE = "vendor=opaque,other=1"
ROUTE = "POST /v1/chat/completions"
SECRET = "the treasure is under the old oak"
USAGE = json.dumps(
    {
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 4},
        }
    }
).encode()


def traced(body: bytes | None = None, flags: str = "01", key: str = "") -> bytes:
    """A request that comes with a trace."""
    headers = [("traceparent", f"00-{TRACE}-{SPAN}-{flags}"), ("tracestate", STATE)]
    if key:
        headers.append(("Authorization", f"Bearer {key}"))
    return a_post(body, headers=headers)


@asynccontextmanager
async def house_with(
    collector: Collector,
    replicas: Sequence[Behind] | None = None,
    *,
    ratio: float = 0.0,
    **settings: dict[str, Any],
) -> AsyncIterator[RunningHouse]:
    """A gateway that sends its traces there."""
    traces = {"endpoint": collector.url, "ratio": ratio, "timeout_s": 1.0}
    account = {"account": {"access_log": "off", "traces": traces}}
    async with running_house({**account, **settings}, replicas) as running:
        yield running


def tree(spans: Iterable[Received]) -> tuple[Received, list[Received]]:
    """The request's own span, and those below it in their order."""
    [request] = [span for span in spans if span.kind == "server"]
    below = [span for span in spans if span is not request]
    for span in below:
        assert (span.parent_id, span.trace_id) == (request.span_id, request.trace_id)
        assert request.began_s - 1e-3 <= span.began_s <= span.ended_s <= request.ended_s + 1e-3
    return request, sorted(below, key=lambda span: span.began_s)


def contexts(replica: Scripted) -> list[str]:
    return [value for each in replica.received for value in each.all("traceparent")]


def test_a_client_s_trace_goes_on_to_the_replica_and_holds_our_part(tmp_path: Path) -> None:
    async def law() -> None:
        path = tmp_path / "tenants.yaml"
        path.write_text(a_document({"class": "interactive"}))
        replica = Scripted(a_reply(USAGE))
        async with Collector().running() as collector:
            tenants = {"path": str(path)}
            async with house_with(collector, [replica], tenants=tenants) as running:
                body = a_chat(SECRET, max_tokens=7)
                assert (await running.ask(traced(body, key=ACME.key))).status == 200
                await until(lambda: len(collector.spans) >= 4)
                request, below = tree(collector.spans)
                assert (request.name, request.trace_id, request.parent_id) == (ROUTE, TRACE, SPAN)
                assert not request.is_error
                assert request.resource["service.name"] == "headrace"
                assert request.said.items() >= {
                    "http.request.method": "POST", "http.route": "/v1/chat/completions",
                    "http.response.status_code": 200, "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": "openai", "gen_ai.request.model": MODEL,
                    "gen_ai.request.max_tokens": 7, "gen_ai.usage.input_tokens": 9,
                    "gen_ai.usage.output_tokens": 3, "gen_ai.usage.cache_read.input_tokens": 4,
                    "headrace.tenant": "acme", "headrace.class": "interactive",
                    "headrace.outcome": "finished", "headrace.attempts": 1,
                    "headrace.replica": running.replicas[0].id,
                }.items()  # fmt: skip
                assert [span.name for span in below] == ["choose", "hold", f"chat {MODEL}"]
                assert [span.kind for span in below] == ["internal", "internal", "client"]
                call = below[-1]
                assert call.said.items() >= {
                    "server.address": "127.0.0.1", "server.port": replica.port,
                    "gen_ai.usage.output_tokens": 3, "http.response.status_code": 200,
                }.items()  # fmt: skip
                assert contexts(replica) == [f"00-{TRACE}-{call.span_id}-01"]
                assert replica.received[0].all("tracestate") == [STATE]
                for secret in (SECRET, ACME.key, ACME.key[-20:]):
                    assert secret.encode() not in collector.raw
                now = time.time()
                assert now - 30 < request.began_s <= request.ended_s <= now

    run(law())


def test_each_attempt_is_a_span_and_a_context_of_its_own() -> None:
    async def law() -> None:
        ill, well = Scripted(a_reply(status=503)), Scripted(a_reply(USAGE))
        async with Collector().running() as collector:
            choose = {"policy": "round-robin"}
            async with house_with(collector, [ill, well], choose=choose) as running:
                while not ill.received:
                    assert (await running.ask(traced())).status == 200
                [id_of_ill] = [each.id for each in running.replicas if str(ill.port) in each.id]
                await until(lambda: any("error.type" in span.said for span in collector.spans))
                await asyncio.sleep(0.3)
                [failed] = [span for span in collector.spans if "error.type" in span.said]
                assert failed.said["headrace.replica"] == id_of_ill
                assert (failed.said["error.type"], failed.is_error) == ("replica_unavailable", True)
                last = [span for span in collector.spans if span.parent_id == failed.parent_id]
                _, *below = sorted(last, key=lambda span: span.began_s)
                names = ["hold", f"chat {MODEL}", "choose", "hold", f"chat {MODEL}"]
                assert [span.name for span in below] == names
                assert contexts(ill) == [f"00-{TRACE}-{failed.span_id}-01"]
                assert contexts(well)[-1] == f"00-{TRACE}-{below[-1].span_id}-01"

    run(law())


def test_a_client_that_leaves_leaves_its_trace() -> None:
    async def law() -> None:
        async def half(_: object, reader: object, writer: asyncio.StreamWriter) -> None:
            writer.write(STREAM_HEAD + b"5\r\ndata:\r\n")
            await writer.drain()
            await asyncio.Event().wait()

        async with (
            Collector().running() as collector,
            house_with(collector, [Scripted(half)]) as running,
        ):
            wire = await running.connect()
            await wire.send(traced(a_chat(stream=True)))
            await wire.head()
            wire.abort()
            await running.until_quiet()
            assert running.outcomes == {Outcome.CLIENT_GONE: 1}
            await until(lambda: len(collector.spans) >= 4)
            request, below = tree(collector.spans)
            assert request.said["headrace.outcome"] == "client_gone"
            assert request.said["error.type"] == "client_gone"
            assert not request.is_error, "it is nobody's failure"
            assert below[-1].said["error.type"] == "client_gone"
            assert not below[-1].is_error
            assert request.said["gen_ai.response.time_to_first_chunk"] > 0

    run(law())


def test_who_is_not_traced_is_not_and_replicas_are_told() -> None:
    async def law() -> None:
        replica = Scripted()
        async with Collector().running() as collector:
            async with house_with(collector, [replica]) as running:
                assert (await running.ask(traced(flags="00"))).status == 200
                assert (await running.ask(a_post())).status == 200
            first, second = contexts(replica)
            assert first == f"00-{TRACE}-{SPAN}-00", "as it came"
            assert replica.received[0].all("tracestate") == [STATE]
            assert second.endswith("-00")
            assert second[3:35] != TRACE
            assert not collector.spans

    run(law())


def test_chance_begins_traces_and_a_broken_context_does_no_harm() -> None:
    async def law() -> None:
        replica = Scripted()
        async with Collector().running() as collector:
            async with house_with(collector, [replica], ratio=1.0) as running:
                broken = [("traceparent", "00-nonsense-01"), ("tracestate", STATE)]
                assert (await running.ask(a_post(headers=broken))).status == 200
            request, _ = tree(collector.spans)  # the end of the house has flushed them
            assert request.parent_id == ""
            assert contexts(replica)[0].startswith(f"00-{request.trace_id}-")
            assert not replica.received[0].all("tracestate"), "of a trace that we do not know"

    run(law())


def test_who_waits_for_a_model_is_seen_to_wait(tmp_path: Path) -> None:
    async def law() -> None:
        fleet = Fleet(tmp_path / "fleet.yaml")
        fleet.write()
        settings = {
            "file": str(fleet.path), "watch_every_s": 0.02, "probe_every_s": 0.1,
            "kv_events": {"listen": "off"}, "models": [MODEL],
        }  # fmt: skip
        async with Collector().running() as collector, running_sim(a_sim()) as sim:
            async with house_with(collector, [], ratio=1.0, fleet=settings) as running:
                asked = asyncio.create_task(running.ask(a_post()))
                await until(lambda: running.house.cold.held == 1)
                await asyncio.sleep(0.2)
                fleet.write(sim)
                assert (await asked).status == 200
            request, below = tree(collector.spans)
            names = ["wait for a replica", "choose", "hold", f"chat {MODEL}"]
            assert [span.name for span in below] == names
            waited = below[0]
            assert waited.ended_s - waited.began_s > 0.2
            assert below[1].began_s == pytest.approx(waited.ended_s, abs=0.01)
            assert request.said["headrace.attempts"] == 1

    run(law())


def test_what_is_expected_of_a_choice_is_said() -> None:
    async def law() -> None:
        choose = {"policy": "cache-aware"}
        fleet = {"kv_events": {"listen": "off"}}
        async with Collector().running() as collector:
            async with house_with(
                collector, [a_sim(), a_sim()], ratio=1.0, choose=choose, fleet=fleet
            ) as running:
                long = a_post(a_chat("once upon a time " * 200))
                for _ in range(3):
                    assert (await running.ask(long)).status == 200
            chosen = collector.named("choose")[-1].said
            assert chosen["headrace.candidates"] == 2
            assert chosen["headrace.predicted.hit_tokens"] > 100
            assert chosen["headrace.predicted.wait_seconds"] >= 0
            assert chosen["headrace.cache.grade"] == "approximate"

    run(law())


def test_calls_that_share_another_have_a_trace_without_an_attempt() -> None:
    async def law() -> None:
        async with Collector().running() as collector:
            async with house_with(collector, [a_sim()], ratio=1.0) as running:
                calls = [
                    a_post(json.dumps({"model": MODEL, "input": [[each]]}).encode(),
                           path="/v1/embeddings")
                    for each in range(12)
                ]  # fmt: skip
                await asyncio.gather(*map(running.ask, calls))
                merged = running.house.merged_calls
            requests = collector.named("POST /v1/embeddings")
            assert len(requests) == 12
            assert merged > 0
            assert [span.said["headrace.attempts"] for span in requests].count(0) == merged
            assert len(collector.named(f"embeddings {MODEL}")) == 12 - merged

    run(law())


def test_a_line_of_a_batch_is_traced_as_any_request(tmp_path: Path) -> None:
    async def law() -> None:
        batch = {"folder": str(tmp_path / "batches")}
        async with Collector().running() as collector:
            async with (
                house_with(collector, [a_sim()], ratio=1.0, batch=batch) as running,
                a_client(running) as client,
            ):
                made = await a_batch(client, a_file(map(a_line, "abc")))
                assert (await ended(client, made)).status == "completed"
            requests = collector.named(ROUTE)
            assert [span.said["headrace.class"] for span in requests] == ["batch"] * 3
            assert all(span.parent_id == "" for span in requests)
            assert len(collector.named(f"chat {MODEL}")) == 3

    run(law())


@pytest.mark.parametrize("answers", [500, None], ids=["fails", "stalls"])
def test_a_collector_that_is_ill_is_nobody_s_trouble(answers: int | None) -> None:
    async def law() -> None:
        async with Collector(answers).running() as collector:
            async with house_with(collector, [a_sim()], ratio=1.0) as running:
                for _ in range(5):
                    assert (await running.ask(a_post())).status == 200
                traces = running.house.traces
                assert traces is not None
                await until(lambda: traces.spans["failed"] > 0, within_s=20)
                page = (await running.ask(a_get("/metrics"), method="GET")).body.decode()
                assert 'gateway_trace_spans_total{result="failed"}' in page
                assert (await running.ask(a_post())).status == 200
                leaving_at = time.monotonic()
            assert time.monotonic() - leaving_at < 6.0, "2 s for what is left, and the rest"

    run(law())


def test_without_traces_a_context_goes_by_untouched() -> None:
    async def law() -> None:
        replica = Scripted()
        async with running_house(None, [replica]) as running:
            assert (await running.ask(traced())).status == 200
        assert contexts(replica) == [f"00-{TRACE}-{SPAN}-01"]
        assert replica.received[0].all("tracestate") == [STATE]

    run(law())


def test_opentelemetry_is_loaded_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    look = "import sys, gateway.app; sys.exit(any('opentelemetry' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
    monkeypatch.delitem(sys.modules, "gateway.account.trace_export", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    settings = Settings.of({"account": {"traces": {"endpoint": "http://a:4318"}}})
    with pytest.raises(SettingsError, match=r"headrace\[otel\]"):
        House(settings)


def test_no_span_is_lost_uncounted_and_beyond_the_bound_none_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace_export, "MOST_WAITING", 8)

    async def law() -> None:
        collector = Collector(answers=None)
        async with collector.running():
            async with house_with(collector, [Scripted()], ratio=1.0) as running:
                traces = running.house.traces
                assert traces is not None
                asked = 0
                async with asyncio.timeout(30):
                    while not (traces.spans["dropped"] and traces.spans["exported"]):
                        assert (await running.ask(a_post())).status == 200
                        asked += 1
                        await asyncio.sleep(0.1)
                        if traces.spans["dropped"]:
                            collector.answers = 200
            assert sum(traces.spans.values()) == asked * 4

    run(law())
