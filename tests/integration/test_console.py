"""The console's routes: what a browser lets the page do, who may watch, and that nobody is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import monotonic
from gateway.console.recent import Recent
from gateway.tenants.keys import digest
from tests.builders import a_chat, a_get, a_post
from tests.house import RunningHouse, Shared, Wire, a_sim, run, running_house, shared_house, until
from tests.keyed import ACME, a_document

QUICK = {"console": {"every_s": 0.05, "max_watchers": 3}}
STATIC = Path(__file__).resolve().parents[2] / "gateway" / "console" / "static"
LONG = "the same beginning of every prompt, long enough to be told apart " * 12


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with shared_house({**QUICK, "choose": {"policy": "cache-aware"}}, [a_sim(), a_sim()]) as house:
        yield house


def bearing(key: str) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {key}")]


@asynccontextmanager
async def watching(running: RunningHouse, key: str = "") -> AsyncIterator[Wire]:
    """A stream of snapshots, its head read."""
    async with running.wire() as wire:
        await wire.send(a_get("/console/events", headers=bearing(key) if key else []))
        head = await wire.head()
        assert head.status == 200
        assert head.header("content-type") == "text/event-stream; charset=utf-8"
        assert head.header("cache-control") == "no-store"
        yield wire


async def snapshot(wire: Wire) -> dict[str, Any]:
    async with asyncio.timeout(5):
        event = await anext(wire.chunks())
    number, data, *_ = event.decode().split("\n")
    document: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert number == f"id: {document['number']}"
    return document


async def until_told(wire: Wire, requests: int) -> dict[str, Any]:
    """The first snapshot in which so many requests have been decided on, and have ended."""
    while True:
        document = await snapshot(wire)
        if len(document["decisions"]) == requests and not document["open_requests"]:
            return document


def watchers(running: RunningHouse) -> int:
    return len(running.house.console)


@pytest.mark.parametrize("path", ["", *(f"/{each.name}" for each in sorted(STATIC.iterdir()))])
def test_files_come_with_a_policy_that_lets_nothing_else_in(shared: Shared, path: str) -> None:
    async def law() -> None:
        answer = await shared.running.ask(a_get(f"/console{path}"))
        assert answer.status == 200
        assert answer.body == (STATIC / (path.strip("/") or "index.html")).read_bytes()
        policy = answer.header("content-security-policy") or ""
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
        assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
        assert "unsafe" not in policy
        assert answer.header("x-content-type-options") == "nosniff"
        again = a_get(f"/console{path}", headers=[("If-None-Match", answer.header("etag") or "")])
        assert (await shared.running.ask(again)).status == 304

    shared.run(law())


@pytest.mark.parametrize("path", ["/console/nothing.js", "/console/..%2froutes.py", "/console/"])
def test_there_is_nothing_else(shared: Shared, path: str) -> None:
    async def law() -> None:
        assert (await shared.running.ask(a_get(path))).code == "unknown_path"
        assert (await shared.running.ask(a_post(path="/console"))).code == "method_not_allowed"

    shared.run(law())


def test_pages_hold_nothing_inline_and_load_nothing_from_elsewhere() -> None:
    page = (STATIC / "index.html").read_text()
    for forbidden in ("<style", " style=", "onclick", "javascript:", "http:", "https:"):
        assert forbidden not in page
    for script in STATIC.glob("*.js"):
        text = script.read_text()
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacent", "eval(", "https:", "Storage"):
            assert forbidden not in text, script.name
        assert len(text.splitlines()) < 400


def test_a_watcher_is_told_what_goes_on_and_no_word_of_it(shared: Shared) -> None:
    running = shared.running

    async def law() -> None:
        async with watching(running) as wire:
            first = await snapshot(wire)
            assert len(first["replicas"]) == 2
            assert {each["health"] for each in first["replicas"]} == {"healthy"}
            for _ in range(3):
                chat = a_post(a_chat(LONG, stream=True))
                assert (await running.ask(chat)).status == 200
            told = await until_told(wire, 3)
            (family,) = told["families"]
            assert family["requests"] == 3
            assert len(family["held"]) == 2
            assert max(family["held"]) > 0.8 * family["prompt_tokens"]
            made = told["decisions"]
            assert len(made) == 3
            assert made[-1]["decision"]["reason"] == "cached"
            assert made[-1]["decision"]["chosen"]["replica"] in {one.id for one in running.replicas}
            assert told["received"] == running.house.accounts.received
            (meters,) = told["meters"]
            assert sum(meters["ttft_s"]["counts"]) == 3
            assert "beginning" not in json.dumps(told)
        await until(lambda: not watchers(running))

    shared.run(law())


def test_nothing_is_noted_while_nobody_looks(shared: Shared) -> None:
    running = shared.running

    async def law() -> None:
        recent: Recent = running.house.life.rooms.recent
        async with watching(running) as wire:
            await snapshot(wire)
            assert (await running.ask(a_post(a_chat(LONG)))).status == 200
            assert recent.decisions
            assert recent.hottest(9, monotonic())
        await until(lambda: not watchers(running))
        frames = repr(running.house.console)
        assert (await running.ask(a_post(a_chat(LONG)))).status == 200
        await asyncio.sleep(0.2)
        assert not recent.is_wanted
        assert not recent.decisions
        assert not recent.hottest(9, monotonic())
        assert repr(running.house.console) == frames

    shared.run(law())


def test_watchers_are_bounded_and_freed_however_they_leave(shared: Shared) -> None:
    running = shared.running

    async def law() -> None:
        for leave in (Wire.close, Wire.abort, Wire.half_close):
            wires = [await running.connect() for _ in range(3)]
            for wire in wires:
                await wire.send(a_get("/console/events"))
                assert (await wire.head()).status == 200
                await snapshot(wire)
            refused = await running.ask(a_get("/console/events"))
            assert (refused.status, refused.code) == (503, "too_many_watchers")
            assert refused.header("retry-after")
            for wire in wires:
                left = leave(wire)
                if left is not None:
                    await left
            await until(lambda: not watchers(running))
            for wire in wires:
                wire.abort()
        async with watching(running) as wire:
            await snapshot(wire)
        await until(lambda: not watchers(running))

    shared.run(law())


def test_who_asks_for_the_head_of_the_stream_has_it_and_is_done(shared: Shared) -> None:
    async def law() -> None:
        asked = a_get("/console/events").replace(b"GET", b"HEAD", 1)
        answer = await shared.running.ask(asked, method="HEAD")
        assert (answer.status, watchers(shared.running)) == (200, 0)
        assert (answer.header("content-type") or "").startswith("text/event-stream")

    shared.run(law())


def test_who_reads_nothing_holds_up_nobody(shared: Shared) -> None:
    running = shared.running

    async def law() -> None:
        async with watching(running), watching(running) as reader:
            numbers = [(await snapshot(reader))["number"] for _ in range(6)]
            assert numbers == list(range(numbers[0], numbers[0] + 6))
        await until(lambda: not watchers(running))

    shared.run(law())


def test_where_there_are_keys_a_key_shows_the_fleet_and_the_admin_key_the_names(
    tmp_path: Path,
) -> None:
    admin = "a key that somebody made up at random"

    async def law() -> None:
        (tmp_path / "tenants.yaml").write_text(a_document())
        hashed = digest(admin.encode()).hex()
        settings: dict[str, dict[str, Any]] = {
            "tenants": {"path": str(tmp_path)},
            "console": {**QUICK["console"], "admin_key_sha256": hashed},
        }
        async with running_house(settings, [a_sim(), a_sim()]) as running:
            assert (await running.ask(a_get("/console"))).status == 200
            for headers in ([], bearing("wrong"), bearing(hashed)):
                refused = await running.ask(a_get("/console/events", headers=headers))
                assert (refused.status, refused.code) == (401, "invalid_api_key")
            async with watching(running, ACME.key) as own, watching(running, admin) as all_of_it:
                await snapshot(own)
                asked = a_post(headers=bearing(ACME.key))
                assert (await running.ask(asked)).status == 200
                hidden = await until_told(own, 1)
                shown = await until_told(all_of_it, 1)
            assert (hidden["names_tenants"], shown["names_tenants"]) == (False, True)
            assert [each["tenant"] for each in hidden["decisions"]] == [""]
            assert [each["tenant"] for each in shown["decisions"]] == ["acme"]
            assert "acme" not in json.dumps(hidden)
            refused = await running.ask(a_post(headers=bearing(admin)))
            assert refused.status == 401  # it opens no model
            await until(lambda: not watchers(running))

    run(law())


def test_without_tenants_an_admin_key_is_the_only_one() -> None:
    async def law() -> None:
        console = {**QUICK["console"], "admin_key_sha256": digest(b"the one").hex()}
        async with running_house({"console": console}) as running:
            for headers in ([], bearing("another")):
                refused = await running.ask(a_get("/console/events", headers=headers))
                assert (refused.status, refused.code) == (401, "invalid_api_key")
            async with watching(running, "the one") as wire:
                assert (await snapshot(wire))["names_tenants"]
            assert (await running.ask(a_post())).status == 200  # as anybody may

    run(law())


def test_a_fleet_of_none_can_be_watched() -> None:
    async def law() -> None:
        async with running_house(QUICK, []) as running, watching(running) as wire:
            told = await snapshot(wire)
            assert (told["replicas"], told["meters"], told["families"]) == ([], [], [])

    run(law())


def test_it_can_be_turned_off_and_ends_when_the_gateway_drains() -> None:
    async def law() -> None:
        async with running_house({"console": {"enabled": False}}) as running:
            assert (await running.ask(a_get("/console"))).code == "unknown_path"
            assert (await running.ask(a_get("/console/events"))).code == "unknown_path"
        async with running_house(QUICK) as running, watching(running) as wire:
            await snapshot(wire)
            running.server.stop()
            async with asyncio.timeout(5):
                assert not (await wire.rest()).endswith(b"data: ")
            assert not watchers(running)

    run(law())
