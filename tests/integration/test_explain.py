"""People can ask where their request went, or would go, and why."""

from __future__ import annotations

from tests.builders import a_chat, a_post
from tests.house import a_sim, run, running_house
from tests.scripted import Scripted

EXPLAIN = [("X-Headrace-Explain", "1")]
CACHE_AWARE = {"choose": {"policy": "cache-aware"}}


def test_a_response_says_why_its_replica_was_chosen() -> None:
    async def law() -> None:
        async with running_house(CACHE_AWARE, replicas=[a_sim(), a_sim()]) as running:
            body = a_chat("where does this go? " * 200)
            plain = await running.ask(a_post(body))
            assert plain.header("x-headrace-decision") is None
            said = (await running.ask(a_post(body, headers=EXPLAIN))).header("x-headrace-decision")
            assert said is not None
            parts = dict(part.split("=") for part in said.split("; "))
            assert parts["replica"] in {one.id for one in running.replicas}
            assert parts["reason"] == "cached"
            assert int(parts["hit_tokens"]) > 0
            assert parts["runner_up"] != parts["replica"]

    run(law())


def test_the_question_is_not_passed_on() -> None:
    replica = Scripted()

    async def law() -> None:
        async with running_house(replicas=[replica]) as running:
            await running.ask(a_post(headers=EXPLAIN))
            assert b"x-headrace" not in replica.raw.lower()

    run(law())


def test_a_body_can_be_explained_without_being_sent() -> None:
    async def law() -> None:
        async with running_house(CACHE_AWARE, replicas=[a_sim(), a_sim()]) as running:
            before = running.house.accounts.received
            reply = await running.ask(a_post(a_chat("explain me"), path="/debug/route"))
            assert reply.status == 200
            table = reply.json()
            assert [row["cost"] for row in table["replicas"]] == sorted(
                row["cost"] for row in table["replicas"]
            )
            assert len(table["replicas"]) == 2
            assert "explain me" not in reply.body.decode()
            assert running.house.accounts.received == before
            wrong = await running.ask(a_post(b"{", path="/debug/route"))
            assert (wrong.status, wrong.code) == (400, "invalid_request")
            nowhere = await running.ask(a_post(path="/debug/route?path=/nowhere"))
            assert (nowhere.status, nowhere.code) == (404, "unknown_path")

    run(law())
