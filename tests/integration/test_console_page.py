"""The console as a visitor has it: in headless Chromium, before simulated replicas under load.

Where KEEP_SCREENSHOTS names a folder, what the page looked like is kept there.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.tenants.keys import digest
from tests.builders import a_chat, a_post
from tests.chromium import Page, chromium, found_chromium
from tests.house import RunningHouse, a_sim, run, running_house, until
from tests.keyed import ACME, a_document

pytestmark = pytest.mark.skipif(
    found_chromium() is None, reason="no Chromium here: Debian's `chromium` would do"
)

QUICK: dict[str, dict[str, Any]] = {
    "console": {"every_s": 0.2},
    "choose": {"policy": "cache-aware"},
}
TOPICS = ("weirs and sluices ", "turbines and their blades ", "the water of a mill race ")
STATES = "[...document.querySelectorAll('#replicas .state')].map((each) => each.textContent)"
LIVE = "document.getElementById('link').dataset.state == 'live'"

CHECKS = (Path(__file__).parents[1] / "page_checks.js").read_text()
CONTRAST, BASICS = CHECKS + "paleMarks()", CHECKS + "unsaid()"


@asynccontextmanager
async def visiting(running: RunningHouse, folder: Path) -> AsyncIterator[Page]:
    """The page, open; at the end the browser has nothing to complain of."""
    async with chromium(folder) as browser:
        page = await browser.open(f"{running.url}/console")
        yield page
        assert page.complaints == []


async def keep(page: Page, name: str) -> bytes:
    shot = await page.screenshot()
    folder = os.environ.get("KEEP_SCREENSHOTS")
    if folder:
        (Path(folder) / f"{name}.png").write_bytes(shot)
    return shot


@asynccontextmanager
async def loaded(running: RunningHouse, users: int = 6) -> AsyncIterator[None]:
    """So many ask, each one thing after another."""

    async def user(number: int) -> None:
        topic = TOPICS[number % len(TOPICS)] * 40
        while True:
            body = a_chat(topic + str(number), stream=True, max_tokens=20)
            assert (await running.ask(a_post(body))).status == 200
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(user(number)) for number in range(users)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def focused(page: Page) -> str:
    found: str = await page.js(
        "document.activeElement.id || document.activeElement.textContent.trim().slice(0, 20)"
    )
    return found


def test_a_fleet_under_load_is_shown_as_it_is_in_light_and_dark(tmp_path: Path) -> None:
    async def law() -> None:
        async with running_house(QUICK, [a_sim(), a_sim()]) as running:
            async with visiting(running, tmp_path) as page:
                await page.until(f"{LIVE} && {STATES}.length == 2")
                await page.until(f"{STATES}.every((each) => each == 'healthy')")
                async with loaded(running):
                    await page.until("document.querySelectorAll('#heat tbody tr').length == 3")
                    await page.until("document.querySelectorAll('#decisions li').length == 24")
                    await page.until("document.querySelector('.spark-main').getAttribute('d')")
                    shown = set()
                    for scheme in ("light", "dark"):
                        features = {"prefers_color_scheme": scheme}
                        await page.prefer(**features, prefers_reduced_motion="reduce")
                        assert await page.js(CONTRAST) == []
                        shown.add(await keep(page, scheme))
                    assert len(shown) == 2
                    assert await page.js(BASICS) == []
                    assert await page.js("document.getAnimations().length") == 0
                    await page.resize(390, 844)
                    assert await page.js(BASICS) == []
                    await keep(page, "narrow")
                    html = await page.js("document.documentElement.outerHTML")
                    assert "sluices" not in html
                    assert "style=" not in await page.js("document.head.outerHTML")
            await running.until_quiet()
            await until(lambda: not len(running.house.console))

    run(law())


def test_all_can_be_done_with_the_keyboard_and_a_model_tried(tmp_path: Path) -> None:
    async def law() -> None:
        async with running_house(QUICK, [a_sim(), a_sim()]) as running:
            async with visiting(running, tmp_path) as page:
                await page.until(LIVE)
                walked: list[str] = []
                outlined = "getComputedStyle(document.activeElement).outlineStyle != 'none'"
                while walked[-1:] != ["Fleet as JSON"]:
                    await page.press("Tab")
                    walked.append(await focused(page))
                    assert await page.js(outlined), walked[-1]
                    assert len(walked) < 40, walked
                assert walked[:5] == ["Skip to the fleet", "summary", "pause", "theme", "key"]
                assert {"fleet", "chat-log", "chat-model", "chat-text", "chat-send"} < set(walked)
                tree = await page.send("Accessibility.getFullAXTree")
                for node in tree["nodes"]:
                    role = node.get("role", {}).get("value")
                    if role in ("button", "textbox", "combobox", "link", "region", "table"):
                        named = node.get("name", {}).get("value") or role == "table"
                        assert named or node.get("ignored"), node

                await page.js("document.getElementById('key').focus()")
                await page.press("Enter")
                assert await focused(page) == "key-text"
                await page.press("Escape")
                assert await focused(page) == "key"
                await page.js("document.getElementById('pause').focus()")
                await page.press(" ")
                await page.until("document.getElementById('link-text').textContent == 'Paused'")
                await page.press(" ")
                await page.js("document.getElementById('summary').focus()")
                await page.press("Enter")
                said = "document.getElementById('news').textContent"
                await page.until(f"{said}.startsWith('2 of 2 replicas take work')")

                await page.js("document.getElementById('chat-text').focus()")
                await page.type("Name three <b>rivers</b>.")
                await page.press("Enter")
                await page.until("document.querySelector('.facts .by')")
                facts = await page.js("document.querySelector('.facts').textContent")
                assert "first token" in facts
                assert any(replica.id in facts for replica in running.replicas)
                question = await page.js("document.querySelector('.question').textContent")
                assert question == "Name three <b>rivers</b>."
                assert await page.js("document.querySelector('.answer').textContent.length") > 5
                await keep(page, "chat")
            await running.until_quiet()
            assert sum(running.outcomes.values()) == 1

    run(law())


def test_where_there_are_keys_it_asks_for_one_and_keeps_it_nowhere(tmp_path: Path) -> None:
    async def law() -> None:
        (tmp_path / "tenants").mkdir()
        (tmp_path / "tenants" / "tenants.yaml").write_text(a_document())
        hashed = digest(b"the admin's").hex()
        settings = {
            **QUICK,
            "tenants": {"path": str(tmp_path / "tenants")},
            "console": {"every_s": 0.2, "admin_key_sha256": hashed},
        }
        async with running_house(settings, [a_sim()]) as running, chromium(tmp_path) as browser:
            page = await browser.open(f"{running.url}/console")
            await page.until("document.getElementById('key-dialog').open")
            await keep(page, "key")
            for typed, why in (("wrong", "not valid"), (ACME.key, "")):
                await page.js("document.getElementById('key-text').focus()")
                await page.type(typed)
                await page.press("Enter")
                if why:
                    told = "document.getElementById('key-why').textContent"
                    await page.until(f"{told}.includes('{why}')")
            await page.until(LIVE)
            headers = [("Authorization", f"Bearer {ACME.key}")]
            assert (await running.ask(a_post(headers=headers))).status == 200
            await page.until("document.querySelectorAll('#decisions li').length == 1")
            html = await page.js("document.documentElement.outerHTML")
            assert "acme" not in html
            assert ACME.key not in html
            kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
            assert json.loads(await page.js(kept)) == [{}, {}, ""]
            for complaint in page.complaints:  # the browser tells of each 401 it was given
                assert "401" in complaint

    run(law())


def test_it_says_when_the_gateway_is_gone_and_finds_it_again(tmp_path: Path) -> None:
    async def law() -> None:
        async with chromium(tmp_path) as browser:
            async with running_house(QUICK, []) as running:
                port = running.port
                page = await browser.open(f"{running.url}/console")
                await page.until(f"{LIVE} && !document.getElementById('fleet-empty').hidden")
                assert await page.js(BASICS) == []
                await keep(page, "none")
            await page.until("document.getElementById('link').dataset.state == 'lost'")
            trouble = await page.js("document.getElementById('trouble').textContent")
            assert trouble.startswith("The gateway")
            many = [f"http://127.0.0.1:{each}" for each in range(1, 65)]
            again = {**QUICK, "accept": {"port": port}}
            async with running_house(again, many):
                await page.until(f"{LIVE} && {STATES}.length == 64")
                assert await page.js("document.getElementById('trouble').hidden")
                await page.until(f"{STATES}.every((each) => each != 'healthy')")
                await keep(page, "many")

    run(law())
