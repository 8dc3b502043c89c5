"""What is predicted of caches, against what replicas say they found: events, tokens and audit."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from gateway.choose.dispatch import Grade
from gateway.kv_cache import Certainty
from serving.sim.server import KvEventSettings
from tests.builders import a_chat, a_post
from tests.house import RunningHouse, a_sim, run, running_house, until

CACHE_AWARE = {"choose": {"policy": "cache-aware", "read_every_prompt": True}}
TELLING = a_sim(kv_events=KvEventSettings("tcp://127.0.0.1:*", "tcp://127.0.0.1:*"))
TURNS = 5
JSON = {"content-type": "application/json"}
PAUSE_S = 0.05
"""Events are a little behind responses; nobody types that fast."""


async def talk(running: RunningHouse, name: str, turns: int) -> None:
    """A conversation; every turn repeats all before."""
    messages: list[dict[str, str]] = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"{name} {turn}: " + "so it was said " * 12})
        reply = await running.ask(a_post(a_chat(messages=messages, max_tokens=8)))
        assert reply.status == 200
        answer = json.loads(reply.body)["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": answer})
        await asyncio.sleep(PAUSE_S)


async def until_heard(running: RunningHouse) -> None:
    heard = running.house.heard
    await until(
        lambda: all(each.certainty is Certainty.EXACT for each in heard.values()) and len(heard) > 0
    )


async def until_taught(running: RunningHouse) -> None:
    """A first prompt shows how blocks are named, and how the model lays out its chats."""
    await running.ask(a_post(a_chat("how are blocks named here? " * 10)))
    caches = running.house.caches
    await until(
        lambda: any(each.grade is Grade.EXACT and each.blocks for each in caches().values())
    )


def test_all_that_replicas_find_was_known_from_their_events() -> None:
    async def law() -> None:
        async with running_house(CACHE_AWARE, replicas=[TELLING, TELLING]) as running:
            await until_heard(running)
            await until_taught(running)
            for name in ("ann", "ben", "cyd"):
                await talk(running, name, TURNS)

            def audits() -> int:
                tallies = [state.audit.settled for state in running.house.caches().values()]
                return sum(each.exact + each.over + each.under for each in tallies)

            # A replica's blocks, and so their size, are first told of with its first prompt.
            await until(lambda: audits() >= 3 * TURNS - len(running.replicas))
            known = [state for state in running.house.caches().values() if state.blocks]
            assert known
            for state in known:
                assert (state.audit.settled.over, state.audit.settled.under) == (0, 0)
                assert state.grade is Grade.EXACT

    run(law())


def test_without_events_what_was_sent_is_what_is_believed() -> None:
    async def law() -> None:
        async with running_house(CACHE_AWARE, replicas=[a_sim(), a_sim()]) as running:
            await talk(running, "ann", TURNS)
            states = running.house.caches().values()
            assert {state.grade for state in states} == {Grade.APPROXIMATE}
            assert sum(state.audit.predicted.exact for state in states) > 1
            assert not any(state.audit.predicted.over for state in states)
            assert not any(state.audit.settled.exact for state in states)

    run(law())


def test_beginnings_learn_their_blocks_where_only_a_replica_can_be_asked() -> None:
    system = {"role": "system", "content": "you are of few words and " * 80}

    def asked(text: str) -> bytes:
        return a_chat(messages=[system, {"role": "user", "content": text * 40}])

    async def law() -> None:
        async with running_house(CACHE_AWARE, replicas=[TELLING, TELLING]) as running:
            await until_heard(running)
            await until_taught(running)
            await running.ask(a_post(asked("well? ")))
            for one in running.replicas:  # now it is on both, and we know of one
                async with httpx.AsyncClient(base_url=one.address.url, headers=JSON) as somebody:
                    answer = await somebody.post("/v1/chat/completions", content=asked("or so? "))
                    assert answer.status_code == 200

            async def rows() -> dict[str, Any]:
                shown = await running.ask(a_post(asked("what? "), path="/debug/route"))
                return {row["replica"]: row for row in shown.json()["replicas"]}

            async with asyncio.timeout(5):  # its lesson is learnt by and by
                while not all(row["hit_tokens"] for row in (await rows()).values()):
                    await asyncio.sleep(PAUSE_S)
            for row in (await rows()).values():
                assert row["grade"] == "exact"
                assert row["hit_tokens"] >= 480, "all of the system prompt, by the names of blocks"

    run(law())


def test_the_degree_of_parallelism_is_read_from_a_response() -> None:
    async def law() -> None:
        async with running_house(replicas=[a_sim()]) as running:
            (replica,) = running.replicas
            assert replica.facts.tensor_parallel is None
            await running.ask(a_post(a_chat("hello")))
            assert replica.facts.tensor_parallel == 1

    run(law())
