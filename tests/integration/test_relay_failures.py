"""Replicas that fail on the wire: what a client sees, and what is tried again."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway.vocabulary import Outcome
from tests.builders import a_post
from tests.house import run, running_house, until
from tests.misbehaving import (
    EVENT,
    RARELY,
    a_stream_post,
    house_before,
    house_before_a_black_hole,
    script,
)
from tests.scripted import STREAM_HEAD, Script, Scripted, chunked

NAMED = ("/v1/messages", "/v1/responses")
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])

LENGTH_HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"
QUICK = {"first_byte_timeout_s": 0.2, "unary_timeout_s": 0.2, "stall_timeout_s": 0.2}


async def answered_by(answer: bytes | Script, post: bytes, **settings: Any) -> tuple[Any, ...]:
    """(status, error code or None, outcomes, reasons) of one request to one such replica."""
    async with house_before(Scripted(answer), settings=settings) as running:
        reply = await running.ask(post)
        code = reply.code if reply.status >= 400 and b'"code"' in reply.body else None
        return reply.status, code, running.outcomes, running.reasons


@LOOPS
@pytest.mark.parametrize("post", [a_post(), a_stream_post()], ids=["unary", "stream"])
@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (script("hang"), 504, "first_byte_timed_out"),
        (script(STREAM_HEAD, "hang"), 504, "first_byte_timed_out"),
        (script(LENGTH_HEAD, "hang"), 504, "first_byte_timed_out"),
        (script(b"\x16\x03\x01 not HTTP\r\n\r\n"), 502, "protocol_broken"),
        (script(SWITCHING), 502, "protocol_broken"),
        (script(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000), 502, "protocol_broken"),
        (script(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200_000), 502, "protocol_broken"),
        (script("close"), 502, "closed_before_reply"),
        (script("reset"), 502, "closed_before_reply"),
        (script(STREAM_HEAD, "reset"), 502, "closed_before_reply"),
        (script(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", "close"), 502, "closed_before_reply"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_replica_that_never_answers_gives_a_status_and_a_reason(
    answer: Script, status: int, reason: str, post: bytes, loop: str
) -> None:
    async def law() -> None:
        patience = QUICK if status == 504 else {}
        found = await answered_by(answer, post, relay=patience)
        assert found == (status, reason, {Outcome.FAILED: 1}, {reason: 1})

    run(law(), loop=loop)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(script("hang"), "first_byte_timed_out"), (script(b"nonsense\r\n\r\n"), "protocol_broken")],
)
def test_what_may_have_begun_is_not_tried_elsewhere(answer: Script, reason: str) -> None:
    async def law() -> None:
        replicas = Scripted(answer), Scripted(answer)
        async with house_before(
            *replicas, settings={"relay": QUICK if "timed_out" in reason else {}}
        ) as running:
            assert (await running.ask(a_post())).code == reason
            assert sum(len(replica.received) for replica in replicas) == 1
            assert not running.house.accounts.retries

    run(law())


@LOOPS
def test_a_replica_that_refuses_connections_is_left_for_another(loop: str) -> None:
    async def law() -> None:
        async with AsyncExitStack() as stack:
            dead = await stack.enter_async_context(Scripted().running())
            alive = Scripted()
            async with alive.running(), running_house(RARELY, [dead.url, alive.url]) as running:
                await until(lambda: all(one.takes_work for one in running.replicas))
                await stack.aclose()
                for _ in range(8):
                    assert (await running.ask(a_post())).status == 200
                await running.until_quiet()
                assert running.outcomes == {Outcome.FINISHED: 8}
                assert set(running.house.accounts.retries) == {"connect_failed"}

    run(law(), loop=loop)


@LOOPS
def test_the_only_replica_refusing_connections_is_a_502(loop: str) -> None:
    async def law() -> None:
        async with AsyncExitStack() as stack:
            dead = await stack.enter_async_context(Scripted().running())
            async with running_house(RARELY, [dead.url]) as running:
                await until(lambda: running.replicas[0].takes_work)
                await stack.aclose()
                reply = await running.ask(a_post())
                assert (reply.status, reply.code) == (502, "connect_failed")
                assert b"127.0.0.1" not in reply.body
                await running.until_quiet()

    run(law(), loop=loop)


@LOOPS
def test_a_connection_that_does_not_come_about_times_out_and_another_replica_serves(
    loop: str,
) -> None:
    async def law() -> None:
        quick = {"relay": {"connect_timeout_s": 0.2}}
        async with house_before_a_black_hole(quick) as running:
            reply = await running.ask(a_post())
            assert (reply.status, reply.code) == (504, "connect_timed_out")
        async with (
            Scripted().running() as other,
            house_before_a_black_hole(quick, others=(other.url,)) as running,
        ):
            for _ in range(4):
                assert (await running.ask(a_post())).status == 200
            assert set(running.house.accounts.retries) <= {"connect_timed_out"}

    run(law(), loop=loop)


async def check_broken_stream(
    path: str, rest: tuple[bytes | float | str, ...], reason: str
) -> None:
    """Two events, then `rest`: the client reads both, one of ours, and a proper end."""
    replica = Scripted(script(STREAM_HEAD, chunked(EVENT, EVENT, end=False), *rest))
    patience = {"stall_timeout_s": 0.2} if reason == "stream_stalled" else {}
    async with (
        house_before(replica, settings={"relay": patience}) as running,
        running.wire() as wire,
    ):
        await wire.send(a_stream_post(path))
        reply = await wire.reply()  # fails where the framing is not whole
        assert await wire.rest() == b"", "the connection closes"
        assert reply.status == 200
        assert reply.body.startswith(EVENT + EVENT)
        *named, data = reply.body.strip().split(b"\n\n")[-1].split(b"\n")
        assert named == ([b"event: error"] if path in NAMED else [])
        document = json.loads(data.removeprefix(b"data: "))
        assert document["error"]["code"] == reason
        assert (document.get("type") == "error") == (path == "/v1/messages")
        assert b"[DONE]" not in reply.body
        await running.until_quiet()
        assert running.reasons == {reason: 1}


@LOOPS
@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (("reset",), "stream_broken"),
        (("close",), "stream_broken"),
        ((b"40\r\ndata: half an ev", "reset"), "stream_broken"),
        ((b"40\r\ndata: half an ev", "close"), "stream_broken"),
        ((b"4", "close"), "stream_broken"),
        ((0.05, b"zz\r\n"), "stream_broken"),
        (("hang",), "stream_stalled"),
        ((b"40\r\ndata: half an ev", "hang"), "stream_stalled"),
    ],
    ids=["reset", "close", "half-reset", "half-close", "in-size", "no-size", "hang", "half-hang"],
)
def test_a_stream_that_breaks_ends_with_an_event_that_says_so(
    rest: tuple[bytes | float | str, ...], reason: str, loop: str
) -> None:
    run(check_broken_stream("/v1/chat/completions", rest, reason), loop=loop)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses", "/v1/messages"])
def test_every_route_is_told_of_a_broken_stream_in_its_own_dialect(path: str) -> None:
    run(check_broken_stream(path, ("reset",), "stream_broken"))


@LOOPS
@pytest.mark.parametrize("end", ["reset", "close"])
def test_a_body_of_announced_length_that_breaks_is_cut(end: str, loop: str) -> None:
    async def law() -> None:
        replica = Scripted(script(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", end))
        async with house_before(replica) as running, running.wire() as wire:
            await wire.send(a_post())
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await wire.reply()
            await running.until_quiet()
            assert running.reasons == {"stream_broken": 1}

    run(law(), loop=loop)
