"""A full replica: who comes next waits here, is told so, and has its turn, or hears why not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.vocabulary import Outcome
from tests.builders import a_chat, a_get, a_post
from tests.house import Answer, RunningHouse, Wire, a_sim, run, running_house, until

ONE_AT_A_TIME = {"max_sequences": 1, "comment_every_s": 0.01}
COMMENT = b": waiting\n\n"
A_STREAM = a_post(a_chat(stream=True))


def settings(**hold: Any) -> dict[str, dict[str, Any]]:
    return {"hold": {**ONE_AT_A_TIME, **hold}}


async def a_holder(running: RunningHouse, replica: int = 0) -> Wire:
    """A client that holds the only place of a replica until it leaves."""
    running.sims[replica].faults.merge({"stuck": {"next": 1}})
    wire = await running.connect()
    await wire.send(A_STREAM)
    await until(lambda: running.house.relay.busy == 1)
    return wire


async def a_waiter(running: RunningHouse, post: bytes = A_STREAM) -> Wire:
    wire = await running.connect()
    before = sum(running.house.waiting.values())
    await wire.send(post)
    await until(lambda: sum(running.house.waiting.values()) == before + 1)
    return wire


async def the_rest(wire: Wire) -> bytes:
    return b"".join([chunk async for chunk in wire.chunks()])


async def a_comment(wire: Wire) -> Answer:
    """The head that goes out with the first comment."""
    head = await wire.head()
    assert head.status == 200
    assert (head.header("content-type") or "").startswith("text/event-stream")
    return head


def test_a_stream_that_waits_is_sent_comments_and_then_its_answer() -> None:
    async def law() -> None:
        async with running_house(settings(), [a_sim()]) as running:
            holder = await a_holder(running)
            wire = await a_waiter(running)
            await a_comment(wire)
            await until(lambda: running.house.waiting["default"] == 1)
            holder.abort()
            body = await the_rest(wire)
            assert body.startswith(COMMENT)
            assert body.endswith(b"data: [DONE]\n\n")
            assert body.count(b"data: [DONE]") == 1
            await wire.send(a_post())  # and the connection is good for another
            assert (await wire.reply()).status == 200
            await wire.close()
            await running.until_quiet()
            assert running.outcomes == {Outcome.CLIENT_GONE: 1, Outcome.FINISHED: 2}

    run(law())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_a_refusal_that_comes_after_comments_is_an_event(path: str) -> None:
    async def law() -> None:
        async with running_house(settings(), [a_sim()]) as running:
            holder = await a_holder(running)
            body = a_chat(stream=True)
            if path == "/v1/responses":
                body = body.replace(b'"messages": [', b'"input": [').replace(
                    b"max_tok", b"max_output_tok"
                )
            wire = await a_waiter(running, a_post(body, path=path))
            await a_comment(wire)
            running.sims[0].faults.merge({"refuse": {"status": 429}})
            holder.abort()
            events = (await the_rest(wire)).replace(COMMENT, b"").strip()
            named = b"event: error\n" if path == "/v1/responses" else b""
            assert events.startswith(named + b'data: {"error":')
            await wire.close()
            await running.until_quiet()

    run(law())


def test_another_replica_may_be_tried_after_comments() -> None:
    async def law() -> None:
        async with running_house(settings(), [a_sim(), a_sim()]) as running:
            holders = [await running.connect() for _ in range(2)]
            for sim in running.sims:
                sim.faults.merge({"stuck": {}})
            for holder in holders:
                await holder.send(A_STREAM)
            await until(lambda: running.house.relay.busy == 2)
            for sim in running.sims:
                sim.faults.clear()
            wire = await a_waiter(running)
            await a_comment(wire)
            (waiter,) = running.house.gate.crowd
            ids = [each.id for each in running.replicas]
            sim = running.sims[ids.index(waiter.lane.replica)]
            sim.faults.merge({"refuse": {"status": 503, "next": 1}})
            for holder in holders:
                holder.abort()
            assert (await the_rest(wire)).endswith(b"data: [DONE]\n\n")
            await wire.close()
            await running.until_quiet()
            assert running.house.accounts.retries == {"replica_unavailable": 1}

    run(law())


def test_a_unary_request_waits_in_silence() -> None:
    async def law() -> None:
        async with running_house(settings(), [a_sim()]) as running:
            holder = await a_holder(running)
            wire = await a_waiter(running, a_post())
            await asyncio.sleep(0.3)
            holder.abort()
            assert (await wire.reply()).json()["object"] == "chat.completion"
            await wire.close()

    run(law())


def test_who_waits_for_a_replica_that_dies_goes_to_another() -> None:
    async def law() -> None:
        async with running_house(settings(), [a_sim(), a_sim()]) as running:
            running.sims[0].faults.merge({"stuck": {}})
            running.sims[1].faults.merge({"stuck": {}})
            wires = [await running.connect() for _ in range(4)]
            for wire in wires:
                await wire.send(A_STREAM)
            await until(lambda: running.house.waiting["default"] == 2)
            for sim in running.sims:
                sim.faults.clear()
            running.sims[0].crash("exit")
            # Of the two that had turns one hangs with the other replica; both that waited are
            # served by it once that one has left.
            await until(lambda: not running.replicas[0].takes_work)
            for wire in wires[:2]:
                wire.abort()
            bodies = []
            for wire in wires[2:]:
                await wire.head()
                bodies.append(await the_rest(wire))
                await wire.close()
            assert all(body.endswith(b"data: [DONE]\n\n") for body in bodies)
            await running.until_quiet()

    run(law())


def test_a_full_queue_says_so_at_once() -> None:
    async def law() -> None:
        bounds = {"requests": 1, "tokens": 10_000, "size_bytes": 10_000}
        for name, status, code in (
            ("in_all", 503, "queue_full"),
            ("per_tenant", 429, "tenant_queue_full"),
        ):
            async with running_house(settings(**{name: bounds}), [a_sim()]) as running:
                holder = await a_holder(running)
                wire = await a_waiter(running)
                answer = await running.ask(a_post())
                assert (answer.status, answer.code) == (status, code)
                assert int(answer.header("retry-after") or 0) >= 1
                holder.abort()
                wire.abort()
                await running.until_quiet()
                assert running.outcomes[Outcome.REJECTED] == 1

    run(law())


def test_a_client_that_leaves_frees_its_place_at_once() -> None:
    async def law() -> None:
        async with running_house(settings(), [a_sim()]) as running:
            holder = await a_holder(running)
            wire = await a_waiter(running)
            wire.abort()
            await until(lambda: not running.house.waiting["default"], within_s=0.2)
            assert running.ledgers == [(1, running.ledgers[0][1])]
            holder.abort()
            await running.until_quiet()
            assert running.outcomes == {Outcome.CLIENT_GONE: 2}

    run(law())


def test_who_has_waited_too_long_or_beyond_its_deadline_is_sent_away() -> None:
    async def law() -> None:
        async with running_house(settings(max_wait_s=0.5), [a_sim()]) as running:
            holder = await a_holder(running)
            hurried = a_post(headers=[("X-Headrace-Deadline-Ms", "100")])
            answers = await asyncio.gather(
                running.ask(hurried), running.ask(a_post()), running.ask(A_STREAM)
            )
            assert [answer.status for answer in answers] == [504, 503, 200]
            assert [answer.code for answer in answers[:2]] == ["deadline_missed", "waited_too_long"]
            assert b'"code":"waited_too_long"' in answers[2].body
            page = (await running.ask(a_get("/metrics"), method="GET")).body.decode()
            assert 'outcome="evicted",reason="deadline_missed"' in page
            assert 'gateway_requests_waiting{class="default"} 0.0' in page
            holder.abort()
            await running.until_quiet()
            assert running.outcomes == {Outcome.EVICTED: 3, Outcome.CLIENT_GONE: 1}

    run(law())


@pytest.mark.parametrize("value", ["soon", "-1", "1.5", "9999999999"])
def test_a_deadline_is_a_whole_number_of_milliseconds(value: str) -> None:
    async def law() -> None:
        async with running_house(settings(), [a_sim()]) as running:
            answer = await running.ask(a_post(headers=[("X-Headrace-Deadline-Ms", value)]))
            assert (answer.status, answer.code) == (400, "invalid_request")

    run(law())


def test_a_batch_whose_prompt_is_still_to_be_read_makes_way_and_is_served_later() -> None:
    async def law() -> None:
        async with running_house(None, [a_sim()]) as running:
            running.sims[0].faults.merge({"stuck": {"next": 1}})
            batch = await running.connect()
            of_batch = [("X-Headrace-Class", "batch")]
            await batch.send(a_post(a_chat(stream=True), headers=of_batch))
            await until(lambda: running.house.relay.busy == 1)
            answer = await running.ask(A_STREAM)
            assert answer.body.endswith(b"data: [DONE]\n\n")
            assert (await batch.reply()).body.endswith(b"data: [DONE]\n\n")
            await batch.close()
            await running.until_quiet()
            assert running.outcomes == {Outcome.FINISHED: 2}
            assert not running.house.accounts.retries

    run(law())
