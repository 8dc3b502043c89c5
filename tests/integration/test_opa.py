"""May a tenant call a model, with these tools? A gateway, a policy in Rego, and a sidecar that
answers, is slow, answers oddly, or is not there."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.vocabulary import Outcome
from tests.builders import MODEL, a_chat, a_get, a_post
from tests.house import Answer, Behind, RunningHouse, run, running_house, until
from tests.integration.test_batches import a_batch, a_file, a_line, ended, lines_of
from tests.keyed import a_client, a_document
from tests.opa import PolicyServer
from tests.scripted import Held, Scripted, a_reply

ROOT = Path(__file__).resolve().parents[2]
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
DATA = {"may": {"": {"models": [MODEL], "tools": ["search"]}}}
"""Of tenants without a name: there are no keys here."""


def documented() -> str:
    """The sample policy of docs/trust.md."""
    found = re.findall(r"```rego\n(.*?)```", (ROOT / "docs/trust.md").read_text(), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def asking(policy: PolicyServer, **knobs: Any) -> dict[str, Any]:
    return {"trust": {"opa": {"url": policy.url, **knobs}}}


@asynccontextmanager
async def guarded(
    policy: PolicyServer, replicas: Sequence[Behind] | None = None, **knobs: Any
) -> AsyncIterator[RunningHouse]:
    """A gateway that asks it."""
    async with policy.running(), running_house(asking(policy, **knobs), replicas) as running:
        yield running


def a_tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


async def decisions(running: RunningHouse) -> dict[str, float]:
    async with running.wire() as wire:
        await wire.send(a_get("/metrics"))
        page = (await wire.reply()).body.decode()
    found = re.findall(r'^gateway_policy_decisions_total{decision="(\w+)"} (\S+)$', page, re.M)
    return {decision: float(count) for decision, count in found if float(count)}


@LOOPS
def test_the_policy_decides_and_its_reason_is_told(loop: str) -> None:
    async def law() -> None:
        policy = PolicyServer(documented(), DATA)
        async with guarded(policy) as running:
            assert (await running.ask(a_post())).status == 200
            tools = [a_tool("search"), a_tool("shell")]
            answer = await running.ask(a_post(a_chat("secret words", tools=tools)))
            assert (answer.status, answer.code) == (403, "policy_denied")
            told = answer.json()["error"]["message"]
            assert told == "The policy does not allow this: the tool shell is not for you"
            assert policy.asked == [
                {"tenant": "", "model": MODEL, "tools": []},
                {"tenant": "", "model": MODEL, "tools": ["search", "shell"]},
            ]
            await running.until_quiet()
            assert running.outcomes == {Outcome.FINISHED: 1, Outcome.REJECTED: 1}
            assert await decisions(running) == {"allowed": 1, "denied": 1}

    run(law(), loop=loop)


def test_a_question_is_asked_again_when_its_answer_is_old() -> None:
    async def law() -> None:
        policy = PolicyServer(documented(), DATA)
        async with guarded(policy, cache_s=0.3) as running:
            for _ in range(5):
                assert (await running.ask(a_post())).status == 200
            assert len(policy.asked) == 1
            await asyncio.sleep(0.35)
            policy.data = {}
            assert (await running.ask(a_post())).status == 403
            assert len(policy.asked) == 2

    run(law())


@LOOPS
def test_nobody_may_while_the_sidecar_is_away_and_all_is_well_when_it_is_back(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def law() -> None:
        policy, replica = PolicyServer(documented(), DATA), Scripted()
        async with policy.running():
            pass
        async with running_house(asking(policy), [replica]) as running:
            for _ in range(3):
                undecided(await running.ask(a_post()))
            assert not replica.received
            async with policy.running():
                assert (await running.ask(a_post())).status == 200
            assert await decisions(running) == {"allowed": 1, "undecided": 3}
            await running.until_quiet()
            assert running.outcomes == {Outcome.FINISHED: 1, Outcome.FAILED: 3}
        assert caplog.text.count("does not decide") == 1
        assert caplog.text.count("answers") == 1

    with caplog.at_level("INFO", "gateway.trust.opa"):
        run(law(), loop=loop)


def undecided(answer: Answer) -> None:
    assert (answer.status, answer.code) == (503, "policy_unavailable")


def test_a_slow_sidecar_costs_no_more_than_its_time() -> None:
    """The wait for a place among those who ask is part of it."""

    async def law() -> None:
        policy = PolicyServer(documented(), DATA, pause_s=0.2)
        async with guarded(policy, timeout_s=0.5, max_asking=1) as running:
            asks = [a_post(a_chat(tools=[a_tool(f"tool {n}")])) for n in range(8)]
            answers = await asyncio.gather(*(running.ask(each) for each in asks))
            codes = [answer.code for answer in answers]
            assert set(codes) == {"policy_denied", "policy_unavailable"}
            assert codes.count("policy_denied") <= 2
            policy.pause_s = 5.0
            undecided(await running.ask(a_post()))
            policy.pause_s = 0.0
            assert (await running.ask(a_post())).status == 200

    run(law())


def test_those_who_wait_with_the_same_question_are_told_what_the_first_has_heard() -> None:
    async def law() -> None:
        policy = PolicyServer(documented(), DATA, pause_s=0.2)
        async with guarded(policy, timeout_s=10.0, max_asking=1) as running:
            for answer in await asyncio.gather(*(running.ask(a_post()) for _ in range(8))):
                assert answer.status == 200
            assert len(policy.asked) == 1
            asks = [a_post(a_chat(tools=[a_tool(f"tool {n}")])) for n in range(4)]
            for answer in await asyncio.gather(*(running.ask(each) for each in asks)):
                assert answer.status == 403
            assert (len(policy.asked), policy.most_open) == (5, 1)

    run(law())


ODD = {
    "undefined": a_reply(b"{}"),
    "null": a_reply(b'{"result": null}'),
    "a word": a_reply(b'{"result": "true"}'),
    "a number": a_reply(b'{"result": 1}'),
    "a list": a_reply(b'{"result": [true]}'),
    "an object that does not say": a_reply(b'{"result": {"reason": "yes"}}'),
    "an allow that is a word": a_reply(b'{"result": {"allow": "true"}}'),
    "no JSON": a_reply(b"true"),
    "half": a_reply(b'{"result": tr'),
    "no text": a_reply(b'{"result": {"allow": true, "reason": "\xff"}}'),
    "an error": a_reply(b'{"result": true}', status=500),
    "a redirection": a_reply(b'{"result": true}', status=302),
    "no HTTP": b"\x00\x01\x02\r\n\r\n",
    "nothing": b"",
    "cut short": a_reply(b'{"result": true}')[:-3],
    "without end": a_reply(b'{"result": true}' + b" " * (1024 * 1024)),
}


def test_an_odd_answer_lets_nobody_in() -> None:
    async def law() -> None:
        replica = Scripted()
        policy = PolicyServer(documented(), DATA)
        async with guarded(policy, [replica]) as running:
            for policy.answer in ODD.values():
                undecided(await running.ask(a_post()))
            assert not replica.received
            policy.answer = a_reply(b'{"result": true, "decision_id": "1", "metrics": {}}')
            assert (await running.ask(a_post())).status == 200

    run(law())


@LOOPS
def test_a_client_that_leaves_while_the_policy_is_asked_leaves_nothing(loop: str) -> None:
    async def law() -> None:
        replica = Scripted()
        async with PolicyServer(documented(), DATA, pause_s=30.0).running() as policy:
            settings = asking(policy, timeout_s=20.0, max_asking=1)
            async with running_house(settings, [replica]) as running:
                first, second = await running.connect(), await running.connect()
                await first.send(a_post())
                await until(lambda: policy.open == 1)
                await second.send(a_post())
                await until(lambda: running.house.accounts.open_entries == 2)
                second.abort()  # while it waits for its place
                await until(lambda: running.house.accounts.open_entries == 1)
                first.abort()
                await running.until_quiet()
                assert running.outcomes == {Outcome.CLIENT_GONE: 2}
                policy.pause_s = 0.0
                assert (await running.ask(a_post())).status == 200  # its place is free again
                assert len(replica.received) == 1

    run(law(), loop=loop)


def test_a_stream_is_decided_before_it_begins_and_not_again() -> None:
    async def law() -> None:
        held = Held()
        policy = PolicyServer(documented(), DATA)
        async with guarded(policy, [Scripted(held)], cache_s=0) as running:
            async with running.wire() as wire:
                await wire.send(a_post(a_chat("held", stream=True)))
                await wire.head()
                policy.data = {}
                held.released.set()
                assert b"[DONE]" in b"".join([piece async for piece in wire.chunks()])
            await running.until_quiet()
            assert len(policy.asked) == 1
            assert (await running.ask(a_post())).status == 403

    run(law())


def test_a_tenant_is_asked_about_by_its_name_and_so_is_what_its_batches_hold(
    tmp_path: Path,
) -> None:
    async def law() -> None:
        keys, lines = tmp_path / "keys.yaml", (a_line("one"), a_line("two", tools=[a_tool("rm")]))
        keys.write_text(a_document())
        may = {"acme": {"models": [MODEL], "tools": ["search"]}}
        policy = PolicyServer(documented(), {"may": may})
        async with policy.running():
            settings: dict[str, Any] = {
                **asking(policy),
                "tenants": {"path": str(keys)},
                "batch": {"folder": str(tmp_path / "batches")},
            }
            async with running_house(settings) as running, a_client(running) as client:
                batch = await ended(client, await a_batch(client, a_file(lines)))
                assert [each["tenant"] for each in policy.asked] == ["acme", "acme"]
                [done] = await lines_of(client, batch.output_file_id)
                assert done["custom_id"] == "one"
                [refused] = await lines_of(client, batch.error_file_id)
                assert refused["custom_id"] == "two"
                assert refused["response"]["status_code"] == 403
                assert refused["response"]["body"]["error"]["code"] == "policy_denied"

    run(law())


@pytest.mark.parametrize("tools", [7, ["shell"], [{}], [{"type": "function"}], [{"name": ""}]])
def test_tools_without_a_name_are_refused_and_not_asked_about(tools: object) -> None:
    async def law() -> None:
        policy = PolicyServer(documented(), DATA)
        async with guarded(policy) as running:
            answer = await running.ask(a_post(a_chat(tools=tools)))
            assert (answer.status, answer.code) == (400, "invalid_request")
            assert answer.json()["error"]["param"] == "tools"
            assert not policy.asked

    run(law())


def test_the_sample_policy_knows_tenants_by_their_names() -> None:
    policy = PolicyServer(documented(), {"may": {"acme": {"models": ["m"], "tools": ["a"]}}})
    for asked, allowed in (
        ({"tenant": "acme", "model": "m", "tools": ["a"]}, True),
        ({"tenant": "acme", "model": "n", "tools": []}, False),
        ({"tenant": "acme", "model": "m", "tools": ["b"]}, False),
        ({"tenant": "other", "model": "m", "tools": []}, False),
    ):
        reply = policy._decide("POST /v1/data/headrace/decision HTTP/1.1", {"input": asked})
        result = json.loads(reply.partition(b"\r\n\r\n")[2])["result"]
        assert result["allow"] is allowed, asked
        assert allowed or result["reason"]
