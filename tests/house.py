"""A real gateway and simulated replicas on this event loop: the harness of tests/integration.

    async def law() -> None:
        async with running_house({"accept": {"keep_alive_s": 1}}, replicas=[a_sim()]) as running:
            async with running.wire() as wire:
                await wire.send(a_post())
                assert (await wire.reply()).status == 200
            await running.until_quiet()
            assert running.outcomes == {Outcome.FINISHED: 1}

    run(law())

Everything listens on loopback, on ports the system chooses; the access log is off; signals stay the
test runner's. Leaving the `with` stops the gateway, then the replicas, and fails if a task is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gateway.app import House
from gateway.fleet.ledger import Replica
from gateway.server import Server
from gateway.settings import Settings
from gateway.vocabulary import Outcome
from serving.sim.server import Sim, running_sim
from serving.sim.settings import SimSettings
from tests.builders import MODEL
from tests.scripted import Scripted

PROBING = {"probe_every_s": 0.1, "probe_timeout_s": 2.0, "cool_down_s": 0.3}
"""Probes are quick, so that tests need not wait for them."""

DEAF = {"kv_events": {"listen": "off"}}
"""A test that names no policy has no use for events. Scripted replicas and black holes tell none;
to ask them would add connections that such a test knows nothing of."""


Behind = SimSettings | Scripted | str
"""A replica: simulated, scripted, or somewhere by URL."""


def run(test: Coroutine[Any, Any, None], *, loop: str = "uvloop", within_s: float = 60.0) -> None:
    """Run one test to its end on a loop of its own: "uvloop", as the gateway's, or "asyncio"."""

    async def bounded() -> None:
        async with asyncio.timeout(within_s):
            await test

    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(bounded())


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the loop of this name; None is asyncio's own."""
    if name == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def until(is_true: Callable[[], object], *, within_s: float = 5.0) -> None:
    """Look until it is true. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not is_true():
            await asyncio.sleep(0.002)


def a_sim(model: str = MODEL, **fields: Any) -> SimSettings:
    """A quick simulated replica serving one model; `fields` are SimSettings'."""
    return SimSettings(**{"models": (model,), **fields})


class Shared:
    """One gateway for many tests, which is started once: `shared.run(law(shared.running))`.

    Every test leaves it quiet, so what one did is nothing to the next.
    """

    def __init__(self, runner: asyncio.Runner, running: RunningHouse) -> None:
        self._runner = runner
        self.running = running

    def run(self, test: Coroutine[Any, Any, None], *, within_s: float = 30.0) -> None:
        """Run one test to its end on the shared loop."""

        async def bounded() -> None:
            async with asyncio.timeout(within_s):
                await test
            await self.running.until_quiet()

        self._runner.run(bounded())


@contextlib.contextmanager
def shared_house(
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    replicas: Sequence[Behind] | None = None,
    *,
    loop: str = "uvloop",
) -> Iterator[Shared]:
    """`running_house` for a module's fixture."""
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        stack = AsyncExitStack()
        entering = stack.enter_async_context(running_house(settings, replicas))
        running = runner.run(_of(entering))
        try:
            yield Shared(runner, running)
        finally:
            runner.run(stack.aclose())


async def _of(entering: Coroutine[Any, Any, RunningHouse]) -> RunningHouse:
    return await entering


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as a client reads it; header names in lower case, in their order."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    version: str = "HTTP/1.1"
    chunks: tuple[bytes, ...] = ()  # as framed; empty where the body was not chunked

    def header(self, name: str) -> str | None:
        """The only field of this name, or None. Fails where there are two."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, found
        return found[0] if found else None

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """`error.code` of a body in OpenAI's error shape, which is checked on the way."""
        error = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert error["type"].endswith("_error")
        assert self.header("content-type") == "application/json"
        return str(error["code"])


class Wire:
    """A client's connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Write all of it. A gateway that has closed already is no error here."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    def half_close(self) -> None:
        """Say that nothing more will be sent, and go on reading."""
        self.writer.write_eof()

    def abort(self) -> None:
        """Leave at once."""
        self.writer.transport.abort()

    async def head(self) -> Answer:
        """The next response's head alone, its body still unread."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        version, status, *_ = status_line.split(" ", 2)
        fields = (line.partition(":") for line in lines)
        headers = tuple((name.lower(), value.strip()) for name, _, value in fields)
        return Answer(int(status), headers, b"", version)

    async def reply(self, *, method: str = "POST", within_s: float = 10.0) -> Answer:
        """The next response, whole. Raises IncompleteReadError where it is cut short."""
        async with asyncio.timeout(within_s):
            head = await self.head()
            if method == "HEAD" or head.status in (204, 304) or head.status < 200:
                return head
            if head.header("transfer-encoding") == "chunked":
                chunks = [chunk async for chunk in self.chunks()]
                return Answer(
                    head.status, head.headers, b"".join(chunks), head.version, tuple(chunks)
                )
            length = head.header("content-length")
            if length is None:
                body = await self.reader.read()
            else:
                body = await self.reader.readexactly(int(length))
            return Answer(head.status, head.headers, body, head.version)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks of a body, up to and with the last one's end."""
        while True:
            size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
            piece = await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
            if not size:
                return
            yield piece

    async def rest(self, *, within_s: float = 5.0) -> bytes:
        """What still comes until the gateway closes. Raises TimeoutError if it does not."""
        async with asyncio.timeout(within_s):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def close(self) -> None:
        """Close in order."""
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


@dataclass(slots=True)
class RunningHouse:
    """A gateway that listens, and the replicas behind it."""

    house: House
    server: Server
    sims: tuple[Sim, ...]
    port: int = field(init=False)

    def __post_init__(self) -> None:
        self.port = self.server.port

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def outcomes(self) -> dict[Outcome, int]:
        """How requests have ended."""
        return self.house.accounts.outcomes()

    @property
    def reasons(self) -> dict[str, int]:
        """How many ended early, by reason."""
        reasons: dict[str, int] = {}
        for ending, count in self.house.accounts.endings.items():
            if ending.reason:
                reasons[ending.reason] = reasons.get(ending.reason, 0) + count
        return reasons

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The fleet's view, in the order of `sims` and further URLs."""
        return self.house.replicas

    @property
    def ledgers(self) -> list[tuple[int, int]]:
        """(requests, prompt tokens) in flight, per replica."""
        return [(one.inflight_requests, one.inflight_prompt_tokens) for one in self.replicas]

    @property
    def is_quiet(self) -> bool:
        """Nothing is open anywhere."""
        house = self.house
        return (
            house.accounts.open_entries == 0
            and house.admission.open_requests == 0
            and house.relay.busy == 0
            and not house.gate.crowd.count.requests
            and not house.cold.held
            and not any(requests or tokens for requests, tokens in self.ledgers)
            and not any(sim.engine.running or sim.engine.waiting for sim in self.sims)
        )

    async def until_quiet(self, *, within_s: float = 5.0) -> None:
        """Wait until nothing is open anywhere, then check that the sums balance."""
        with contextlib.suppress(TimeoutError):
            await until(lambda: self.is_quiet, within_s=within_s)
        assert self.is_quiet, (self.house.accounts, self.ledgers, self.house.relay, self.sims)
        self.check_sums()

    def check_sums(self) -> None:
        """The conservation law: received = the sum of all outcomes + open."""
        accounts = self.house.accounts
        assert accounts.received == sum(self.outcomes.values()) + accounts.open_entries, accounts

    async def connect(self, *, tls: ssl.SSLContext | None = None, limit_bytes: int = 2**16) -> Wire:
        """A connection that the caller closes."""
        name = "localhost" if tls is not None else None
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=tls, server_hostname=name, limit=limit_bytes
        )
        return Wire(reader, writer)

    @asynccontextmanager
    async def wire(self, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
        """A connection, closed at the exit."""
        wire = await self.connect(tls=tls)
        try:
            yield wire
        finally:
            await wire.close()

    async def ask(self, data: bytes, *, method: str = "POST") -> Answer:
        """Send bytes on a connection of their own and read one response."""
        async with self.wire() as wire:
            await wire.send(data)
            return await wire.reply(method=method)


@asynccontextmanager
async def running_house(
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    replicas: Sequence[Behind] | None = None,
) -> AsyncIterator[RunningHouse]:
    """A gateway in front of `replicas`: one simulated replica serving `MODEL` by default.

    `settings` go over the harness's own, section by section. The body starts when every replica
    that runs here takes work.
    """
    async with AsyncExitStack() as stack:
        sims: list[Sim] = []
        urls: list[str] = []
        ready: set[str] = set()
        for replica in [a_sim()] if replicas is None else replicas:
            if isinstance(replica, str):
                urls.append(replica)
            elif isinstance(replica, Scripted):
                await stack.enter_async_context(replica.running())
                urls.append(replica.url)
                ready.add(replica.url)
            else:
                sims.append(await stack.enter_async_context(running_sim(replica)))
                urls.append(sims[-1].url)
                if not replica.load_s:
                    ready.add(sims[-1].url)
        house = House(_settings(settings or {}, urls))
        before = asyncio.all_tasks()
        server, task = await _started(house)
        try:
            running = RunningHouse(house, server, tuple(sims))
            await until(lambda: ready <= _ready(house) and _is_linked(house, before))
            yield running
        finally:
            await _stopped(server, task)
            await _no_task_left(before)


def _settings(given: Mapping[str, Mapping[str, Any]], urls: Sequence[str]) -> Settings:
    own: dict[str, dict[str, Any]] = {
        "accept": {"port": 0},
        "admit": {"drain_grace_s": 0.0},
        "fleet": {"replicas": list(urls), **PROBING, **({} if "choose" in given else DEAF)},
        "account": {"access_log": "off"},
    }
    for section, knobs in given.items():
        own[section] = {**own.get(section, {}), **knobs}
    return Settings.of(own)


def _ready(house: House) -> set[str]:
    return {replica.address.url for replica in house.replicas if replica.takes_work}


def _is_linked(house: House, before: set[asyncio.Task[Any]]) -> bool:
    """Has its link to other gateways, if it has one, begun all its tasks? A gateway that is started
    next would take those that begin later for its own."""
    begun = {task.get_name() for task in asyncio.all_tasks() - before}
    return house.link is None or "speak to peers" in begun


async def _started(house: House) -> tuple[Server, asyncio.Task[None]]:
    server = house.server()
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(house.serve(server), name="house")
    await until(lambda: server.started or task.done())
    if task.done():
        task.result()
    return server, task


async def _stopped(server: Server, task: asyncio.Task[None]) -> None:
    if not task.done():
        server.stop()
    async with asyncio.timeout(10):
        await task


async def _no_task_left(before: set[asyncio.Task[Any]]) -> None:
    """Tasks that the gateway started end with it. Transports get a turn of the loop to close."""
    ours = before | {asyncio.current_task()}

    def left() -> list[asyncio.Task[Any]]:
        tasks = [task for task in asyncio.all_tasks() if task not in ours]
        return [task for task in tasks if not task.get_name().startswith("scripted")]

    await asyncio.sleep(0)
    with contextlib.suppress(TimeoutError):
        await until(lambda: not left(), within_s=1.0)
    assert not left(), left()
