"""Clients that dawdle, leave, or do not read: each costs only itself, and nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.accept.exchange import Exchange
from gateway.vocabulary import Outcome
from tests.builders import a_chat, a_get, a_post
from tests.house import RunningHouse, Wire, a_sim, run, running_house, until
from tests.scripted import STREAM_HEAD, Held, Received, Scripted, a_reply, chunked

LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
QUICK = {"header_timeout_s": 0.3, "body_timeout_s": 0.3, "keep_alive_s": 0.3}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\n"


# Slow senders


async def trickle(wire: Wire, data: bytes, *, every_s: float = 0.05) -> None:
    """Send byte by byte, for as long as the gateway takes it."""
    for byte in data:
        await wire.send(bytes([byte]))
        await asyncio.sleep(every_s)


@LOOPS
@pytest.mark.parametrize(
    ("at_once", "slowly", "outcomes"),
    [
        pytest.param(b"", HEAD + b"X: " + b"a" * 99, {}, id="head"),
        pytest.param(HEAD, b"", {}, id="half a head, then nothing"),
        pytest.param(b"GET /\r\n", b"", {}, id="HTTP/0.9"),
        pytest.param(
            HEAD + b"Content-Length: 99\r\n\r\n", b"{" * 99, {Outcome.REJECTED: 1}, id="body"
        ),
        pytest.param(
            HEAD + b"Content-Length: 99\r\n\r\n{", b"", {Outcome.REJECTED: 1}, id="half a body"
        ),
        pytest.param(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
            b"1\r\n{\r\n" * 20,
            {Outcome.REJECTED: 1},
            id="chunked body",
        ),
    ],
)
def test_a_request_that_comes_too_slowly_is_cut_with_408(
    loop: str, at_once: bytes, slowly: bytes, outcomes: dict[Outcome, int]
) -> None:
    async def law() -> None:
        async with running_house({"accept": QUICK}) as running, running.wire() as wire:
            await wire.send(at_once)
            sending = asyncio.create_task(trickle(wire, slowly))
            answer = await wire.reply(within_s=3.0)
            assert (answer.status, answer.code) == (408, "request_timed_out")
            assert await wire.rest() == b""
            sending.cancel()
            await asyncio.wait([sending])
            await running.until_quiet()
            assert running.outcomes == outcomes
            assert (await running.ask(a_post())).status == 200

    run(law(), loop=loop)


@LOOPS
def test_a_connection_that_idles_is_closed_without_a_word(loop: str) -> None:
    async def law() -> None:
        async with running_house({"accept": QUICK}) as running:
            async with running.wire() as fresh, running.wire() as used, running.wire() as empty:
                await used.send(a_post())
                assert (await used.reply()).status == 200
                await empty.send(b"\r\n\r\n")
                for wire in (fresh, used, empty):
                    assert await wire.rest() == b""
            await until(lambda: running.house.connections == 0)

    run(law(), loop=loop)


def test_a_large_body_earns_its_time_by_its_size() -> None:
    async def law() -> None:
        accept = {**QUICK, "min_body_bytes_per_s": 1000}
        async with running_house({"accept": accept}) as running, running.wire() as wire:
            body = a_chat("x" * 4000)
            await wire.send(a_post(body)[:-1])
            await asyncio.sleep(1.3)
            await wire.send(body[-1:])
            assert (await wire.reply()).status == 200

    run(law())


def test_a_request_behind_a_long_stream_is_not_late_while_we_do_not_read_it() -> None:
    async def law() -> None:
        replica = Scripted(held := Held())
        async with running_house({"accept": QUICK}, [replica]) as running, running.wire() as wire:
            request = a_post(a_chat("x" * 100))
            await wire.send(a_post(a_chat("held", stream=True)) + a_post() * 9 + request[:-50])
            await wire.head()
            stream = wire.chunks()
            assert await anext(stream) == Held.HALF
            await asyncio.sleep(1.2)
            held.released.set()
            assert b"".join([piece async for piece in stream]) == Held.REST
            await wire.send(request[-50:])
            assert [(await wire.reply()).status for _ in range(10)] == [200] * 10

    run(law())


def test_an_answered_request_whose_body_never_comes_gets_no_second_answer() -> None:
    async def law() -> None:
        async with running_house({"accept": QUICK}) as running, running.wire() as wire:
            await wire.send(b"PUT /v1/models HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{")
            assert (await wire.reply()).status == 405
            assert await wire.rest() == b""

    run(law())


# Clients that leave


def half_close(wire: Wire) -> None:
    wire.half_close()


def abort(wire: Wire) -> None:
    wire.abort()


def close(wire: Wire) -> None:
    wire.writer.close()


LEAVE = pytest.mark.parametrize("leave", [half_close, abort, close])
Leave = Callable[[Wire], None]


@LOOPS
@LEAVE
@pytest.mark.parametrize(
    ("sent", "outcomes"),
    [
        pytest.param(b"", {}, id="before the head"),
        pytest.param(HEAD, {}, id="in the head"),
        pytest.param(HEAD + b"Content-Length: 9\r\n\r\n", {Outcome.CLIENT_GONE: 1}, id="at body"),
        pytest.param(
            HEAD + b"Content-Length: 9\r\n\r\n{", {Outcome.CLIENT_GONE: 1}, id="in the body"
        ),
    ],
)
def test_a_client_that_leaves_before_its_request_is_whole_costs_no_replica_anything(
    loop: str, leave: Leave, sent: bytes, outcomes: dict[Outcome, int]
) -> None:
    async def law() -> None:
        replica = Scripted()
        async with running_house({}, [replica]) as running, running.wire() as wire:
            await wire.send(sent)
            await until(lambda: running.house.connections == 1)
            await asyncio.sleep(0.1)  # what was sent has been read
            leave(wire)
            await until(lambda: running.house.connections == 0)
            await running.until_quiet()
            assert running.outcomes == outcomes
            assert replica.received == []

    run(law(), loop=loop)


SLOW = a_sim(speed=0.01, mean_output_tokens=None)


@LOOPS
@LEAVE
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "streamed"])
def test_a_client_that_leaves_is_aborted_at_the_engine_at_once(
    loop: str, leave: Leave, stream: bool
) -> None:
    """Within 100 ms where the machine has nothing else to do; this one may have."""

    async def law() -> None:
        async with running_house({}, [SLOW]) as running, running.wire() as wire:
            engine = running.sims[0].engine
            await wire.send(a_post(a_chat(stream=stream, max_tokens=5000)))
            if stream:
                assert (await wire.head()).status == 200
                await anext(wire.chunks())
            await until(lambda: engine.running == 1)
            leave(wire)
            await until(lambda: engine.running + engine.waiting == 0, within_s=1.0)
            await running.until_quiet(within_s=1.0)
            assert running.outcomes == {Outcome.CLIENT_GONE: 1}

    run(law(), loop=loop)


@LOOPS
@LEAVE
def test_a_client_that_leaves_while_the_replica_is_silent_is_let_go(
    loop: str, leave: Leave
) -> None:
    async def silent(_: Received, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""  # until the gateway closes

    async def law() -> None:
        replica = Scripted(silent)
        async with running_house({}, [replica]) as running, running.wire() as wire:
            idle = replica.open
            await wire.send(a_post())
            await until(lambda: len(replica.received) == 1)
            leave(wire)
            await running.until_quiet(within_s=0.5)
            await until(lambda: replica.open <= idle)
            assert running.outcomes == {Outcome.CLIENT_GONE: 1}

    run(law(), loop=loop)


def test_a_client_that_leaves_between_requests_is_no_outcome() -> None:
    async def law() -> None:
        async with running_house() as running:
            for leave in (half_close, abort, close):
                async with running.wire() as wire:
                    await wire.send(a_post())
                    assert (await wire.reply()).status == 200
                    leave(wire)
                    await until(lambda: running.house.connections == 0)
            await running.until_quiet()
            assert running.outcomes == {Outcome.FINISHED: 3}

    run(law())


@LOOPS
def test_a_storm_of_clients_that_leave_at_any_byte_leaves_nothing_behind(loop: str) -> None:
    async def law() -> None:
        sims = [a_sim(speed=0.2), a_sim(speed=0.2)]
        async with running_house({}, sims) as running:

            async def one(number: int) -> None:
                request = a_post(a_chat(stream=number % 2 == 0, max_tokens=40))
                wire = await running.connect()
                await wire.send(request[: number * 7 % (2 * len(request))])
                await asyncio.sleep(number % 13 / 300)
                (half_close, abort, close)[number % 3](wire)
                await wire.rest()
                await wire.close()

            await asyncio.gather(*(one(number) for number in range(200)))
            await until(lambda: running.house.connections == 0)
            await running.until_quiet()
            assert set(running.outcomes) <= {Outcome.CLIENT_GONE, Outcome.FINISHED}
            assert running.outcomes[Outcome.CLIENT_GONE] > 20
            assert (await running.ask(a_post())).status == 200

    run(law(), loop=loop)


# Clients that do not read


@asynccontextmanager
async def slow_reader(running: RunningHouse) -> AsyncIterator[Wire]:
    """A connection whose buffers, on this side, hold little."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.setblocking(False)
    await asyncio.get_running_loop().sock_connect(peer, ("127.0.0.1", running.port))
    reader, writer = await asyncio.open_connection(sock=peer, limit=1024)
    wire = Wire(reader, writer)
    try:
        yield wire
    finally:
        await wire.close()


PIECE = bytes(range(256)) * 256  # 64 KiB
PIECES = 320  # 20 MiB in all


class Flood:
    """A replica that answers with much, and knows how much of it has been taken."""

    def __init__(self, *, is_chunked: bool) -> None:
        self.is_chunked = is_chunked
        self.sent = 0

    async def __call__(
        self, _: Received, __: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send all of it, no faster than it is read."""
        writer.transport.set_write_buffer_limits(high=65536)
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (PIECES * len(PIECE))
        writer.write(STREAM_HEAD if self.is_chunked else head)
        for _number in range(PIECES):
            writer.write(chunked(PIECE, end=False) if self.is_chunked else PIECE)
            await writer.drain()
            self.sent += len(PIECE)
        if self.is_chunked:
            writer.write(b"0\r\n\r\n")


async def until_still(count: Callable[[], int]) -> int:
    """Wait until a count has stopped growing."""
    while True:
        before = count()
        await asyncio.sleep(0.2)
        if count() == before:
            return before


@LOOPS
@pytest.mark.parametrize("is_chunked", [True, False], ids=["streamed", "unary"])
def test_a_slow_reader_pauses_the_replica_and_gets_every_byte(loop: str, is_chunked: bool) -> None:
    async def law() -> None:
        flood = Flood(is_chunked=is_chunked)
        replica = Scripted(flood)
        async with running_house({}, [replica]) as running, slow_reader(running) as wire:
            await wire.send(a_post(a_chat(stream=is_chunked)))
            held = await until_still(lambda: flood.sent)
            assert held < 12 * 2**20, "the rest is still the replica's"
            (lane,) = running.house.door.lanes
            assert lane.transport.get_write_buffer_size() < 2**20
            assert (await running.ask(a_get())).status == 200
            answer = await wire.reply(within_s=25)
            assert answer.body == PIECE * PIECES
            await wire.send(a_get())
            assert (await wire.reply()).status == 200
            await running.until_quiet()
            assert running.outcomes == {Outcome.FINISHED: 1}

    run(law(), loop=loop)


@LOOPS
@pytest.mark.parametrize("is_chunked", [True, False], ids=["streamed", "unary"])
def test_a_reader_that_has_stopped_is_let_go(loop: str, is_chunked: bool) -> None:
    async def law() -> None:
        flood = Flood(is_chunked=is_chunked)
        replica = Scripted(flood)
        accept = {"client_stall_s": 0.4}
        async with running_house({"accept": accept}, [replica]) as running:
            async with slow_reader(running) as wire:
                await wire.send(a_post(a_chat(stream=is_chunked)))
                await until(lambda: running.outcomes)
                await until(lambda: running.house.connections == 0)
            await running.until_quiet()
            assert running.outcomes == {Outcome.CLIENT_GONE: 1}
            assert running.reasons == {"client_stalled": 1}

    run(law(), loop=loop)


@LOOPS
def test_a_reader_that_stops_before_the_end_of_what_is_written_is_let_go(loop: str) -> None:
    """The response is whole on our side, the connection about to close: nobody waits for it."""

    async def law() -> None:
        replica = Scripted(a_reply(PIECE * 64))
        accept = {"client_stall_s": 0.4, "keep_alive_s": 0.4}
        async with running_house({"accept": accept}, [replica]) as running:
            close_it = [("Connection", "close")]
            async with slow_reader(running) as one, slow_reader(running) as other:
                await one.send(a_post(headers=close_it) * 2)
                await other.send(a_post())
                await until(lambda: running.house.connections == 0, within_s=8)
            await running.until_quiet()

    run(law(), loop=loop)


@LOOPS
def test_a_client_that_reads_no_metrics_but_asks_for_more_is_let_go(loop: str) -> None:
    async def law() -> None:
        accept = {"client_stall_s": 0.4, "keep_alive_s": 0.4}
        async with running_house({"accept": accept}) as running, slow_reader(running) as wire:
            wire.writer.write(a_get("/metrics") * 3000)
            await until(lambda: running.house.connections == 1)
            await until(lambda: running.house.connections == 0, within_s=8)

    run(law(), loop=loop)


@LOOPS
@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "unary"])
def test_nothing_is_kept_of_a_client_that_has_gone(loop: str, is_stream: bool) -> None:
    """Its last body above all, which may be large; and not only once the collector has looked."""

    async def law() -> None:
        async with running_house({}, [a_sim()]) as running, running.wire() as wire:
            gc.collect()
            gc.disable()
            others = exchanges()
            await wire.send(a_post(a_chat(stream=is_stream)))
            assert (await wire.reply()).status == 200
            assert len(exchanges()) == len(others) + 1
            (lane,) = running.house.door.lanes
            kept = weakref.ref(lane)
            del lane
            await wire.close()
            await until(lambda: running.house.connections == 0)
            await until(lambda: kept() is None and len(exchanges()) == len(others))

    try:
        run(law(), loop=loop)
    finally:
        gc.enable()


def exchanges() -> list[Exchange]:
    """All there are, known to anybody or not; some may be of other tests."""
    return [each for each in gc.get_objects() if isinstance(each, Exchange)]
