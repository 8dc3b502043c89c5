"""Replicas that do wrong on the wire, and a house in front of them."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.builders import a_chat, a_post
from tests.house import RunningHouse, running_house, until
from tests.scripted import Received, Script, Scripted

RARELY: dict[str, dict[str, Any]] = {"fleet": {"probe_every_s": 60.0}}
"""Replicas are probed once: what is known of them after that, requests have told."""

EVENT = b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\n'


@asynccontextmanager
async def house_before(
    *replicas: Scripted, settings: dict[str, dict[str, Any]] | None = None
) -> AsyncIterator[RunningHouse]:
    """A house in front of scripted replicas that are all ready."""
    async with AsyncExitStack() as stack:
        for replica in replicas:
            await stack.enter_async_context(replica.running())
        urls = [replica.url for replica in replicas]
        running = await stack.enter_async_context(
            running_house({**RARELY, **(settings or {})}, urls)
        )
        await until(lambda: all(one.takes_work for one in running.replicas))
        yield running
        await running.until_quiet()


def script(*parts: bytes | float | str) -> Script:
    """Write the bytes, wait the seconds; "reset", "close" and "hang" end it."""

    async def play(
        received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for part in parts:
            match part:
                case bytes():
                    writer.write(part)
                    await writer.drain()
                case "reset":
                    await asyncio.sleep(0.02)  # a reset takes with it what was not yet read
                    peer = writer.get_extra_info("socket")
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
                    raise ConnectionResetError
                case "close":
                    writer.close()
                    raise ConnectionResetError
                case "hang":
                    await reader.read()
                case _:
                    await asyncio.sleep(float(part))

    return play


def a_stream_post(path: str = "/v1/chat/completions") -> bytes:
    return a_post(a_chat(stream=True), path=path)


@asynccontextmanager
async def a_black_hole(port: int) -> AsyncIterator[None]:
    """A port whose backlog is full: who connects is never answered."""
    with socket.socket() as hole:
        hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        hole.bind(("127.0.0.1", port))
        hole.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        await asyncio.sleep(0.05)
        try:
            yield
        finally:
            for filler in fillers:
                filler.close()


@asynccontextmanager
async def house_before_a_black_hole(
    settings: dict[str, dict[str, Any]] | None = None, *, others: tuple[str, ...] = ()
) -> AsyncIterator[RunningHouse]:
    async with AsyncExitStack() as stack:
        gone = await stack.enter_async_context(Scripted().running())
        urls = [gone.url, *others]
        async with running_house({**RARELY, **(settings or {})}, urls) as running:
            await until(lambda: all(one.takes_work for one in running.replicas))
            await stack.aclose()
            async with a_black_hole(gone.port):
                yield running
                await running.until_quiet()
