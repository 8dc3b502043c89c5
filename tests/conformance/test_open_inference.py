"""The Open Inference Protocol's health and metadata, as published: paths, statuses and schemas.

Source: kserve/open-inference-protocol at 18d5991e, specification/protocol/open_inference_rest.yaml.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.builders import MODEL, a_chat, a_get, a_post
from tests.house import Answer, RunningHouse, a_sim, run, running_house, until
from tests.keyed import ACME, OTHER, a_document, bearing, keyed_house
from tests.scripted import Held, Scripted

METADATA_SERVER: Mapping[str, type] = {"name": str, "version": str, "extensions": list}
METADATA_MODEL: Mapping[str, type] = {"name": str, "platform": str}
ERROR: Mapping[str, type] = {"error": str}
"""The required members of the published schemas, and their types."""

OPTIONAL = {"versions": list, "inputs": list, "outputs": list}


async def get(running: RunningHouse, path: str, headers: Iterable[tuple[str, str]] = ()) -> Answer:
    return await running.ask(a_get(path, headers=headers), method="GET")


def conforms(answer: Answer, schema: Mapping[str, type]) -> Any:
    """The document, which has what the schema requires and nothing that no schema knows."""
    assert answer.header("content-type") == "application/json"
    document = answer.json()
    for member, kind in schema.items():
        assert isinstance(document[member], kind), document
    assert set(document) <= set(schema) | set(OPTIONAL)
    return document


def test_a_gateway_that_serves_says_so() -> None:
    async def law() -> None:
        async with running_house() as running:
            for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready"):
                assert (await get(running, path)).status == 200
            for path in ("/v2", "/v2/"):
                answer = await get(running, path)
                assert answer.status == 200
                assert conforms(answer, METADATA_SERVER)["name"] == "headrace"
            answer = await get(running, f"/v2/models/{MODEL}")
            assert answer.status == 200
            assert conforms(answer, METADATA_MODEL)["name"] == MODEL

    run(law())


@pytest.mark.parametrize("path", ["/v2/models/none", "/v2/models/none/ready", "/v2/models/"])
def test_a_model_that_there_is_not_is_404_in_the_protocols_words(path: str) -> None:
    async def law() -> None:
        async with running_house() as running:
            answer = await get(running, path)
            assert answer.status == 404
            conforms(answer, ERROR)

    run(law())


def test_models_with_a_slash_in_their_names_are_models() -> None:
    async def law() -> None:
        async with running_house(replicas=[a_sim("Qwen/Qwen3-0.6B")]) as running:
            for name in ("Qwen/Qwen3-0.6B", "Qwen%2FQwen3-0.6B"):
                assert (await get(running, f"/v2/models/{name}/ready")).status == 200
                answer = await get(running, f"/v2/models/{name}")
                assert conforms(answer, METADATA_MODEL)["name"] == "Qwen/Qwen3-0.6B"

    run(law())


def test_a_model_at_zero_is_known_and_not_ready_though_the_gateway_is() -> None:
    async def law() -> None:
        settings = {"fleet": {"models": ["asleep"]}}
        async with running_house(settings) as running:
            assert (await get(running, "/v2/health/ready")).status == 200
            assert (await get(running, "/v2/models/asleep")).status == 200
            assert (await get(running, "/v2/models/asleep/ready")).status == 503

    run(law())


def test_a_model_whose_last_replica_fails_is_not_ready() -> None:
    async def law() -> None:
        async with running_house() as running:
            assert (await get(running, f"/v2/models/{MODEL}/ready")).status == 200
            running.sims[0].crash("exit")
            await until(lambda: not running.house.is_ready)
            assert (await get(running, "/v2/health/live")).status == 200
            assert (await get(running, "/v2/health/ready")).status == 503
            assert (await get(running, f"/v2/models/{MODEL}/ready")).status in (404, 503)
            await running.sims[0].revive()
            await until(lambda: running.house.is_ready)
            assert (await get(running, f"/v2/models/{MODEL}/ready")).status == 200

    run(law())


def test_a_gateway_that_drains_is_live_and_not_ready() -> None:
    async def law() -> None:
        held = Held()
        async with (
            running_house({"admit": {"drain_grace_s": 5.0}}, [Scripted(held)]) as running,
            running.wire() as streaming,
            running.wire() as wire,
        ):
            await streaming.send(a_post(a_chat("held", stream=True)))
            await streaming.head()
            running.house.admission.drain()
            await wire.send(a_get("/v2/health/live") + a_get("/v2/health/ready"))
            assert (await wire.reply(method="GET")).status == 200
            assert (await wire.reply(method="GET")).status == 503
            held.released.set()

    run(law())


def test_where_keys_are_asked_for_models_are_shown_to_those_who_may_use_them(
    tmp_path: Path,
) -> None:
    async def law() -> None:
        document = a_document({"models": [MODEL]}, {"name": "other", "models": ["another"]})
        async with keyed_house(tmp_path, document) as running:
            for path in ("/v2/health/live", "/v2/health/ready", "/v2"):
                assert (await get(running, path)).status == 200
            for path in (f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/ready"):
                assert (await get(running, path)).status == 401
                assert (await get(running, path, bearing(ACME.key))).status == 200
                assert (await get(running, path, bearing(OTHER.key))).status == 404

    run(law())
