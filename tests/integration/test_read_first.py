"""A prompt whose tokens could change the choice is read before it, and none is waited for long."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway.choose.policies import policy
from gateway.kv_cache import Certainty
from gateway.lessons import GIVE_UP_AFTER, Lessons
from gateway.parse.openai import parse_json
from gateway.request import GenerationRequest
from gateway.settings import ChooseSettings, TokensSettings
from gateway.tokens.service import Tokens
from gateway.vocabulary import ReplicaAddress
from serving.sim.server import KvEventSettings, running_sim
from tests.builders import MODEL, a_chat, a_post, a_replica, a_route
from tests.house import RunningHouse, a_sim, run, running_house, until

TELLING = a_sim(kv_events=KvEventSettings("tcp://127.0.0.1:*", "tcp://127.0.0.1:*"))
EXPLAIN = [("X-Headrace-Explain", "1")]
NAMES = ("ann", "ben", "cyd", "dan", "eve", "fay")
STRANGERS = ("gil", "hal", "ida", "joy", "kim", "lou")
"""Who does not come to us: so that replicas hold more than we sent even when all others have."""

Messages = list[dict[str, str]]


def cache_aware(first_s: float) -> dict[str, dict[str, Any]]:
    return {"choose": {"policy": "cache-aware", "tokenise_first_s": first_s}}


def begun(name: str) -> Messages:
    words = random.Random(name).choices(("sea", "wide", "it", "was", "said", "and", "so"), k=2500)
    return [{"role": "user", "content": f"{name}: " + " ".join(words)}]


async def turn(running: RunningHouse, messages: Messages) -> dict[str, str]:
    """One more turn; what is said of the choice."""
    reply = await running.ask(a_post(a_chat(messages=messages, max_tokens=8), headers=EXPLAIN))
    assert reply.status == 200
    messages.append(json.loads(reply.body)["choices"][0]["message"])
    messages.append({"role": "user", "content": "and then?"})
    said = reply.header("x-headrace-decision")
    assert said is not None
    return dict(part.split("=") for part in said.split("; "))


async def sent_by_another(url: str, messages: Messages) -> None:
    """A first turn that we do not see."""
    async with httpx.AsyncClient(base_url=url) as web:
        body = {"model": MODEL, "messages": messages, "max_tokens": 8}
        reply = await web.post("/v1/chat/completions", json=body)
    messages.append(reply.json()["choices"][0]["message"])
    messages.append({"role": "user", "content": "and then?"})


async def until_untold(running: RunningHouse) -> None:
    """All that replicas hold has been told, and we see that it is not from us."""
    holdings = running.house.chooser.holdings
    assert holdings is not None
    heard = running.house.heard
    await until(
        lambda: (
            all(each.certainty is Certainty.EXACT for each in heard.values())
            and len(holdings.untold) == len(running.replicas)
        )
    )


@pytest.mark.parametrize("first_s", [5.0, 0.0])
def test_a_gateway_finds_what_another_has_sent(first_s: float) -> None:
    async def law() -> None:
        async with running_sim(TELLING) as here, running_sim(TELLING) as there:
            chats = {name: begun(name) for name in (*NAMES, *STRANGERS)}
            homes = {}
            for at, name in enumerate(chats):
                url = (here, there)[at % 2].url
                homes[name] = url.removeprefix("http://")
                await sent_by_another(url, chats[name])
            async with running_house(cache_aware(first_s), replicas=[here.url, there.url]) as other:
                await until_untold(other)
                said = {name: await turn(other, chats[name]) for name in NAMES}
                found = {name: int(each["hit_tokens"]) for name, each in said.items()}
                counts = dict(other.house.read_first)
                if not first_s:
                    assert set(found.values()) == {0}
                    assert set(counts.values()) == {0}
                    return
                assert all(each["replica"] == homes[name] for name, each in said.items())
                assert min(found.values()) > 2000
                assert counts == {"in_time": len(NAMES), "late": 0, "unread": 0}
                done = other.house.tokens.statistics.done
                assert done <= len(NAMES), "none is read twice"
                again = {name: await turn(other, chats[name]) for name in NAMES}
                assert all(each["replica"] == homes[name] for name, each in again.items())
                assert other.house.read_first["in_time"] == len(NAMES), "they are known by now"

    run(law())


def long_request() -> GenerationRequest:
    body = a_chat(messages=begun("gus"))
    return parse_json(body, a_route(), lambda _, size: size // 4)


@asynccontextmanager
async def lessons_of_a_silent_replica(first_s: float) -> AsyncIterator[tuple[Lessons, Any]]:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    replica = a_replica()
    port = server.sockets[0].getsockname()[1]
    replica.address = ReplicaAddress(f"http://127.0.0.1:{port}")
    tokens = Tokens(TokensSettings(ask_timeout_s=0.2), lambda _: None)
    settings = ChooseSettings(policy="cache-aware", tokenise_first_s=first_s)
    chooser = policy(settings, random.Random(1))
    yield Lessons(chooser, tokens, lambda *_: None, settings), replica
    tokens.close()
    server.close()
    await asyncio.sleep(0.05)  # connections see that they are closed


def test_who_does_not_answer_is_not_waited_for_and_soon_not_asked() -> None:
    async def law() -> None:
        async with lessons_of_a_silent_replica(0.02) as (lessons, replica):
            loop = asyncio.get_running_loop()
            for count in range(GIVE_UP_AFTER):
                begun_at = loop.time()
                request = await lessons.read_first(long_request(), [replica])
                assert loop.time() - begun_at < 0.15
                assert lessons.read_first_by_result["late"] == count + 1
                assert request.reading is not None
            told: list[object] = []
            assert request.reading is not None
            request.reading.when_over(told.append)
            assert told == []
            await until(lambda: told == [None])
            assert (await lessons.read_first(long_request(), [replica])).reading is None

    run(law())


def test_a_client_that_leaves_meanwhile_leaves_nothing_behind() -> None:
    async def law() -> None:
        async with lessons_of_a_silent_replica(5.0) as (lessons, replica):
            waiting = asyncio.ensure_future(lessons.read_first(long_request(), [replica]))
            await asyncio.sleep(0.02)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert set(lessons.read_first_by_result.values()) == {0}

    run(law())
