"""The render routes of a simulated replica: off as in vLLM by default, and true when on."""

from __future__ import annotations

from typing import Any

import pytest

from serving.sim.server import SimSettings
from tests.integration.sim_clients import chat, clients, run

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat(),
    "/v1/completions": {"model": "sim", "prompt": "tell me of the sea ", "max_tokens": 2},
    "/v1/messages": {"model": "sim", "messages": chat()["messages"], "max_tokens": 2},
    "/v1/responses": {"model": "sim", "input": "tell me of the sea ", "max_output_tokens": 2},
}


def _prompt_tokens(usage: dict[str, int]) -> int:
    found = usage.get("prompt_tokens", usage.get("input_tokens"))
    assert found is not None
    return found


@pytest.mark.parametrize("route", ROUTES)
def test_without_scale_out_rendering_is_forbidden(route: str) -> None:
    async def test() -> None:
        async with clients() as (_, web):
            answer = await web.post(f"{route}/render", json=ROUTES[route])
            assert answer.status_code == 403
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("PermissionDeniedError", 403)
            assert "--enable-scale-out" in error["message"]

    run(test)


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_rendered_is_what_is_computed(route: str) -> None:
    async def test() -> None:
        async with clients(SimSettings(scale_out=True)) as (sim, web):
            answer = await web.post(f"{route}/render", json=ROUTES[route])
            assert answer.status_code == 200
            rendered = answer.json()
            rendered = rendered[0] if isinstance(rendered, list) else rendered
            assert sim.engine.totals.prompt_tokens == 0
            computed = await web.post(route, json=ROUTES[route])
            assert _prompt_tokens(computed.json()["usage"]) == len(rendered["token_ids"])
            text = await web.post("/detokenize", json={"tokens": rendered["token_ids"]})
            assert "tell me of the sea" in text.json()["prompt"]
            assert rendered["sampling_params"]["max_tokens"] in (2, 5)

    run(test)


def test_rendering_refuses_what_the_route_would_refuse() -> None:
    async def test() -> None:
        async with clients(SimSettings(scale_out=True, max_model_len=16)) as (_, web):
            too_long = await web.post("/v1/chat/completions/render", json=chat())
            assert too_long.status_code == 400
            unknown = await web.post("/v1/chat/completions/render", json=chat(model="other"))
            assert unknown.status_code == 404

    run(test)
