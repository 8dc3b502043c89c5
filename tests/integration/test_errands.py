"""Requests of our own live as everybody's do."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.clock import monotonic
from gateway.errands import Errands
from gateway.errors import ClosedBeforeReply, NoReplica
from gateway.vocabulary import Outcome
from tests.builders import a_chat, a_route
from tests.house import RunningHouse, run, running_house, until
from tests.misbehaving import house_before, script
from tests.scripted import Scripted

ROUTE = a_route()
PATIENT = {"fleet": {"probe_every_s": 60.0, "failures_to_eject": 1_000_000}}


def errands(house: RunningHouse) -> Errands:
    return Errands(house.house.life.live, monotonic)


def test_an_errand_is_answered_and_accounted_for() -> None:
    async def law() -> None:
        async with running_house() as house:
            errand = errands(house).new(ROUTE, a_chat(), "")
            answer = await errand.run()
            assert (answer.status, answer.error) == (200, None)
            assert json.loads(answer.body)["usage"]["completion_tokens"] == 5
            assert errand.replica == house.replicas[0].id
            await house.until_quiet()
            assert house.outcomes == {Outcome.FINISHED: 1}

    run(law())


@pytest.mark.parametrize(
    ("body", "status", "ours"),
    [(b"{", 400, True), (a_chat(model="nope"), 404, True), (a_chat(max_tokens=-5), 400, True),
     (a_chat(max_tokens=10**7), 400, False)],
)  # fmt: skip
def test_what_is_refused_is_an_answer_too(body: bytes, status: int, ours: bool) -> None:
    async def law() -> None:
        async with running_house() as house:
            answer = await errands(house).new(ROUTE, body, "").run()
            assert (answer.status, answer.error is not None) == (status, ours)
            assert json.loads(answer.body)["error"]["message"]

    run(law())


def test_without_a_replica_it_is_told_so() -> None:
    async def law() -> None:
        async with running_house({}, []) as house:
            answer = await errands(house).new(ROUTE, a_chat(), "").run()
            assert isinstance(answer.error, NoReplica)
            assert answer.status == 503

    run(law())


def test_what_is_to_go_to_some_is_tried_again_among_those_only() -> None:
    async def law() -> None:
        replicas = [Scripted(script("close")) for _ in range(3)]
        async with house_before(*replicas, settings=PATIENT) as running:
            errand = errands(running).new(ROUTE, a_chat(), "")
            first, second, _ = (replica.id for replica in running.replicas)
            errand.among = {first}
            assert isinstance((await errand.run()).error, ClosedBeforeReply)
            assert [len(replica.received) for replica in replicas] == [1, 0, 0]
            assert not running.house.accounts.retries, "there is no other"
            errand = errands(running).new(ROUTE, a_chat(), "")
            errand.among = {first, second}
            await errand.run()
            assert [len(replica.received) for replica in replicas] == [2, 1, 0]
            assert running.house.accounts.retries == {"closed_before_reply": 1}

    run(law())


def test_a_stream_comes_back_unframed() -> None:
    async def law() -> None:
        async with running_house() as house:
            answer = await errands(house).new(ROUTE, a_chat(stream=True), "").run()
            assert answer.body.startswith(b"data: {")
            assert answer.body.endswith(b"data: [DONE]\n\n")

    run(law())


def test_who_no_longer_waits_stops_the_engine() -> None:
    async def law() -> None:
        async with running_house() as house:
            errand = errands(house).new(ROUTE, a_chat(max_tokens=30_000, ignore_eos=True), "")
            task = asyncio.create_task(errand.run())
            await until(lambda: house.sims[0].engine.running)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await house.until_quiet()
            assert house.outcomes == {Outcome.CLIENT_GONE: 1}

    run(law())
