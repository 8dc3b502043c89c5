"""OPA's REST data API, as far as a gateway asks it, with Rego evaluated for real (by regorus).

`POST /v1/data/a/b` answers `{"result": ...}` with the document `data.a.b` for the body's `input`,
and `{}` where that is undefined. `answer` puts something else in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import regorus

from tests.scripted import a_reply


@dataclass(slots=True)
class PolicyServer:
    """One sidecar. `asked` holds every `input`; `answer` goes before the
    policy; `open` are the questions that have no answer yet."""

    policy: str
    data: Mapping[str, Any] = field(default_factory=dict)
    answer: bytes | None = None
    pause_s: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        """Of the decision."""
        return f"http://127.0.0.1:{self.port}/v1/data/headrace/decision"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[PolicyServer]:
        """Listen inside the `with`; on the same port if it has been there before."""
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(
                self._serve(reader, writer), name="scripted"
            )
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tuple(tasks):
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.lower().split("\r\n")
            assert "content-type: application/json" in lines, head
            length = next(line for line in lines if line.startswith("content-length:"))
            body = json.loads(await reader.readexactly(int(length.split(":")[1])))
            self.asked.append(body["input"])
            await self._think()
            writer.write(self.answer if self.answer is not None else self._decide(head, body))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the gateway has left
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _think(self) -> None:
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            await asyncio.sleep(self.pause_s)
        finally:
            self.open -= 1

    def _decide(self, head: str, body: dict[str, Any]) -> bytes:
        path = head.split(" ")[1].removeprefix("/v1/data/")
        engine = regorus.Engine()
        engine.add_policy("policy.rego", self.policy)
        engine.add_data(dict(self.data))
        engine.set_input(body["input"])
        found = json.loads(engine.eval_query_as_json("data." + path.replace("/", ".")))
        results = found.get("result")
        document = {"result": results[0]["expressions"][0]["value"]} if results else {}
        return a_reply(json.dumps(document).encode())
