"""A replica is tried once for how it lays out chats, whoever asks meanwhile, and not in vain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.kv_cache import Tokenised
from gateway.parse.openai import parse_json
from gateway.request import GenerationRequest
from gateway.tokens.layout import trials
from gateway.tokens.remote import NotTold, Remote
from serving.sim.tokens import render_chat, token_string, tokenize
from tests.builders import a_route
from tests.house import run


@dataclass
class Tokenizing:
    """POST /tokenize as the simulator answers it; `statuses` are of the next answers."""

    url: str = ""
    tells_strings: bool = True
    statuses: list[int] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        question = json.loads(await reader.readexactly(length))
        self.asked.append(question)
        messages = [(each["role"], each["content"]) for each in question["messages"]]
        tokens = tokenize(render_chat(messages))
        strings = list(map(token_string, tokens)) if self.tells_strings else None
        body = json.dumps({"tokens": tokens, "token_strs": strings}).encode()
        status = self.statuses.pop(0) if self.statuses else 200
        writer.write(b"HTTP/1.1 %d .\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[Tokenizing, Remote]]:
    replica = Tokenizing()
    server = await asyncio.start_server(replica.serve, "127.0.0.1", 0)
    replica.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/tokenize"
    with ThreadPoolExecutor(1) as thread:
        yield replica, Remote(10.0, None, thread)
    server.close()
    await asyncio.sleep(0.02)  # connections see that they are closed


def a_prompt(**more: Any) -> GenerationRequest:
    contents = ("be kind to everybody", "who are you?", "nobody", "and where?")
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    body = {"model": "m", "messages": messages, **more}
    return parse_json(json.dumps(body).encode(), a_route(), lambda _, size: size // 4)


async def read(replica: Tokenizing, remote: Remote, request: GenerationRequest) -> Tokenised:
    return await remote.read(request, replica.url, None, lambda _: None)


def test_trials_are_made_once_for_all_who_ask_alike() -> None:
    async def law() -> None:
        async with asking() as (replica, remote):
            some = await asyncio.gather(*(read(replica, remote, a_prompt()) for _ in range(5)))
            assert [len(each.edges) for each in some] == [5] * 5
            assert len(replica.asked) == len(trials()) + 5
            tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
            await read(replica, remote, a_prompt(tools=tools))
            assert len(replica.asked) == 2 * len(trials()) + 6, "tools may stand anywhere"
            assert all(each["tools"] for each in replica.asked[-len(trials()) :])
            salted = await read(replica, remote, a_prompt(cache_salt="s"))
            assert salted.salt == "s"
            assert len(replica.asked) == 2 * len(trials()) + 7

    run(law())


def test_a_replica_that_tells_no_strings_is_not_tried() -> None:
    async def law() -> None:
        async with asking() as (replica, remote):
            replica.tells_strings = False
            told = await read(replica, remote, a_prompt())
            assert len(told.edges) == len(replica.asked) == 1

    run(law())


def test_trials_that_fail_teach_nothing_and_are_not_made_again_at_once() -> None:
    async def law() -> None:
        async with asking() as (replica, remote):
            replica.statuses = [200, 200, 503]
            assert len((await read(replica, remote, a_prompt())).edges) == 1
            assert len((await read(replica, remote, a_prompt())).edges) == 1
            assert len(replica.asked) == 4
            replica.statuses = [503]
            with pytest.raises(NotTold, match="503"):
                await read(replica, remote, a_prompt())

    run(law())


def test_conversations_that_a_template_refuses_are_left_out() -> None:
    async def law() -> None:
        async with asking() as (replica, remote):
            replica.statuses = [200, 200, 400, 200, 200, 400]
            assert len((await read(replica, remote, a_prompt())).edges) == 5
            replica.statuses = [400]
            with pytest.raises(NotTold, match="refuses"):
                await read(replica, remote, a_prompt())

    run(law())


def test_who_leaves_during_the_trials_keeps_nobody_from_trying() -> None:
    async def law() -> None:
        async with asking() as (replica, remote):
            leaving = asyncio.ensure_future(read(replica, remote, a_prompt()))
            while len(replica.asked) < 3:
                await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            assert len((await read(replica, remote, a_prompt())).edges) == 5

    run(law())
