"""Everything that is not inference: what it says, and that it stays itself whatever it is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_metrics

from tests.builders import a_chat, a_get, a_post
from tests.house import Shared, a_sim, run, running_house, shared_house, until

OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    sims = [a_sim("m", loras=("ad/apter=path",)), a_sim("embedder")]
    with shared_house({}, sims) as running:
        yield running


def ids(document: Any) -> list[str]:
    return [model["id"] for model in document["data"]]


def test_it_is_up_and_ready(shared: Shared) -> None:
    async def law() -> None:
        up = await shared.running.ask(a_get("/healthz"))
        assert (up.status, up.json()) == (200, {"status": "ok"})
        ready = await shared.running.ask(a_get("/readyz"))
        assert (ready.status, ready.json()) == (200, {"ready": True})

    shared.run(law())


def test_it_is_up_but_not_ready_without_a_replica() -> None:
    async def law() -> None:
        async with running_house({}, []) as running:
            assert (await running.ask(a_get("/healthz"))).status == 200
            ready = await running.ask(a_get("/readyz"))
            assert (ready.status, ready.json()) == (503, {"ready": False})
            models = await running.ask(a_get("/v1/models"))
            assert (models.status, models.json()) == (200, {"object": "list", "data": []})
            answer = await running.ask(a_post())
            assert (answer.status, answer.code) == (503, "no_replica")
            assert int(answer.header("retry-after") or 0) >= 1

    run(law())


def test_the_models_of_all_replicas_are_one_list_adapters_included(shared: Shared) -> None:
    async def law() -> None:
        document = (await shared.running.ask(a_get("/v1/models"))).json()
        assert document["object"] == "list"
        assert ids(document) == ["ad/apter", "embedder", "m"]
        adapter, _, base = document["data"]
        assert adapter["parent"] == "m"
        assert "parent" not in base
        assert base["max_model_len"] > 0
        assert all(model["object"] == "model" and model["created"] for model in document["data"])

    shared.run(law())


@pytest.mark.parametrize("path", ["ad/apter", "ad%2Fapter", "m"])
def test_one_model_can_be_asked_for_by_its_id_slashes_and_all(shared: Shared, path: str) -> None:
    async def law() -> None:
        listed = (await shared.running.ask(a_get("/v1/models"))).json()["data"]
        answer = await shared.running.ask(a_get(f"/v1/models/{path}"))
        assert answer.status == 200
        assert answer.json() in listed
        assert answer.json()["id"] == path.replace("%2F", "/")

    shared.run(law())


@pytest.mark.parametrize("path", ["nope", "M", "m/", "", "%FF", "m%00"])
def test_an_unknown_model_is_an_openai_404(shared: Shared, path: str) -> None:
    async def law() -> None:
        answer = await shared.running.ask(a_get(f"/v1/models/{path}"))
        assert (answer.status, answer.code) == (404, "model_not_found")
        assert answer.json()["error"]["type"] == "not_found_error"

    shared.run(law())


def test_a_replica_that_is_down_costs_the_list_only_what_it_alone_served() -> None:
    async def law() -> None:
        sims = [a_sim("m"), a_sim("m", loras=("other",))]
        async with running_house({}, sims) as running:
            assert ids((await running.ask(a_get("/v1/models"))).json()) == ["m", "other"]
            running.sims[1].crash("exit")
            await until(lambda: len(running.house.models()) == 1)
            assert ids((await running.ask(a_get("/v1/models"))).json()) == ["m"]
            assert (await running.ask(a_get("/readyz"))).status == 200
            running.sims[0].crash("exit")
            await until(lambda: not running.house.is_ready)
            answer = await running.ask(a_get("/v1/models"))
            assert (answer.status, ids(answer.json())) == (200, [])
            assert (await running.ask(a_get("/readyz"))).status == 503
            assert (await running.ask(a_get("/healthz"))).status == 200

    run(law())


def test_metrics_are_readable_in_both_formats_and_say_what_has_happened(shared: Shared) -> None:
    async def law() -> None:
        assert (await shared.running.ask(a_post(a_chat(stream=True)))).status == 200
        assert (await shared.running.ask(a_post(b"{}"))).status == 400
        plain = await shared.running.ask(a_get("/metrics"))
        assert (plain.header("content-type") or "").startswith("text/plain; version=")
        opened = await shared.running.ask(a_get("/metrics", headers=[("Accept", OPEN_METRICS)]))
        assert (opened.header("content-type") or "").startswith("application/openmetrics-text")
        assert opened.body.endswith(b"# EOF\n")
        for answer, parse in ((plain, plain_metrics), (opened, open_metrics)):
            families = {family.name: family for family in parse(answer.body.decode())}
            received = sum(
                sample.value
                for sample in families["gateway_requests_received"].samples
                if sample.name == "gateway_requests_received_total"
            )
            ended = sum(
                sample.value
                for sample in families["gateway_requests"].samples
                if sample.name == "gateway_requests_total"
            )
            (opened_now,) = families["gateway_requests_open"].samples
            assert received == ended + opened_now.value >= 2
            assert all(name.startswith(("gateway_", "process_", "python_")) for name in families)
            assert len(families) > 15

    shared.run(law())


def test_what_clients_invent_never_becomes_a_label(shared: Shared) -> None:
    async def law() -> None:
        for number in range(20):
            await shared.running.ask(a_post(a_chat(model=f"invented-{number}")))
            await shared.running.ask(a_get(f"/invented-{number}"))
        body = (await shared.running.ask(a_get("/metrics"))).body
        assert b"invented" not in body

    shared.run(law())


def test_the_fleet_is_shown_as_json(shared: Shared) -> None:
    async def law() -> None:
        answer = await shared.running.ask(a_get("/debug/fleet"))
        assert answer.status == 200
        assert answer.header("content-type") == "application/json"
        assert "healthy" in json.dumps(answer.json())

    shared.run(law())


PATHS = ["/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/m", "/debug/fleet"]


@pytest.mark.parametrize("path", PATHS)
def test_head_answers_as_get_does_without_the_body(shared: Shared, path: str) -> None:
    async def law() -> None:
        async with shared.running.wire() as wire:
            await wire.send(a_get(path).replace(b"GET", b"HEAD", 1))
            head = await wire.reply(method="HEAD")
            await wire.send(a_get(path))
            full = await wire.reply()
            assert (head.status, head.header("content-type")) == (
                full.status,
                full.header("content-type"),
            )
            assert int(head.header("content-length") or 0) > 0

    shared.run(law())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"])
def test_other_methods_are_told_which_there_are(shared: Shared, path: str, method: bytes) -> None:
    async def law() -> None:
        async with shared.running.wire() as wire:
            await wire.send(a_get(path).replace(b"GET", method, 1))
            answer = await wire.reply()
            assert (answer.status, answer.code) == (405, "method_not_allowed")
            assert sorted((answer.header("allow") or "").split(", ")) == ["GET", "HEAD"]
            await wire.send(a_get())
            assert (await wire.reply()).status == 200

    shared.run(law())
