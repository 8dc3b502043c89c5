"""The demand for a model, as whoever scales it reads it over HTTP."""

from __future__ import annotations

from typing import Any

import orjson
from prometheus_client.parser import text_string_to_metric_families

from gateway.demand import Demand
from gateway.vocabulary import ModelName
from tests.builders import MODEL, a_chat, a_get, a_post
from tests.house import RunningHouse, a_sim, run, running_house, until
from tests.integration.test_cold_hold import a_house_at_zero, a_waiter

ADAPTER = ModelName("tuned")


async def scale(running: RunningHouse, model: str = MODEL) -> Demand:
    answer = await running.ask(a_get(f"/scale/{model}"))
    assert answer.status == 200
    return Demand(**answer.json())


def series(text: bytes) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("model", "")): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name.startswith("gateway_demand_")
    }


def test_a_model_nobody_asks_for_has_every_figure_at_zero() -> None:
    async def law() -> None:
        async with running_house({"fleet": {"models": ["idle"]}}, [a_sim()]) as running:
            found = await scale(running)
            assert found == Demand(ModelName(MODEL), replicas_ready=1)
            assert await scale(running, "idle") == Demand(ModelName("idle"))
            metrics = await running.ask(a_get("/metrics"))
            values = series(metrics.body)
            names = {name for name, _ in values}
            assert len(names) == 10
            for name in names:
                ready = float(name == "gateway_demand_replicas_ready")
                assert values[name, MODEL] == ready
                assert values[name, "idle"] == 0.0

    run(law())


def test_a_request_makes_demand_and_its_end_takes_it_away() -> None:
    async def law() -> None:
        settings = {"scale": {"linger_s": 0.2}}
        async with running_house(settings, [a_sim()]) as running, running.wire() as wire:
            running.sims[0].faults.merge({"slow": 50})
            await wire.send(a_post(a_chat(stream=True, max_tokens=400)))
            await until(lambda: running.house.accounts.open_entries == 1)
            await wire.head()
            found = await scale(running)
            assert found.is_active
            assert found.replicas_needed >= 1.0
            assert (found.queued_requests, found.inflight_requests) == (0, 1)
            assert found.inflight_tokens > 200
            wire.abort()
            await running.until_quiet()
            demands = running.house.demands
            await until(lambda: not demands.demand(ModelName(MODEL)).is_active)
            assert await scale(running) == Demand(ModelName(MODEL), replicas_ready=1)

    run(law())


def test_who_is_held_for_a_model_at_zero_is_demand_at_once(tmp_path: Any) -> None:
    async def law() -> None:
        async with a_house_at_zero(tmp_path) as (running, _):
            told: list[ModelName] = []
            running.house.demands.on_activation(told.append)
            assert not (await scale(running)).is_active
            wire = await a_waiter(running, a_post(a_chat(stream=True)))
            assert told == [MODEL]
            found = await scale(running)
            assert found.is_active
            assert found.replicas_needed >= 1.0
            assert found.queued_requests == 1
            assert found.queued_tokens > 0
            assert found.replicas_ready == 0
            await wire.close()

    run(law())


def test_text_for_prometheus_where_it_is_asked_for() -> None:
    async def law() -> None:
        async with running_house({}, [a_sim()]) as running:
            for path, accept in (
                (f"/scale/{MODEL}?format=prometheus", "*/*"),
                (f"/scale/{MODEL}", "text/plain;version=0.0.4"),
            ):
                answer = await running.ask(
                    b"GET %b HTTP/1.1\r\nhost: x\r\naccept: %b\r\n\r\n"
                    % (path.encode(), accept.encode()),
                    method="GET",
                )
                assert answer.status == 200
                assert (answer.header("content-type") or "").startswith("text/plain")
                values = series(answer.body)
                assert values["gateway_demand_replicas_ready", MODEL] == 1.0
                assert {model for _, model in values} == {MODEL}

    run(law())


def test_who_is_not_known_or_not_understood_is_told_so() -> None:
    async def law() -> None:
        async with running_house({}, [a_sim()]) as running:
            unknown = await running.ask(a_get("/scale/nobody"))
            assert (unknown.status, unknown.code) == (404, "model_not_found")
            odd = await running.ask(a_get(f"/scale/{MODEL}?format=xml"))
            assert (odd.status, odd.code) == (400, "invalid_request")
            await running.ask(a_post(orjson.dumps({"model": "made-up", "messages": []})))
            assert set(running.house.demands.models()) == {MODEL}

    run(law())
