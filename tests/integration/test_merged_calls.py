"""Many small calls before few replicas: fewer calls arrive, and everybody gets their own."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.vocabulary import ModelName, Outcome
from tests.builders import MODEL, a_post
from tests.house import RunningHouse, a_sim, run, running_house

CALLERS = 24


def a_call(number: int, path: str = "/v1/embeddings", **fields: object) -> bytes:
    items = [[number, 7, each] for each in range(1 + number % 3)]
    document = {"model": MODEL, "input": items, **fields}
    return a_post(json.dumps(document).encode(), path=path)


async def everybody(running: RunningHouse, path: str = "/v1/embeddings") -> list[dict[str, object]]:
    replies = await asyncio.gather(
        *(running.ask(a_call(number, path)) for number in range(CALLERS))
    )
    assert {reply.status for reply in replies} == {200}
    return [json.loads(reply.body) for reply in replies]


def plain(document: dict[str, object]) -> dict[str, object]:
    """Without what differs from call to call."""
    return {name: value for name, value in document.items() if name not in ("id", "created")}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/classify", "/pooling"])
def test_everybody_gets_what_they_would_have_got_alone(path: str) -> None:
    async def law() -> None:
        async with running_house({"merge": {"enabled": False}}, replicas=[a_sim()]) as alone:
            expected = await everybody(alone, path)
            assert alone.house.relay.busy == 0
        async with running_house(replicas=[a_sim()]) as merged:
            got = await everybody(merged, path)
            await merged.until_quiet()
            assert merged.outcomes == {Outcome.FINISHED: CALLERS}
            (replica,) = merged.replicas
            assert merged.house.accounts.attempts[replica.id, "ok"] < CALLERS / 2
            meters = merged.house.accounts.by_model[ModelName(MODEL)]
            asked = sum(each["usage"]["prompt_tokens"] for each in got)  # type: ignore[index]
            assert meters.prompt_tokens == asked
        assert [plain(each) for each in got] == [plain(each) for each in expected]

    run(law())


def test_a_bad_call_fails_alone() -> None:
    async def law() -> None:
        async with running_house(replicas=[a_sim()]) as running:
            bad = a_post(
                json.dumps({"model": MODEL, "input": [[1, -5]]}).encode(), path="/v1/embeddings"
            )
            asked = [running.ask(a_call(number)) for number in range(6)]
            replies = await asyncio.gather(*asked[:3], running.ask(bad), *asked[3:])
            assert [reply.status for reply in replies] == [200, 200, 200, 400, 200, 200, 200]
            await running.until_quiet()

    run(law())


def test_callers_who_leave_are_out_and_the_others_are_served() -> None:
    async def law() -> None:
        async with running_house(replicas=[a_sim()]) as running:
            async with running.wire() as one, running.wire() as other:
                await one.send(a_call(1))
                await other.send(a_call(2))
                kept = asyncio.create_task(running.ask(a_call(3)))
                await asyncio.sleep(0)
            assert (await kept).status == 200
            await running.until_quiet()
            assert sum(running.outcomes.values()) == 3

    run(law())


def test_a_long_list_goes_to_all_replicas() -> None:
    async def law() -> None:
        settings = {"merge": {"max_items": 8}}
        async with running_house(settings, replicas=[a_sim(), a_sim()]) as running:
            items = [[5, each] for each in range(40)]
            body = json.dumps({"model": MODEL, "input": items}).encode()
            reply = await running.ask(a_post(body, path="/v1/embeddings"))
            answer = json.loads(reply.body)
            assert [each["index"] for each in answer["data"]] == list(range(40))
            assert answer["usage"]["prompt_tokens"] == 80
            attempts = running.house.accounts.attempts
            assert {attempts[one.id, "ok"] for one in running.replicas} == {1}

    run(law())
