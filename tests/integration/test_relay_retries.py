"""Which failures are tried elsewhere, at what price, and what they say of a replica's health."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.vocabulary import Health, Outcome
from tests.builders import a_chat, a_post
from tests.house import a_sim, run, running_house
from tests.misbehaving import RARELY, house_before, script
from tests.scripted import STREAM_HEAD, Scripted, a_reply, chunked

PATIENT = {"fleet": {"probe_every_s": 60.0, "failures_to_eject": 1_000_000}}
"""Nothing is ever ejected: retries alone keep failures from clients."""

REFUSAL = a_reply(b'{"error": {"message": "busy here"}}', status=503, headers=("x-own: yes",))


def test_in_a_storm_of_503_one_good_replica_serves_everybody() -> None:
    async def law() -> None:
        async with running_house(PATIENT, [a_sim(), a_sim(), a_sim()]) as running:
            for sim in running.sims[:2]:
                sim.faults.merge({"refuse": {"status": 503}})
            replies = await asyncio.gather(*(running.ask(a_post()) for _ in range(40)))
            assert {reply.status for reply in replies} == {200}
            assert running.outcomes == {Outcome.FINISHED: 40}
            assert set(running.house.accounts.retries) == {"replica_unavailable"}
            await running.until_quiet()

    run(law())


def test_retries_stay_within_their_budget_and_then_the_replica_speaks_for_itself() -> None:
    async def law() -> None:
        tight = {"retry_budget_ratio": 0.1, "retry_budget_min_per_s": 0.0}
        replicas = Scripted(REFUSAL), Scripted(REFUSAL)
        async with house_before(*replicas, settings={**PATIENT, "relay": tight}) as running:
            for _ in range(30):
                reply = await running.ask(a_post())
                assert (reply.status, reply.header("x-own")) == (503, "yes")
            assert 1 <= sum(running.house.accounts.retries.values()) <= 1 + 3
            assert running.reasons == {"replica_failed": 30}

    run(law())


def test_when_all_replicas_are_unavailable_the_last_one_answers_itself() -> None:
    async def law() -> None:
        replicas = [Scripted(REFUSAL) for _ in range(3)]
        async with house_before(*replicas, settings=PATIENT) as running:
            reply = await running.ask(a_post())
            assert (reply.status, reply.header("x-own")) == (503, "yes")
            assert reply.json() == {"error": {"message": "busy here"}}
            assert [len(replica.received) for replica in replicas] == [1, 1, 1]
            assert running.outcomes == {Outcome.FAILED: 1}

    run(law())


def test_no_more_replicas_are_tried_than_the_settings_say() -> None:
    async def law() -> None:
        replicas = [Scripted(script("close")) for _ in range(4)]
        async with house_before(*replicas, settings=PATIENT) as running:
            assert (await running.ask(a_post())).code == "closed_before_reply"
            assert sum(len(replica.received) for replica in replicas) == 2, "once more, not thrice"
        replicas = [Scripted(REFUSAL) for _ in range(4)]
        async with house_before(
            *replicas, settings={**PATIENT, "relay": {"max_attempts": 2}}
        ) as running:
            await running.ask(a_post())
            assert sum(len(replica.received) for replica in replicas) == 2

    run(law())


def test_what_is_sent_again_is_the_same_request() -> None:
    async def law() -> None:
        replicas = Scripted(REFUSAL), Scripted(REFUSAL)
        async with house_before(*replicas, settings=PATIENT) as running:
            await running.ask(a_post(headers=[("x-request-id", "mine"), ("x-other", "too")]))
            first, second = (replica.received for replica in replicas)
            assert first[0].body == second[0].body == a_chat()
            assert [line for line in first[0].lines if not line.startswith("host")] == [
                line for line in second[0].lines if not line.startswith("host")
            ]

    run(law())


@pytest.mark.parametrize("stream", [False, True])
def test_a_500_is_tried_once_elsewhere_and_then_goes_to_the_client_as_it_came(
    *, stream: bool
) -> None:
    async def law() -> None:
        answer = a_reply(b'{"error": {"message": "boom"}}', status=500, headers=("x-own: yes",))
        replicas = Scripted(answer), Scripted(answer), Scripted(answer)
        async with house_before(*replicas, settings=PATIENT) as running:
            for asked in range(1, 5):
                reply = await running.ask(a_post(a_chat(stream=stream)))
                assert (reply.status, reply.header("x-own")) == (500, "yes")
                assert sum(len(replica.received) for replica in replicas) == 2 * asked
            assert running.reasons == {"replica_failed": 4}

    run(law())


def test_a_500_of_one_replica_costs_the_client_nothing_and_counts_against_that_replica() -> None:
    async def law() -> None:
        ill, well = Scripted(a_reply(b"{}", status=500)), Scripted(a_reply())
        async with house_before(ill, well) as running:
            for _ in range(40):
                assert (await running.ask(a_post())).status == 200
            assert len(ill.received) == 3, "three failures in a row, and it is out"
            assert [one.health for one in running.replicas] == [Health.EJECTED, Health.HEALTHY]
            assert running.outcomes == {Outcome.FINISHED: 40}

    run(law())


@pytest.mark.parametrize("status", [400, 404, 422, 429])
def test_a_refusal_of_the_client_is_relayed_and_is_no_sign_of_health(status: int) -> None:
    async def law() -> None:
        replica = Scripted(a_reply(b"{}", status=500))
        async with house_before(replica) as running:
            await running.ask(a_post())
            before = running.replicas[0].standing
            assert before.health is Health.SUSPECT
            replica.answer = a_reply(b"{}", status=status, headers=("retry-after: 7",))
            for _ in range(5):
                reply = await running.ask(a_post())
                assert (reply.status, reply.header("retry-after")) == (status, "7")
            assert running.replicas[0].standing is before
            replica.answer = a_reply()
            await running.ask(a_post())
            assert running.replicas[0].health is Health.HEALTHY
            assert running.outcomes == {Outcome.FAILED: 1, Outcome.FINISHED: 6}

    run(law())


def test_a_client_error_costs_no_replica_anything() -> None:
    async def law() -> None:
        async with running_house(RARELY) as running:
            for body in (b"{", b"[]", b"{}", a_chat(model="made-up"), a_chat(model=None)):  # type: ignore[arg-type]
                assert (await running.ask(a_post(body))).status in (400, 404)
            assert running.outcomes == {Outcome.REJECTED: 5}
            assert not running.house.accounts.attempts
            assert running.replicas[0].health is Health.HEALTHY

    run(law())


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_replicas_that_close_idle_connections_before_we_do_cost_no_client_anything(
    loop: str,
) -> None:
    async def law() -> None:
        lazy = {"relay": {"idle_connection_s": 60.0}, **RARELY}
        async with running_house(lazy, [a_sim(keep_alive_s=0.2)]) as running:

            async def client(pause_s: float) -> set[int]:
                statuses = set()
                for turn in range(7):
                    statuses.add((await running.ask(a_post(a_chat(max_tokens=1)))).status)
                    await asyncio.sleep(pause_s + turn * 0.001)
                return statuses

            found = await asyncio.gather(*(client(0.190 + one * 0.0005) for one in range(24)))
            assert set().union(*found) == {200}
            assert running.outcomes == {Outcome.FINISHED: 24 * 7}
            assert running.replicas[0].health is Health.HEALTHY
            await running.until_quiet()

    run(law(), loop=loop)


def test_tokens_and_times_are_taken_down_from_what_was_relayed() -> None:
    async def law() -> None:
        async with running_house() as running:
            await running.ask(a_post())
            await running.ask(a_post(a_chat(stream=True, stream_options={"include_usage": True})))
            await running.until_quiet()
            meters = running.house.accounts.by_model
            (one,) = meters.values()
            assert one.output_tokens == 10
            assert one.prompt_tokens > 0
            assert sum(one.ttft_s.counts) == 1
            assert sum(one.duration_s.counts) == 2

    run(law())


def test_a_replica_that_leaves_under_a_request_leaves_no_series_behind() -> None:
    async def law() -> None:
        replica = Scripted(
            script(STREAM_HEAD, chunked(b"data: x\n\n", end=False), 0.2, b"0\r\n\r\n")
        )
        async with house_before(replica) as running, running.wire() as wire:
            await wire.send(a_post(a_chat(stream=True)))
            await wire.head()
            running.house.roster.apply([], "static")
            assert [one.health for one in running.replicas] == [Health.DRAINING]
            _ = [chunk async for chunk in wire.chunks()]
            await running.until_quiet()
            assert not running.replicas
            assert not running.house.accounts.attempts
            assert running.outcomes == {Outcome.FINISHED: 1}
            reply = await running.ask(a_post())
            assert json.loads(reply.body)["error"]["code"] == "no_replica"

    run(law())
