"""`python -m tests.bench.peers.load PLAN OUTCOMES`: send a plan's requests, note what comes back.

A process of its own. Open loop: every request leaves at its instant whatever became of those
before, on an idle connection or a new one. Time to first token runs from the write of the request
to the first event with content of the stream. A reply that is refused, broken or late is an outcome
with its fault, never a reason to stop.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Final, cast

import httptools
import msgspec
import uvloop

from tests.bench.peers.trace import Ask, body

_START_S: Final = 0.2
"""Between the last body built and the first request sent."""


class Plan(msgspec.Struct, frozen=True):
    """Requests in order of time; the n-th goes to the n-th port, round and round."""

    ports: tuple[int, ...]
    model: str
    asks: tuple[Ask, ...]
    patience_s: float
    """How long the last replies are waited for, from the last request on."""


class Outcome(msgspec.Struct):
    """How one request fared; `late_s` is how much after its instant it was sent."""

    late_s: float = 0.0
    ttft_s: float | None = None
    total_s: float | None = None
    events: int = 0
    fault: str | None = None


class Exchange(asyncio.Protocol):
    """A keep-alive connection with at most one request on it."""

    def __init__(self, on_idle: Callable[[Exchange], None]) -> None:
        self._on_idle = on_idle
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._outcome: Outcome | None = None
        self._sent_at_s = 0.0
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # a cast: uvloop's transports have the methods of asyncio.Transport but not its name
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes, outcome: Outcome) -> None:
        """Send one request; its outcome is filled in as the reply comes."""
        self._outcome = outcome
        self._sent_at_s = perf_counter()
        self._transport.write(request)

    def close(self) -> None:
        """Close the connection now."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error!r}")
            self._transport.abort()

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200 and self._outcome is not None:
            self._outcome.fault = f"status {status}"

    def on_body(self, chunk: bytes) -> None:
        outcome = self._outcome
        if outcome is None or outcome.fault is not None:
            return
        if outcome.ttft_s is None and b"data:" in chunk:
            outcome.ttft_s = perf_counter() - self._sent_at_s
        outcome.events += chunk.count(b"data:")

    def on_message_complete(self) -> None:
        outcome = self._outcome
        if outcome is None:
            return
        is_short = outcome.fault is None and outcome.ttft_s is None
        self._end("a reply without an event" if is_short else None)
        if self._parser.should_keep_alive():
            self._on_idle(self)
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._end(f"connection lost: {exc!r}")

    def _end(self, fault: str | None) -> None:
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome.total_s = perf_counter() - self._sent_at_s
            outcome.fault = outcome.fault or fault


class Load:
    """Sends a plan; the connections are its own."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._idle: dict[int, list[Exchange]] = {port: [] for port in plan.ports}
        self._all: list[Exchange] = []
        self.outcomes = [Outcome() for _ in plan.asks]

    async def run(self) -> None:
        """Send everything; over when every reply has ended or patience has."""
        plan = self._plan
        requests = [_request(body(ask, plan.model)) for ask in plan.asks]
        gc.collect()
        gc.freeze()
        start_s = perf_counter() + _START_S
        sending: set[asyncio.Task[None]] = set()
        for number, ask in enumerate(plan.asks):
            due_s = start_s + ask.at_s
            if (early_s := due_s - perf_counter()) > 0:
                await asyncio.sleep(early_s)
            outcome = self.outcomes[number]
            outcome.late_s = perf_counter() - due_s
            port = plan.ports[number % len(plan.ports)]
            task = asyncio.create_task(self._send(port, requests[number], outcome))
            sending.add(task)
            task.add_done_callback(sending.discard)
        await self._settle(sending)

    async def _send(self, port: int, request: bytes, outcome: Outcome) -> None:
        idle = self._idle[port]
        while idle:
            exchange = idle.pop()
            if not exchange.is_lost:
                exchange.ask(request, outcome)
                return
        loop = asyncio.get_running_loop()
        try:
            _, exchange = await loop.create_connection(
                lambda: Exchange(idle.append), "127.0.0.1", port
            )
        except OSError as error:
            outcome.total_s, outcome.fault = 0.0, f"no connection: {error}"
            return
        self._all.append(exchange)
        exchange.ask(request, outcome)

    async def _settle(self, sending: set[asyncio.Task[None]]) -> None:
        until_s = perf_counter() + self._plan.patience_s
        while any(each.total_s is None for each in self.outcomes) and perf_counter() < until_s:
            await asyncio.sleep(0.02)
        for task in list(sending):
            task.cancel()
        for outcome in self.outcomes:
            if outcome.total_s is None:
                outcome.fault = "no end in time"
        for exchange in self._all:
            exchange.close()


def _request(chat: bytes) -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(chat), chat)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the plan, send it, write the outcomes."""
    plan_path, outcomes_path = map(Path, arguments or sys.argv[1:])
    load = Load(msgspec.json.decode(plan_path.read_bytes(), type=Plan))
    uvloop.run(load.run())
    outcomes_path.write_bytes(msgspec.json.encode(load.outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
