"""Replicas that answer in unusual ways: nothing of it reaches a client that should not."""

from __future__ import annotations

import asyncio

import pytest

from gateway.vocabulary import Health, Outcome
from tests.builders import a_chat, a_post
from tests.house import run, running_house, until
from tests.misbehaving import (
    EVENT,
    a_stream_post,
    house_before,
    script,
)
from tests.scripted import STREAM_HEAD, Received, Script, Scripted, a_reply, chunked

LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


def closing_when_reused(answer: bytes) -> Script:
    """Answers the first request of a connection, and closes on the second without a word."""
    served: set[asyncio.StreamWriter] = set()

    async def play(
        received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if writer in served:
            raise ConnectionResetError
        served.add(writer)
        writer.write(answer)
        await writer.drain()

    return play


@LOOPS
def test_a_reused_connection_that_closes_without_a_byte_costs_the_client_nothing(
    loop: str,
) -> None:
    async def law() -> None:
        replica = Scripted(closing_when_reused(a_reply()))
        async with house_before(replica) as running:
            for _ in range(5):
                assert (await running.ask(a_post())).status == 200
            assert len(replica.received) > 5, "connections were reused, and closed"
            assert running.outcomes == {Outcome.FINISHED: 5}
            assert not running.house.accounts.retries
            assert running.replicas[0].health is Health.HEALTHY
            assert set(running.house.accounts.attempts.values()) == {5}

    run(law(), loop=loop)


def test_a_fresh_connection_that_closes_as_well_is_the_last_word_of_that_replica() -> None:
    async def law() -> None:
        replica = Scripted()
        async with house_before(replica) as running:
            assert (await running.ask(a_post())).status == 200
            replica.answer = script("close")
            assert (await running.ask(a_post())).code == "closed_before_reply"
            assert len(replica.received) == 3, "once on the old connection, once on a fresh one"

    run(law())


def test_a_replica_that_had_begun_to_answer_is_not_asked_again_on_a_fresh_connection() -> None:
    async def law() -> None:
        replica = Scripted()
        async with house_before(replica) as running:
            assert (await running.ask(a_post())).status == 200
            replica.answer = script(STREAM_HEAD, "reset")
            assert (await running.ask(a_stream_post())).code == "closed_before_reply"
            assert len(replica.received) == 2

    run(law())


def test_surplus_bytes_reach_nobody_and_end_the_connection() -> None:
    async def law() -> None:
        surplus = a_reply(b'{"for": "somebody else"}')
        for answer in (a_reply() + surplus, STREAM_HEAD + chunked(EVENT) + surplus):
            replica = Scripted(answer)
            async with house_before(replica) as running:
                for _ in range(3):
                    reply = await running.ask(a_post())
                    assert reply.status == 200
                    assert reply.body in (b'{"ok": true}', EVENT)
                assert len(replica.received) == 3

    run(law())


def test_a_replica_that_speaks_unasked_loses_its_connection() -> None:
    async def law() -> None:
        replica = Scripted(script(a_reply(), 0.05, a_reply(b'{"for": "somebody else"}')))
        async with house_before(replica) as running:
            assert (await running.ask(a_post())).body == b'{"ok": true}'
            await until(lambda: replica.open == 0)
            assert (await running.ask(a_post())).body == b'{"ok": true}'

    run(law())


class Hasty(Scripted):
    """Answers as soon as it has a head, and reads no body."""

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET "):
            body = self._models if b"/v1/models" in head else b""
            writer.write(a_reply(body, headers=("connection: close",)))
            await writer.drain()
            raise ConnectionResetError
        self.received.append(Received((), b""))
        writer.write(a_reply(b'{"too": "large"}', status=413))
        await writer.drain()
        await asyncio.sleep(0.3)


@LOOPS
def test_an_answer_that_comes_before_the_body_was_sent_is_relayed_and_its_connection_not_reused(
    loop: str,
) -> None:
    async def law() -> None:
        replica = Hasty()
        async with house_before(replica) as running:
            for _ in range(2):
                reply = await running.ask(a_post(a_chat("x" * 8_000_000)))
                assert (reply.status, reply.body) == (413, b'{"too": "large"}')
            assert running.outcomes == {Outcome.FINISHED: 2}
            assert running.replicas[0].health is Health.HEALTHY

    run(law(), loop=loop)


@pytest.mark.parametrize(
    "before",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\ncontent-length: 9\r\n\r\n",
        b"\r\n",
    ],
)
def test_what_comes_before_the_response_is_not_the_response(before: bytes) -> None:
    async def law() -> None:
        for answer in (a_reply(), STREAM_HEAD + chunked(b'{"ok"', b": true}")):
            for played in (script(before + answer), script(before, 0.03, answer)):
                async with house_before(Scripted(played)) as running:
                    reply = await running.ask(a_post())
                    assert (reply.status, reply.body) == (200, b'{"ok": true}')

    run(law())


def test_a_big_head_passes_and_repeated_fields_stay() -> None:
    async def law() -> None:
        big = "x-big: " + "y" * 50_000
        replica = Scripted(a_reply(headers=("set-cookie: a=1", "set-cookie: b=2", big)))
        async with house_before(replica) as running:
            reply = await running.ask(a_post())
            assert reply.status == 200
            assert [value for name, value in reply.headers if name == "set-cookie"] == [
                "a=1",
                "b=2",
            ]
            assert len(reply.header("x-big") or "") == 50_000

    run(law())


@LOOPS
def test_a_client_of_http_1_0_gets_a_chunked_reply_unframed_and_the_end_by_the_close(
    loop: str,
) -> None:
    async def law() -> None:
        replica = Scripted(STREAM_HEAD + chunked(EVENT, EVENT))
        async with house_before(replica) as running:
            reply = await running.ask(a_post(a_chat(stream=True), version="1.0"))
            assert (reply.status, reply.body) == (200, EVENT + EVENT)
            assert reply.header("transfer-encoding") is None
            assert reply.header("connection") == "close"
            replica.answer = script(STREAM_HEAD, chunked(EVENT, end=False), "reset")
            async with running.wire() as wire:
                await wire.send(a_post(a_chat(stream=True), version="1.0"))
                await wire.head()
                with pytest.raises(ConnectionResetError):  # an end would make it look complete
                    await wire.reader.readuntil(b"\0")
            await running.until_quiet()
            assert running.reasons == {"stream_broken": 1}

    run(law(), loop=loop)


@LOOPS
def test_a_reply_that_ends_with_its_connection_is_framed_for_the_client(loop: str) -> None:
    async def law() -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n"
        for body in (b"", b"all of it"):
            replica = Scripted(script(head, body, "close") if body else script(head, "close"))
            async with house_before(replica) as running, running.wire() as wire:
                for _ in range(2):
                    await wire.send(a_post())
                    reply = await wire.reply()
                    assert (reply.status, reply.body) == (200, body)
                    assert reply.header("transfer-encoding") == "chunked"
                assert running.outcomes == {Outcome.FINISHED: 2}

    run(law(), loop=loop)


def test_a_request_is_brought_to_its_rank_and_the_client_does_not_say_which() -> None:
    async def test() -> None:
        scripted = Scripted()
        async with scripted.running():
            ranks = {"url": scripted.url, "data_parallel_size": 2}
            fleet = {"replicas": [ranks]}
            house = running_house({"fleet": fleet, "choose": {"policy": "round-robin"}}, [])
            async with house as running:
                await until(lambda: all(each.takes_work for each in running.replicas))
                for _ in range(4):
                    post = a_post(headers=(("X-Data-Parallel-Rank", "7"),))
                    assert (await running.ask(post)).status == 200
        told = [received.all("x-data-parallel-rank") for received in scripted.received]
        assert sorted(told) == [["0"], ["0"], ["1"], ["1"]]

    run(test())
