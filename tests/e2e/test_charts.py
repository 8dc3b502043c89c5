"""What the charts install is a real engine: vLLM on CPU, from the example of the chart of a model.

Its model is the one that a package carries, and it has one rank, on whatever cores there are here:
the rest is as the example says it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.engine_args import EngineKind
from serving.folders import cache_root
from serving.machine import choose_engine, look
from tests.charts.site import OPEN, a_site, until_served
from tests.charts.tools import CHARTS, Charts, charts_or_skip, read_values
from tests.e2e.conftest import CHAT, START_LIMIT_S
from tests.house import run, until


@pytest.fixture
def charts(tmp_path: Path) -> Charts:
    choice = choose_engine(look(), None)
    if choice.kind is EngineKind.SIM:
        pytest.skip(f"no real engine here: {choice.reason}")
    return charts_or_skip(tmp_path / "helm")


def test_an_installed_replica_is_a_real_engine(charts: Charts, tmp_path: Path) -> None:
    values = read_values(CHARTS / "model/ci/cpu-values.yaml")
    values["model"]["id"] = CHAT
    values["parallelism"]["tensor"] = 1
    values["engine"]["threads"] = ""
    values["drain"] = {"seconds": 20}
    image = {"HEADRACE_CACHE": str(cache_root(os.environ, Path.home()))}

    async def law() -> None:
        async with (
            a_site(charts, tmp_path, {"headrace-replica": image}) as site,
            httpx.AsyncClient(trust_env=False, timeout=120) as client,
        ):
            await site.install("headrace", "gateway", OPEN)
            await site.install("chat", "model", values, within=f"{START_LIMIT_S:.0f}s")
            front = site.url("headrace")
            await until_served(client, front, CHAT)
            body: dict[str, Any] = {
                "model": CHAT,
                "messages": [{"role": "user", "content": "Say hello."}],
                "max_tokens": 5,
            }
            answer = await client.post(f"{front}/v1/chat/completions", json=body)
            assert answer.json()["usage"]["completion_tokens"] == 5
            (replica,) = (await client.get(f"{front}/debug/fleet")).json()["replicas"]
            assert replica["health"] == "healthy"
            await site.helm("uninstall", "chat")
            await until(lambda: not site.pods("chat"), within_s=60)

    run(law(), within_s=START_LIMIT_S + 120)
