"""The load generator: keep-alive connections that ask, count what comes back, and time it.

Two shapes. `closed_loop` keeps a fixed number of requests in flight and meters a window in the
middle of it, so that start and end cost nothing in the figures. `open_loop` sends at seeded
Poisson instants whatever the replies do, and times each request from the write of its bytes.
Both fail rather than report when a reply is missing, broken or not a 200.

Times are `perf_counter` seconds. Nothing here knows what it is measuring: the meter is a callable.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from time import perf_counter
from typing import Final, cast

import httptools
import uvloop

from tests.bench.prompts import Book

_SETTLE_S: Final = 15.0  # longest wait for the last replies of a run
_CONNECT_S: Final = 5.0
_SLICE_S: Final = 0.1  # of a window; short beside what a neighbour does, long beside a request


class LoadFailed(Exception):
    """A reply was missing, broken or refused; the measurement means nothing."""


@dataclass(slots=True)
class Tally:
    """Running counts of one run, over all its connections."""

    sent: int = 0
    finished: int = 0
    events: int = 0
    reads: int = 0
    body_bytes: int = 0
    latencies_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between the two readings of the meter."""

    wall_s: float
    meter: float
    finished: int
    events: int
    reads: int
    slices: tuple[Window, ...] = ()  # the same, of each tenth of a second of it


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """How many requests to keep in flight, and for how long."""

    concurrency: int
    warm_up_s: float
    window_s: float


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Poisson arrivals of this rate over this time."""

    rate_per_s: float
    window_s: float
    seed: int


class Serials:
    """Hands every request of a benchmark run its own number."""

    def __init__(self) -> None:
        self._next = 0

    def take(self) -> int:
        """The next number, never given before by this object."""
        self._next += 1
        return self._next


class Asker(asyncio.Protocol):
    """One keep-alive connection: one request at a time, and the reply counted to its last byte."""

    def __init__(self, tally: Tally, on_done: Callable[[Asker], None]) -> None:
        self._tally = tally
        self._on_done = on_done
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._asked_at_s: float | None = None
        self._tail = b""  # the last byte of the body so far: an event may end across two reads

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # a cast: uvloop's transports have the methods of asyncio.Transport but not its name
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> None:
        """Send one request; the one before must be done."""
        self._tally.sent += 1
        self._tail = b""
        self._asked_at_s = perf_counter()
        self._transport.write(request)

    def close(self) -> None:
        """Close the connection now."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._tally.reads += 1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error!r}")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._tally.faults.append(f"status {status}")

    def on_body(self, body: bytes) -> None:
        tally = self._tally
        tally.body_bytes += len(body)
        tally.events += body.count(b"\n\n") + (self._tail == b"\n" and body[:1] == b"\n")
        self._tail = body[-1:]

    def on_message_complete(self) -> None:
        if self._asked_at_s is None:
            self._fail("a reply that nobody asked for")
            return
        self._tally.latencies_s.append(perf_counter() - self._asked_at_s)
        self._tally.finished += 1
        self._asked_at_s = None
        if not self._parser.should_keep_alive():
            self._fail("the connection is not kept alive")
        self._on_done(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asked_at_s is not None:
            self._asked_at_s = None
            self._fail(f"connection lost before the reply's end: {exc!r}")

    def _fail(self, fault: str) -> None:
        self._tally.faults.append(fault)
        self._transport.close()
        self._on_done(self)


def run_closed_loop(
    port: int, book: Book, plan: ClosedLoop, *, serials: Serials, meter: Callable[[], float]
) -> tuple[Tally, Window]:
    """Run to the last reply; the tally covers the whole run, the window its metered middle."""
    return uvloop.run(closed_loop(port, book, plan, serials=serials, meter=meter))


async def closed_loop(
    port: int, book: Book, plan: ClosedLoop, *, serials: Serials, meter: Callable[[], float]
) -> tuple[Tally, Window]:
    """As `run_closed_loop`, in the running event loop. Raises LoadFailed."""
    tally = Tally()
    is_over = False
    quiet = asyncio.Event()

    def on_done(asker: Asker) -> None:
        if not is_over and not tally.faults:
            asker.ask(book.request(serials.take()))
        elif tally.faults or tally.finished == tally.sent:
            quiet.set()

    askers = [await _connect(port, tally, on_done) for _ in range(plan.concurrency)]
    try:
        for asker in askers:
            asker.ask(book.request(serials.take()))
        await asyncio.sleep(plan.warm_up_s)
        tally.latencies_s.clear()
        window = await _metered(tally, meter, plan.window_s)
        is_over = True
        await _settle(tally, quiet)
    finally:
        for asker in askers:
            asker.close()
    return tally, window


def run_open_loop(port: int, book: Book, plan: OpenLoop, *, serials: Serials) -> Tally:
    """Send at the planned instants and await every reply. Raises LoadFailed."""
    return uvloop.run(_open_loop(port, book, plan, serials=serials))


async def _open_loop(port: int, book: Book, plan: OpenLoop, *, serials: Serials) -> Tally:
    tally = Tally()
    quiet = asyncio.Event()
    idle: deque[Asker] = deque()
    waiting: deque[bytes] = deque()

    def on_done(asker: Asker) -> None:
        if waiting and not tally.faults:
            asker.ask(waiting.popleft())
            return
        idle.append(asker)
        if tally.faults or tally.finished == tally.sent:
            quiet.set()

    def fire() -> None:
        quiet.clear()
        request = book.request(serials.take())
        if idle:
            idle.pop().ask(request)
        else:
            waiting.append(request)

    askers = [await _connect(port, tally, on_done) for _ in range(64)]
    idle.extend(askers)
    gc.disable()
    try:
        for asker in askers:  # so that nobody's first connection to a replica is in the figures
            idle.remove(asker)
            asker.ask(book.request(serials.take()))
        await _settle(tally, quiet)
        tally.latencies_s.clear()
        await _fire_at(_arrivals(plan), fire)
        await _settle(tally, quiet)
    finally:
        gc.enable()
        for asker in askers:
            asker.close()
    return tally


def _arrivals(plan: OpenLoop) -> list[float]:
    rng = random.Random(plan.seed)
    offsets_s = []
    at_s = rng.expovariate(plan.rate_per_s)
    while at_s < plan.window_s:
        offsets_s.append(at_s)
        at_s += rng.expovariate(plan.rate_per_s)
    return offsets_s


async def _fire_at(offsets_s: list[float], fire: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    for offset_s in offsets_s:
        early_s = start_s + offset_s - loop.time()
        if early_s > 0:
            await asyncio.sleep(early_s)
        fire()


async def _connect(port: int, tally: Tally, on_done: Callable[[Asker], None]) -> Asker:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, asker = await loop.create_connection(
                lambda: Asker(tally, on_done), "127.0.0.1", port
            )
    except OSError as error:
        raise LoadFailed(f"cannot connect to port {port}: {error}") from error
    return asker


async def _settle(tally: Tally, quiet: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_SETTLE_S):
            while tally.finished < tally.sent and not tally.faults:
                quiet.clear()
                await quiet.wait()
    except TimeoutError:
        tally.faults.append(f"{tally.sent - tally.finished} replies never ended")
    if tally.faults:
        some = ", ".join(sorted(set(tally.faults))[:4])
        raise LoadFailed(f"{len(tally.faults)} faults in {tally.sent} requests: {some}")


async def _metered(tally: Tally, meter: Callable[[], float], window_s: float) -> Window:
    readings = [_Reading.take(tally, meter)]
    for _ in range(round(window_s / _SLICE_S)):
        await asyncio.sleep(_SLICE_S)
        readings.append(_Reading.take(tally, meter))
    slices = tuple(one.until(next_) for one, next_ in pairwise(readings))
    return replace(readings[0].until(readings[-1]), slices=slices)


@dataclass(frozen=True, slots=True)
class _Reading:
    at_s: float
    meter: float
    finished: int
    events: int
    reads: int

    @classmethod
    def take(cls, tally: Tally, meter: Callable[[], float]) -> _Reading:
        return cls(perf_counter(), meter(), tally.finished, tally.events, tally.reads)

    def until(self, later: _Reading) -> Window:
        return Window(
            wall_s=later.at_s - self.at_s,
            meter=later.meter - self.meter,
            finished=later.finished - self.finished,
            events=later.events - self.events,
            reads=later.reads - self.reads,
        )
