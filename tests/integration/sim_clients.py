"""What the tests of the simulated replica share: a replica, a client, requests, and waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
from openai.types.chat import ChatCompletionMessageParam

from serving.sim.server import Sim, SimSettings, running_sim

USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "tell me of the sea " * 20}]
EXACT: dict[str, Any] = {"ignore_eos": True}
SLOW = SimSettings(profile="cpu-tiny", block_size=16, blocks=4096)
"""Steps of some 30 ms: long enough to do something in the middle of a reply."""


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """The test on its own event loop; nothing of it may be left behind."""

    async def body() -> None:
        await asyncio.wait_for(test(), 30.0)
        await asyncio.sleep(0.01)  # a client may still be closing its generators
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []

    asyncio.run(body())


@asynccontextmanager
async def clients(
    settings: SimSettings | None = None,
) -> AsyncIterator[tuple[Sim, httpx.AsyncClient]]:
    """A replica and a plain client of it."""
    async with running_sim(settings) as sim, httpx.AsyncClient(base_url=sim.url, timeout=10) as web:
        yield sim, web


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> float:
    """Seconds until the condition held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within_s, "waited too long"
        await asyncio.sleep(0.002)
    return time.monotonic() - start


def chat(stream: bool = False, tokens: int = 5, **more: object) -> dict[str, Any]:
    limits = {"max_tokens": tokens, "ignore_eos": True}
    return {"model": "sim", "messages": USER, "stream": stream, **limits, **more}
