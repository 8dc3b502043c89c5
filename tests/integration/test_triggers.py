"""The triggers that docs/scaling.md shows, each asked as KEDA asks it, of a gateway that runs."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc.aio
import yaml

from gateway.settings import Settings
from tests.builders import a_chat, a_get, a_post
from tests.house import RunningHouse, run, running_house, until
from tests.keda_client import a_ref, stubs
from tests.prometheus import Prometheus, binary, running_prometheus

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "charts/gateway/rules/demand.yaml"
BLOCKS = [
    yaml.safe_load(block)
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/scaling.md").read_text(), re.DOTALL)
]
TRIGGERS: dict[str, dict[str, str]] = {
    trigger["type"]: trigger["metadata"]
    for block in BLOCKS
    for trigger in (block.get("triggers") or block.get("spec", {}).get("triggers", ()))
}
MODEL = TRIGGERS["external-push"]["model"]
NAMESPACE = "models"


@asynccontextmanager
async def at_zero(**more: dict[str, Any]) -> AsyncIterator[RunningHouse]:
    """A gateway that knows the model of the page, which has no replica."""
    fleet = {"replicas": [], "models": [MODEL], "kv_events": {"listen": "off"}}
    scale = {"linger_s": 0.0, "keda": {"port": 0}}
    async with running_house({"fleet": fleet, "scale": scale, **more}, []) as running:
        yield running


@asynccontextmanager
async def held(running: RunningHouse) -> AsyncIterator[None]:
    """A request that is held, for as long as this lasts."""
    wire = await running.connect()
    await wire.send(a_post(a_chat(model=MODEL)))
    await until(lambda: running.house.cold.held == 1)
    yield
    wire.abort()
    await running.until_quiet()


@asynccontextmanager
async def keda_of(running: RunningHouse) -> AsyncIterator[Any]:
    scaler = running.house.keda
    assert scaler is not None
    async with grpc.aio.insecure_channel(f"127.0.0.1:{scaler.port}") as channel:
        yield stubs()[1].ExternalScalerStub(channel)


def test_the_page_shows_a_trigger_of_each_kind_and_settings_that_can_be_used() -> None:
    assert set(TRIGGERS) == {"external-push", "metrics-api", "prometheus"}
    settings = Settings.of(
        {**next(block for block in BLOCKS if "fleet" in block), "tenants": {"anonymous": True}}
    )
    assert MODEL in {model.name for model in settings.fleet.models}
    assert settings.scale.keda.port == int(TRIGGERS["external-push"]["scalerAddress"][-4:])


def test_external_push() -> None:
    async def law() -> None:
        async with at_zero() as running, keda_of(running) as keda:
            ref = a_ref(**TRIGGERS["external-push"])
            assert not (await keda.IsActive(ref)).result
            pushed = asyncio.create_task(keda.StreamIsActive(ref).read())
            await asyncio.sleep(0.3)
            assert not pushed.done()
            asked_at = time.monotonic()
            async with held(running):
                assert (await pushed).result
                assert time.monotonic() - asked_at < 0.05
                assert (await keda.IsActive(ref)).result
                (spec,) = (await keda.GetMetricSpec(ref)).metricSpecs
                assert spec.targetSizeFloat == 1.0
                asked = stubs()[0].GetMetricsRequest(
                    scaledObjectRef=ref, metricName=spec.metricName
                )
                (value,) = (await keda.GetMetrics(asked)).metricValues
                assert value.metricValueFloat >= 1.0
            await asyncio.sleep(0.01)
            assert not (await keda.IsActive(ref)).result

    run(law())


def test_a_gateway_that_leaves_ends_the_stream_in_order_while_it_drains() -> None:
    async def law() -> None:
        async with at_zero(admit={"drain_grace_s": 5.0}) as running, keda_of(running) as keda:
            stream = keda.StreamIsActive(a_ref(**TRIGGERS["external-push"]))
            wire = await running.connect()
            await wire.send(a_post(a_chat(model=MODEL)))
            assert (await stream.read()).result
            running.server.stop()
            while await stream.read() is not grpc.aio.EOF:
                pass
            assert await stream.code() is grpc.StatusCode.OK
            assert running.house.cold.held == 1, "what was taken is still waited for"
            wire.abort()

    run(law())


def test_metrics_api() -> None:
    async def law() -> None:
        trigger = TRIGGERS["metrics-api"]
        assert trigger["aggregationType"] == "max"
        path = urlsplit(trigger["url"]).path

        async def needed(running: RunningHouse) -> float:
            answer = await running.ask(a_get(path), method="GET")
            assert answer.status == 200
            return float(answer.json()[trigger["valueLocation"]])

        async with at_zero() as running:
            assert await needed(running) == 0
            async with held(running):
                assert await needed(running) >= float(trigger["targetValue"])

    run(law())


async def the_only(prometheus: Prometheus, query: str, least: float, most: float) -> None:
    """Wait until the query's only series is within these. KEDA wants exactly one."""
    found: list[float] = []
    for _ in range(100):
        found = await prometheus.query(query)
        if len(found) == 1 and least <= found[0] <= most:
            return
        assert len(found) <= 1, found
        await asyncio.sleep(0.1)
    raise AssertionError(f"{query} is {found}, not from {least} to {most}")


def test_prometheus_scrapes_gateways_and_answers_the_trigger_s_query(tmp_path: Path) -> None:
    async def law() -> None:
        trigger = TRIGGERS["prometheus"]
        assert trigger["ignoreNullValues"] == "false"
        async with at_zero() as running, at_zero() as other:
            targets = [f"127.0.0.1:{each.port}" for each in (running, other)]
            labels = {"namespace": NAMESPACE}
            with running_prometheus(tmp_path, targets, labels, [RULES]) as prometheus:
                await the_only(prometheus, trigger["query"], 0, 0)
                async with held(running):
                    await the_only(prometheus, trigger["query"], float(trigger["threshold"]), 100)
                await the_only(prometheus, trigger["query"], 0, 0)
                for group in yaml.safe_load(RULES.read_text())["groups"]:
                    for rule in group["rules"]:
                        await the_only(prometheus, f'{rule["record"]}{{model="{MODEL}"}}', 0, 1e9)

    run(law())


def test_the_recording_rules_do_what_their_test_says() -> None:
    rules = ROOT / "tests/rules/demand.yaml"
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(rules)]):
        done = subprocess.run(
            [binary("promtool"), *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_we_say_in_metrics_is_as_promtool_likes_it() -> None:
    texts: list[str] = []

    async def law() -> None:
        async with at_zero() as running:
            texts.append((await running.ask(a_get("/metrics"), method="GET")).body.decode())

    run(law())
    demand = [line for line in texts[0].splitlines() if "gateway_demand" in line]
    command, told = [binary("promtool"), "check", "metrics"], "\n".join([*demand, ""])
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
