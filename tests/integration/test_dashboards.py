"""Dashboards and alerts, asked of a real Prometheus that scrapes gateways at all sorts of work."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as dashboard_models
from grafana_foundation_sdk.models import units as grafana_units

from gateway.account.container import memory_limit_bytes
from serving.sim.server import running_sim
from serving.sim.settings import KvEventSettings
from tests.builders import MODEL, a_chat, a_post
from tests.dashboards import DASHBOARDS, FOLDER, Dashboard, document, queries, text
from tests.house import RunningHouse, a_sim, run, running_house, until
from tests.integration.test_batches import a_batch, a_client, a_file, a_line
from tests.integration.test_peers import free_ports, linked
from tests.integration.test_spiffe import trusting
from tests.keyed import ACME, OTHER, a_document
from tests.prometheus import Prometheus, running_prometheus
from tests.scripted import Scripted, a_reply
from tests.workload_api import REPLICA, Authority, serving_workload_api

ROOT = Path(__file__).resolve().parents[2]
RULES = [ROOT / "charts/gateway/rules" / name for name in ("demand.yaml", "alerts.yaml")]
ALERTS = [
    rule
    for path in RULES
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
GRAFANA = {
    "$__rate_interval": "15s", "$__range": "1m", "$namespace": "models", "$model": ".*",
    "$tenant": ".*",
}  # fmt: skip
TELLING = a_sim(kv_events=KvEventSettings("tcp://127.0.0.1:*", "tcp://127.0.0.1:*"))
ALLOWED = b'{"result": {"allow": true}}'
NOWHERE = "http://127.0.0.1:9/v1/traces"
LATE, NEVER, SLOW = "late", "never", "slow"
"""Models at zero: one whose requests are soon sent away, one that is waited for in vain, and one
that comes."""
TRUE_HERE = ("HeadraceModelNotComing", "HeadraceHoldFilling")
"""Alerts that are pending, for NEVER is waited for and may hold one request."""

MAY_BE_EMPTY = {
    'gateway_cache_audits_total{prediction="events",verdict!="exact"}': "all may have been foreseen"
}
if memory_limit_bytes() is None:
    MAY_BE_EMPTY |= {
        "gateway_memory_limit_bytes": "the container these tests run in has no limit",
    }


@asynccontextmanager
async def trusting_nobody(folder: Path) -> AsyncIterator[RunningHouse]:
    """A gateway with an SVID, before a replica that is none of those it trusts."""
    authority = Authority()
    with serving_workload_api(folder, authority) as api:
        stranger = Scripted(tls=authority.server(f"{REPLICA}-of-another"))
        async with (
            stranger.running(),
            running_house(trusting(api), [stranger.url]) as running,
        ):
            yield running


@asynccontextmanager
async def gateways(
    folder: Path,
) -> AsyncIterator[tuple[list[RunningHouse], Callable[[], object]]]:
    """Two that know of each other, of which the first asks for keys and has a store of batches;
    and one with an SVID. With them: how to let the model that is slow to come have its replica."""
    path = folder / "tenants.yaml"
    path.write_text(a_document(None, {"name": "other", "requests_per_minute": 2}))
    ill = Scripted(a_reply(status=503))
    models = [
        {"name": LATE, "max_hold_s": 0.2},
        {"name": NEVER, "held": {"requests": 1, "tokens": 10_000, "size_bytes": 10_000}},
        SLOW,
    ]
    common: dict[str, dict[str, Any]] = {
        "choose": {"policy": "cache-aware", "read_every_prompt": True, "shadow": "round-robin"},
        "scale": {"linger_s": 60.0},
    }
    ports = free_ports(2)
    async with AsyncExitStack() as stack:
        comes = await stack.enter_async_context(running_sim(a_sim(SLOW)))
        telling = [await stack.enter_async_context(running_sim(TELLING)) for _ in range(2)]
        urls = [sim.url for sim in telling]
        file = folder / "fleet.yaml"
        file.write_text("replicas: []")
        judge = await stack.enter_async_context(Scripted(a_reply(ALLOWED)).running())
        second = {
            **common,
            "peers": linked(ports, 1),
            "fleet": {"kv_events": {"listen": "off"}},
            "trust": {"opa": {"url": f"{judge.url}/v1/data/headrace/decision", "cache_s": 0}},
        }
        other = await stack.enter_async_context(running_house(second, urls))
        third = await stack.enter_async_context(trusting_nobody(folder))
        first: dict[str, dict[str, Any]] = {
            "tenants": {"path": str(path)},
            "batch": {"folder": str(folder / "batches")},
            "fleet": {"models": models, "file": str(file), "watch_every_s": 0.1},
            "peers": linked(ports, 0),
            "account": {"access_log": "off", "traces": {"endpoint": NOWHERE, "ratio": 1.0}},
        }
        one = await stack.enter_async_context(running_house({**common, **first}, [*urls, ill]))
        yield [one, other, third], lambda: file.write_text(json.dumps({"replicas": [comes.url]}))


def post(body: bytes, key: str = ACME.key, path: str = "/v1/chat/completions") -> bytes:
    return a_post(body, path=path, headers=[("Authorization", f"Bearer {key}")])


async def round_of_work(houses: list[RunningHouse], number: int) -> None:
    """Streams of conversations, small calls, mistakes, what is beyond limits, and garbage."""
    one, other, _ = houses
    beginning = "it was said before, and will be said again " * 12
    chats = [
        post(a_chat(f"{beginning}{number % 3}", stream=stream, max_tokens=8,
                    stream_options={"include_usage": True} if stream else None))
        for stream in (True, True, False)
    ]  # fmt: skip
    calls = [
        post(
            json.dumps({"model": MODEL, "input": [[number, each]]}).encode(), path="/v1/embeddings"
        )
        for each in range(8)
    ]
    others = [post(a_chat("hello"), key=OTHER.key), post(b"{"), post(a_chat("x", model=NEVER))]
    work = [one.ask(each) for each in (*chats, *calls, *others)]
    work.append(one.ask(post(a_chat("too late", model=LATE))))
    work.append(one.ask(b"GARBAGE\r\n\r\n"))
    work.append(other.ask(a_post(a_chat(f"{beginning}{number}", max_tokens=8))))
    await asyncio.gather(*work)


@asynccontextmanager
async def working(houses: list[RunningHouse], comes: Callable[[], object]) -> AsyncIterator[None]:
    """They have work for as long as this lasts; a request is held all the while, and one was."""
    one = houses[0]
    held = await one.connect()
    await held.send(post(a_chat("is anybody there?", model=NEVER)))
    waiting = asyncio.create_task(one.ask(post(a_chat("come!", model=SLOW))))
    await until(lambda: one.house.cold.held == 2)
    comes()

    async def work() -> None:
        number = 0
        async with a_client(one, ACME.key) as client:
            await a_batch(client, a_file(map(a_line, map(str, range(40)))))
            while True:
                await round_of_work(houses, number)
                number += 1
                await asyncio.sleep(0.2)

    busy = asyncio.create_task(work())
    try:
        yield
    finally:
        busy.cancel()
        with suppress(asyncio.CancelledError):
            await busy
        await waiting
        held.abort()
        for house in houses:
            await house.until_quiet()


async def is_answered(prometheus: Prometheus, query: str) -> bool:
    """Is there a number?"""
    return not all(map(math.isnan, await prometheus.query(query)))


async def until_answered(prometheus: Prometheus, asked: Iterable[str]) -> list[str]:
    """Those that are not, though asked until all there is should have happened, for rates need two
    scrapes; one at a time, for many at once would leave the gateways no time to work."""
    left = list(asked)
    with suppress(TimeoutError):
        async with asyncio.timeout(80.0):
            while left := [query for query in left if not await is_answered(prometheus, query)]:
                await asyncio.sleep(0.2)
    return left


def in_time(query: str) -> str:
    """With values for Grafana's variables."""
    for name, value in GRAFANA.items():
        query = query.replace(name, value)
    return query


def selectors(query: str) -> set[str]:
    """What is read of the store: names of series, each with its matchers, without time."""
    found = re.findall(r"(?<![\w:.])(?:\w+:)?(?:gateway|process)_[\w:]+(?:\{[^}]*\})?", query)
    return set(found)


def everything_asked() -> list[str]:
    """Queries of all panels, and what alerts read. An alert itself has no answer if all is well."""
    asked = {in_time(query) for each in DASHBOARDS for _, query in queries(each)}
    asked |= {selector for rule in ALERTS for selector in selectors(rule["expr"])}
    return sorted(asked)


def excuse(query: str) -> str | None:
    return next((why for part, why in MAY_BE_EMPTY.items() if part in query), None)


async def rules_of(prometheus: Prometheus) -> dict[str, dict[str, Any]]:
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        reply = await client.get(f"{prometheus.url}/api/v1/rules")
    groups = reply.json()["data"]["groups"]
    return {rule["name"]: rule for group in groups for rule in group["rules"]}


def test_every_query_is_answered_and_every_rule_is_evaluated(tmp_path: Path) -> None:
    async def law() -> None:
        async with gateways(tmp_path) as (houses, comes), working(houses, comes):
            targets = [f"127.0.0.1:{house.port}" for house in houses]
            labels = {"namespace": "models"}
            with running_prometheus(tmp_path, targets, labels, RULES) as prometheus:
                assert not await until_answered(prometheus, ["gateway_cold_starts_total > 0"])
                asked = [query for query in everything_asked() if excuse(query) is None]
                assert not await until_answered(prometheus, asked)
                wrong = "gateway_requests_total{model_name=~'.+'}"
                assert not await is_answered(prometheus, wrong), "a slip would be found out"

                rules = await rules_of(prometheus)
                async with asyncio.timeout(30.0):
                    while any(rules[name]["state"] == "inactive" for name in TRUE_HERE):
                        await asyncio.sleep(0.2)
                        rules = await rules_of(prometheus)
                assert len(rules) == len(ALERTS)
                assert not {name: rule["lastError"] for name, rule in rules.items()
                            if rule["health"] != "ok"}  # fmt: skip

    run(law(), within_s=110.0)


each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.name)


@each_dashboard
def test_the_file_is_what_is_written_down_here(dashboard: Dashboard) -> None:
    """`python -m tests.dashboards` brings it up to date."""
    assert (FOLDER / f"{dashboard.name}.json").read_text(encoding="utf-8") == text(dashboard)


def test_there_are_no_other_files() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {each.name for each in DASHBOARDS}


def members(value: Any, at: str = "") -> dict[str, Any]:
    """Of a document, by their path; empty lists and objects are not told from none."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {
            path: leaf for key, each in pairs for path, leaf in members(each, f"{at}/{key}").items()
        }
    return {at: value}


@each_dashboard
def test_grafana_knows_every_member(dashboard: Dashboard) -> None:
    """Read and written again by Grafana's own library, nothing is lost: what it does not know, it
    would not have kept."""
    ours = document(dashboard)
    theirs = json.loads(JSONEncoder().encode(dashboard_models.Dashboard.from_json(ours)))
    written = members(theirs)
    assert {
        path: value for path, value in members(ours).items() if written.get(path) != value
    } == {}
    slip = document(dashboard)
    slip["panels"][1]["fieldConfig"]["defaults"]["units"] = "s"
    theirs = json.loads(JSONEncoder().encode(dashboard_models.Dashboard.from_json(slip)))
    assert not members(slip).keys() <= members(theirs).keys(), "a slip would be found out"


@each_dashboard
def test_panels_say_what_they_show_and_do_not_overlap(dashboard: Dashboard) -> None:
    panels = document(dashboard)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    units = [value for value in vars(grafana_units).values() if isinstance(value, str)]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"] in units, panel["title"]
            assert len(panel["targets"]) <= 8
    titles = [title for title, _ in queries(dashboard)]
    assert len(panels) - len(dashboard.rows) == len(set(titles)), "titles are told apart"


def test_whatever_we_measure_is_somewhere_to_be_seen() -> None:
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("gateway/**/*metrics.py")]
    told = {name for source in sources for name in re.findall(r'"(gateway_[a-z_]+)"', source)}
    assert len(told) > 60
    shown = " ".join(query for each in DASHBOARDS for _, query in queries(each))
    suffix = "(_total|_bucket)?"
    assert not [name for name in told if not re.search(rf"\b{name}{suffix}\b", shown)]
