"""Several requests on one connection: replies in their order, whole, and nobody's but their own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from gateway.vocabulary import Outcome
from tests.builders import a_chat, a_get, a_post
from tests.house import RunningHouse, Shared, shared_house, until
from tests.scripted import Held, Received, Scripted, a_reply, chunked


class Echo(Held):
    """Tells each request by the text of its chat: replies with the request's own body."""

    async def __call__(
        self, received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reply = a_reply(received.body)
        await super().__call__(received, reader, writer)


class Place:
    """The gateway and the replica behind it."""

    def __init__(self, shared: Shared, replica: Scripted) -> None:
        self.shared = shared
        self.running: RunningHouse = shared.running
        self.replica = replica

    def fresh(self) -> Echo:
        """A new script, and sums that begin at nothing."""
        accounts = self.running.house.accounts
        accounts.endings.clear()
        accounts.received = 0
        self.replica.received.clear()
        self.replica.answer = echo = Echo()
        return echo


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    replica = Scripted()
    with shared_house({}, [replica], loop=request.param) as shared:
        yield Place(shared, replica)


def test_ten_requests_in_one_write_are_answered_in_their_order(place: Place) -> None:
    async def law() -> None:
        place.fresh()
        bodies = [a_chat(f"number {number}") for number in range(10)]
        async with place.running.wire() as wire:
            await wire.send(b"".join(a_post(body) for body in bodies))
            assert [(await wire.reply()).body for _ in bodies] == bodies
            await wire.send(a_get())
            assert (await wire.reply()).status == 200
        assert place.running.outcomes == {Outcome.FINISHED: 10}

    place.shared.run(law())


def test_a_hundred_requests_in_one_write_are_answered_in_their_order(place: Place) -> None:
    async def law() -> None:
        place.fresh()
        async with place.running.wire() as wire:
            for _ in range(50):
                wire.writer.write(a_post() + a_get())
            for _ in range(50):
                assert (await wire.reply()).body == a_chat()
                assert (await wire.reply()).json() == {"status": "ok"}

    place.shared.run(law())


@pytest.mark.parametrize("cut", [1, 7, 64, 10_000])
def test_requests_are_the_same_however_their_bytes_are_cut(place: Place, cut: int) -> None:
    async def law() -> None:
        place.fresh()
        requests = a_post() + a_get() + a_post(a_chat("two")) + a_post(b"{}") + a_get("/nothing")
        async with place.running.wire() as wire:
            for at in range(0, len(requests), cut):
                await wire.send(requests[at : at + cut])
                await asyncio.sleep(0)
            statuses = [(await wire.reply()).status for _ in range(5)]
            assert statuses == [200, 200, 200, 400, 404]

    place.shared.run(law())


def test_a_request_waits_for_the_stream_before_it_to_end(place: Place) -> None:
    async def law() -> None:
        held = place.fresh()
        async with place.running.wire() as wire:
            await wire.send(a_post(a_chat("held", stream=True)) + a_get() + a_post())
            await wire.head()
            stream = wire.chunks()
            assert await anext(stream) == Held.HALF
            held.released.set()
            assert b"".join([piece async for piece in stream]) == Held.REST
            assert (await wire.reply()).json() == {"status": "ok"}
            assert (await wire.reply()).body == a_chat()

    place.shared.run(law())


def test_a_get_before_a_post_is_answered_first(place: Place) -> None:
    async def law() -> None:
        place.fresh()
        async with place.running.wire() as wire:
            await wire.send(a_get("/v1/models") + a_post() + a_get())
            assert (await wire.reply()).json()["object"] == "list"
            assert (await wire.reply()).body == a_chat()
            assert (await wire.reply()).json() == {"status": "ok"}

    place.shared.run(law())


BEHIND = {
    "garbage": b"\x00garbage\r\n\r\n",
    "a head with two hosts": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "an unknown expectation": a_post(headers=[("Expect", "magic")]),
    "CONNECT": b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    "a bad chunk for the app": (
        b"PUT /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n"
    ),
    "a bad chunk": (
        b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n"
    ),
    "two more offers to upgrade": 2
    * a_get(headers=[("Connection", "Upgrade"), ("Upgrade", "h2c")]).replace(b"healthz", b"x"),
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_what_is_malformed_behind_requests_under_way_does_not_disturb_them(
    place: Place, behind: bytes
) -> None:
    async def law() -> None:
        held = place.fresh()
        async with place.running.wire() as wire:
            await wire.send(a_post(a_chat("held", stream=True)) + a_post(a_chat("two")))
            await wire.head()
            stream = wire.chunks()
            assert await anext(stream) == Held.HALF
            await wire.send(behind)
            await asyncio.sleep(0.02)  # the sweep must not touch it either
            for lane in tuple(place.running.house.door.lanes):
                lane.check(place.running.house.door.clock())
            held.released.set()
            assert b"".join([piece async for piece in stream]) == Held.REST
            second = await wire.reply()
            assert second.body == a_chat("two")
            rest = await wire.rest()  # what is answered, if anything, is the refusal; then the end
            assert rest.count(b"HTTP/1.1 ") <= 1
            assert not rest or rest.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200"))
        assert len(place.replica.received) == 2

    place.shared.run(law())


def test_garbage_behind_an_answered_request_gets_its_own_refusal(place: Place) -> None:
    async def law() -> None:
        place.fresh()
        async with place.running.wire() as wire:
            await wire.send(a_post())
            assert (await wire.reply()).status == 200
            await wire.send(b"\x00garbage\r\n\r\n")
            answer = await wire.reply()
            assert (answer.status, answer.code) == (400, "malformed_http")
            assert await wire.rest() == b""

    place.shared.run(law())


def test_a_second_fault_in_one_read_changes_nothing(place: Place) -> None:
    async def law() -> None:
        door = place.running.house.door
        for second in (a_get(), b"\x00garbage", a_post(), a_post(headers=[("Expect", "x")])):
            async with place.running.wire() as wire:
                await wire.send(a_post(b"", headers=[("Expect", "magic")]) + second)
                answer = await wire.reply()
                assert (answer.status, answer.code) == (417, "expectation_failed")
                for lane in tuple(door.lanes):
                    lane.check(door.clock() + 1.0)
                assert await wire.rest() == b""

    place.shared.run(law())


def test_a_body_too_large_is_refused_in_its_turn(place: Place) -> None:
    async def law() -> None:
        held = place.fresh()
        async with place.running.wire() as wire:
            large = (
                b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n"
            )
            await wire.send(a_post(a_chat("held", stream=True)) + large)
            await wire.head()
            stream = wire.chunks()
            assert await anext(stream) == Held.HALF
            held.released.set()
            assert b"".join([piece async for piece in stream]) == Held.REST
            answer = await wire.reply()
            assert (answer.status, answer.code) == (413, "body_too_large")
            assert await wire.rest() == b""

    place.shared.run(law())


def test_continue_is_said_at_once_and_the_body_then_taken(place: Place) -> None:
    async def law() -> None:
        place.fresh()
        async with place.running.wire() as wire:
            request = a_post(headers=[("Expect", "100-Continue")])
            head, _, body = request.partition(b"\r\n\r\n")
            await wire.send(head + b"\r\n\r\n")
            assert (await wire.head()).status == 100
            assert place.replica.received == []
            await wire.send(body)
            assert (await wire.reply()).body == body
        assert place.replica.received[0].all("expect") == []

    place.shared.run(law())


def test_continue_for_a_request_that_waits_is_not_said_into_the_stream_before_it(
    place: Place,
) -> None:
    async def law() -> None:
        held = place.fresh()
        async with place.running.wire() as wire:
            request = a_post(headers=[("Expect", "100-continue")])
            head, _, body = request.partition(b"\r\n\r\n")
            await wire.send(a_post(a_chat("held", stream=True)) + head + b"\r\n\r\n")
            await wire.head()
            stream = wire.chunks()
            assert await anext(stream) == Held.HALF
            held.released.set()
            assert b"".join([piece async for piece in stream]) == Held.REST
            assert (await wire.head()).status == 100
            await wire.send(body)
            assert (await wire.reply()).body == body

    place.shared.run(law())


def test_http_1_0_is_answered_without_chunks_and_its_connection_closed(place: Place) -> None:
    async def law() -> None:
        for headers in ((), [("Connection", "keep-alive")]):
            held = place.fresh()
            async with place.running.wire() as wire:
                await wire.send(a_post(version="1.0", headers=headers))
                answer = await wire.reply()
                assert (answer.status, answer.body) == (200, a_chat())
                assert answer.header("connection") == "close"
                assert await wire.rest() == b""
            async with place.running.wire() as wire:
                held.released.set()
                await wire.send(a_post(a_chat("held", stream=True), version="1.0", headers=headers))
                answer = await wire.reply()
                assert answer.header("transfer-encoding") is None
                assert answer.header("content-length") is None
                assert answer.header("connection") == "close"
                assert answer.body == Held.HALF + Held.REST

    place.shared.run(law())


def test_http_1_0_needs_no_host(place: Place) -> None:
    async def law() -> None:
        place.fresh()
        request = a_post(version="1.0").replace(b"Host: gateway\r\n", b"")
        assert (await place.running.ask(request)).status == 200

    place.shared.run(law())


def test_connection_close_is_honoured_and_what_follows_it_ignored(place: Place) -> None:
    async def law() -> None:
        place.fresh()
        async with place.running.wire() as wire:
            await wire.send(a_post(headers=[("Connection", "close")]) + a_post(a_chat("two")))
            answer = await wire.reply()
            assert answer.header("connection") == "close"
            assert await wire.rest() == b""
        assert len(place.replica.received) == 1

    place.shared.run(law())


@pytest.mark.parametrize("offer", ["websocket", "h2c", "foo/2"])
def test_an_offer_to_upgrade_is_declined_and_the_request_served(place: Place, offer: str) -> None:
    async def law() -> None:
        place.fresh()
        headers = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", offer)]
        async with place.running.wire() as wire:
            for body in (a_chat("one"), a_chat("two")):
                await wire.send(a_post(body, headers=[*headers, ("HTTP2-Settings", "AAMAAABk")]))
                answer = await wire.reply()
                assert (answer.status, answer.body) == (200, body)
            await wire.send(a_get(headers=headers) + a_get())
            assert (await wire.reply()).json() == {"status": "ok"}
            assert (await wire.reply()).json() == {"status": "ok"}
            framed = a_post(b"", headers=[*headers, ("Transfer-Encoding", "chunked")])
            framed = framed.replace(b"Content-Length: 0\r\n", b"") + chunked(a_chat("three"))
            for at in range(0, len(framed), 50):
                await wire.send(framed[at : at + 50])
                await asyncio.sleep(0)
            assert (await wire.reply()).body == a_chat("three")
        assert not any(one.all("upgrade") for one in place.replica.received)

    place.shared.run(law())


def test_an_absolute_target_is_routed_by_its_path(place: Place) -> None:
    async def law() -> None:
        place.fresh()
        for target in ("http://gateway/v1/chat/completions?a=b", "HTTP://x:1/v1/embeddings"):
            assert (await place.running.ask(a_post(path=target))).status == 200
        targets = [received.target for received in place.replica.received]
        assert targets == ["/v1/chat/completions?a=b", "/v1/embeddings"]
        answer = await place.running.ask(a_get("http://gateway/healthz"))
        assert answer.json() == {"status": "ok"}

    place.shared.run(law())


def test_a_query_goes_on_to_the_replica_as_it_came(place: Place) -> None:
    async def law() -> None:
        place.fresh()
        path = "/v1/chat/completions?api-version=2024-02-01&x=%2F%3F"
        assert (await place.running.ask(a_post(path=path))).status == 200
        assert place.replica.received[0].target == path

    place.shared.run(law())


def test_a_chunked_body_goes_on_whole_with_a_length(place: Place) -> None:
    async def law() -> None:
        place.fresh()
        body = a_chat("x" * 100_000)
        pieces = [body[at : at + 997] for at in range(0, len(body), 997)]
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        framed = chunked(*pieces).replace(b"0\r\n\r\n", b"0\r\nX-Trailer: y\r\n\r\n")
        answer = await place.running.ask(head + framed)
        assert (answer.status, answer.body) == (200, body)
        received = place.replica.received[0]
        assert received.all("content-length") == [str(len(body))]
        assert received.all("transfer-encoding") == received.all("x-trailer") == []

    place.shared.run(law())


LEAVING = {
    "half-closing": lambda wire: wire.half_close(),
    "aborting": lambda wire: wire.abort(),
}


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)
def test_a_client_that_leaves_takes_its_waiting_requests_with_it(place: Place, leave) -> None:  # type: ignore[no-untyped-def]
    async def law() -> None:
        place.fresh()
        async with place.running.wire() as wire:
            await wire.send(a_post(a_chat("held", stream=True)) + a_post() + a_get() + a_post())
            await wire.head()
            assert await anext(wire.chunks()) == Held.HALF
            leave(wire)
            await until(lambda: place.running.is_quiet, within_s=1.0)
        assert place.running.outcomes == {Outcome.CLIENT_GONE: 3}
        assert len(place.replica.received) == 1

    place.shared.run(law())
