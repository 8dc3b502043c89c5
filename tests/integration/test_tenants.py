"""Keys over real sockets, with the official client: who enters, for how much, and what is told."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.tenants.keys import digest
from gateway.vocabulary import Outcome
from tests.builders import MODEL, a_chat, a_get, a_post
from tests.house import a_sim, run, running_house, until
from tests.keyed import ACME, OTHER, SECRET, a_client, a_document, bearing, keyed_house
from tests.scripted import Scripted, a_reply

HELLO: list[Any] = [{"role": "user", "content": "hello there, how are you"}]


def test_a_key_opens_and_nothing_else_does(tmp_path: Path) -> None:
    async def law() -> None:
        async with keyed_house(tmp_path, a_document()) as running:
            async with a_client(running) as client:
                reply = await client.chat.completions.create(
                    model=MODEL, messages=HELLO, max_tokens=5
                )
                assert reply.usage is not None
                assert [model.id async for model in client.models.list()] == [MODEL]
                used = running.house.members["acme"].allowance.settled
                assert used == reply.usage.total_tokens
            async with a_client(running, "hr-nobody") as client:
                with pytest.raises(openai.AuthenticationError) as refused:
                    await client.chat.completions.create(model=MODEL, messages=HELLO)
                assert refused.value.code == "invalid_api_key"
                assert refused.value.response.headers["www-authenticate"] == "Bearer"
                with pytest.raises(openai.AuthenticationError):
                    await client.models.list()
            x_api_key = [("X-Api-Key", ACME.key)]
            assert (await running.ask(a_post(headers=x_api_key))).status == 200
            for request in (a_post(), a_get("/v1/models"), a_get("/debug/fleet")):
                answer = await running.ask(request)
                assert (answer.status, answer.code) == (401, "invalid_api_key")
            for path in ("/healthz", "/readyz", "/metrics"):
                assert (await running.ask(a_get(path))).status == 200
            assert running.reasons == {"invalid_api_key": 2}

    run(law())


def test_a_stranger_s_large_body_is_not_waited_for(tmp_path: Path) -> None:
    small, large = 1000, 1_000_000

    async def law() -> None:
        async with keyed_house(tmp_path, a_document()) as running:
            for key, length, is_refused in (
                ("hr-nobody", large, True),
                ("hr-nobody", small, False),
                (ACME.key, large, False),
            ):
                async with running.wire() as wire:
                    fields = f"Host: g\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n"
                    await wire.send(
                        f"POST /v1/completions HTTP/1.1\r\n{fields}"
                        f"Authorization: Bearer {key}\r\n\r\n".encode()
                    )
                    answer = await wire.head()
                    assert answer.status == (401 if is_refused else 100)
            async with running.wire() as wire:
                await wire.send(
                    b"POST /v1/completions HTTP/1.1\r\nHost: g\r\n"
                    b"Transfer-Encoding: chunked\r\n\r\n"
                )
                answer = await wire.reply()
                assert (answer.status, answer.code) == (401, "invalid_api_key")
                assert answer.header("connection") == "close"

    run(law())


def test_a_tenant_sees_and_asks_for_its_models_only(tmp_path: Path) -> None:
    async def law() -> None:
        document = a_document({"models": ["mine"]})
        sim = a_sim(models=("mine", "theirs"))
        async with keyed_house(tmp_path, document, [sim]) as running, a_client(running) as client:
            assert [model.id async for model in client.models.list()] == ["mine"]
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("theirs")
            await client.chat.completions.create(model="mine", messages=HELLO, max_tokens=2)
            with pytest.raises(openai.PermissionDeniedError) as refused:
                await client.chat.completions.create(model="theirs", messages=HELLO)
            assert refused.value.code == "model_not_allowed"
            assert running.outcomes == {Outcome.FINISHED: 1, Outcome.REJECTED: 1}

    run(law())


def test_limits_are_told_and_kept(tmp_path: Path) -> None:
    async def law() -> None:
        document = a_document({"requests_per_minute": 2, "tokens_per_minute": 6000})
        async with keyed_house(tmp_path, document) as running, a_client(running) as client:
            create = client.chat.completions.with_raw_response.create
            first = await create(
                model=MODEL,
                messages=HELLO,
                max_tokens=5,
                extra_headers={"X-Headrace-Explain": "1"},
            )
            assert "reason=" in first.headers["x-headrace-decision"]
            assert first.headers["x-ratelimit-limit-requests"] == "2"
            assert first.headers["x-ratelimit-remaining-requests"] == "1"
            assert int(first.headers["x-ratelimit-reset-requests"].removesuffix("ms")) <= 30_000
            assert int(first.headers["x-ratelimit-remaining-tokens"]) < 6000
            stream = await client.chat.completions.create(
                model=MODEL, messages=HELLO, max_tokens=5, stream=True
            )
            assert [chunk async for chunk in stream]
            with pytest.raises(openai.RateLimitError) as refused:
                await create(model=MODEL, messages=HELLO)
            assert refused.value.code == "rate_limit_exceeded"
            headers = refused.value.response.headers
            assert headers["x-ratelimit-remaining-requests"] == "0"
            assert 25 <= int(headers["retry-after"]) <= 30
            allowance = running.house.members["acme"].allowance
            assert allowance.open == 0
            assert allowance.reserved + allowance.overdrawn == (
                allowance.settled + allowance.returned
            )
            exposed = (await running.ask(a_get("/metrics"))).body.decode()
            assert 'gateway_tenant_requests_total{tenant="acme"} 2.0' in exposed
            assert (
                'gateway_tenant_refusals_total{reason="rate_limit_exceeded",tenant="acme"} 1.0'
            ) in exposed

    run(law())


def test_who_leaves_gives_back_its_place_and_what_it_has_not_used(tmp_path: Path) -> None:
    async def law() -> None:
        document = a_document({"max_concurrent": 1, "tokens_per_minute": 60_000})
        async with keyed_house(tmp_path, document) as running:
            allowance = running.house.members["acme"].allowance
            wire = await running.connect()
            body = a_chat(max_tokens=5000, stream=True)
            await wire.send(a_post(body, headers=bearing(ACME.key)))
            await wire.head()
            refused = await running.ask(a_post(headers=bearing(ACME.key)))
            assert (refused.status, refused.code) == (429, "too_many_at_once")
            assert refused.header("retry-after") is not None
            wire.abort()
            await until(lambda: allowance.open == 0)
            assert 0 < allowance.settled < 4000
            assert allowance.reserved == allowance.settled + allowance.returned
            assert (await running.ask(a_post(headers=bearing(ACME.key)))).status == 200

    run(law())


def test_new_tenants_are_taken_up_and_bad_ones_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def law() -> None:
        path = tmp_path / "tenants.yaml"
        async with keyed_house(tmp_path, a_document()) as running:
            house = running.house
            post = a_post(headers=bearing(OTHER.key))
            assert (await running.ask(post)).status == 401
            wire = await running.connect()
            body = a_chat(max_tokens=200, stream=True)
            await wire.send(a_post(body, headers=bearing(ACME.key)))
            await wire.head()

            path.write_text(a_document({}, {"name": "other"}))
            await until(lambda: "other" in house.members)
            assert (await running.ask(post)).status == 200

            path.write_text(f"salt_secret: {SECRET}\ntenants: [")
            await until(lambda: house.tenant_reload_failures == 1)
            await asyncio.sleep(0.3)
            assert house.tenant_reload_failures == 1
            assert (await running.ask(post)).status == 200

            path.unlink()
            await until(lambda: house.tenant_reload_failures == 2)
            path.write_text("{}")
            await until(lambda: not house.members)
            assert (await running.ask(post)).status == 401
            chunks = [chunk async for chunk in wire.chunks()]  # it goes on: it is in
            assert b"[DONE]" in b"".join(chunks)
            await wire.close()

    with caplog.at_level(logging.INFO):
        run(law())
    complaints = [each for each in caplog.records if "the old ones stay" in each.message]
    assert len(complaints) == 2
    assert SECRET not in caplog.text


def test_a_key_is_not_passed_on_unless_that_is_wanted(tmp_path: Path) -> None:
    async def law(forward: bool) -> None:
        replica = Scripted()
        headers = bearing(ACME.key, ("X-Api-Key", "k"), ("X-Headrace-Class", "batch"))
        async with keyed_house(
            tmp_path, a_document(), [replica], forward_authorization=forward
        ) as running:
            await running.ask(a_post(headers=headers))
            assert (ACME.key.encode() in replica.raw) is forward
            assert b"x-headrace" not in replica.raw.lower()

    run(law(False))
    run(law(True))


def test_where_there_are_no_keys_everything_is_passed_on(tmp_path: Path) -> None:
    replica = Scripted()

    async def law() -> None:
        async with running_house(replicas=[replica]) as running:
            body = a_chat(cache_salt="mine")
            await running.ask(a_post(body, headers=bearing("whatever")))
            assert replica.received[-1].all("authorization") == ["Bearer whatever"]
            assert replica.received[-1].body == body

    run(law())


def test_the_salt_is_the_tenant_s_and_the_rest_of_the_body_is_the_client_s(tmp_path: Path) -> None:
    replica = Scripted()

    async def law() -> None:
        document = a_document({"isolate_cache": True}, {"name": "other", "isolate_cache": True})
        async with keyed_house(tmp_path, document, [replica]) as running:
            bodies = []
            for key, salt in ((ACME, None), (OTHER, None), (ACME, "x"), (OTHER, "x")):
                own = {} if salt is None else {"cache_salt": salt}
                body = a_chat("é 1.0000000000000000001", **own)
                await running.ask(a_post(body, headers=bearing(key.key)))
                sent = replica.received[-1]
                assert sent.all("content-length") == [str(len(sent.body))]
                bodies.append((body, sent.body))
            salts = [json.loads(arrived)["cache_salt"] for _, arrived in bodies]
            stolen = a_chat(cache_salt=salts[0])
            await running.ask(a_post(stolen, headers=bearing(OTHER.key)))
            salts.append(json.loads(replica.received[-1].body)["cache_salt"])
            assert len(set(salts)) == 5
            assert "x" not in salts
            for body, arrived in bodies[:2]:
                assert arrived.endswith(body[1:])
            for body, arrived in bodies[2:]:
                assert arrived.replace(json.loads(arrived)["cache_salt"].encode(), b"x") == body

    run(law())


@pytest.mark.parametrize("odd", [b"\\ud800", b"\\q", b"\x01"])
def test_where_the_salt_cannot_be_put_nothing_is_sent(tmp_path: Path, odd: bytes) -> None:
    """However deep inside of a long string it is: some engines take it."""
    replica = Scripted()

    async def law() -> None:
        document = a_document({"isolate_cache": True})
        async with keyed_house(tmp_path, document, [replica]) as running:
            body = a_chat("long " * 5000 + "?", cache_salt="x").replace(b"?", odd)
            refused = await running.ask(a_post(body, headers=bearing(ACME.key)))
            assert (refused.status, refused.code) == (400, "invalid_request")
            assert not replica.received

    run(law())


def test_tenants_share_no_cached_prompt_once_they_are_kept_apart(tmp_path: Path) -> None:
    long = "a prompt that fills some blocks of the cache " * 40

    async def cached(isolate: bool) -> int:
        document = a_document(
            {"isolate_cache": isolate}, {"name": "other", "isolate_cache": isolate}
        )
        async with keyed_house(tmp_path, document, [a_sim()]) as running:
            for key in (ACME, OTHER):
                answer = await running.ask(a_post(a_chat(long), headers=bearing(key.key)))
            return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    async def law() -> None:
        assert await cached(isolate=False) > 100
        assert await cached(isolate=True) == 0

    run(law())


def test_files_and_batches_are_their_tenant_s_alone(tmp_path: Path) -> None:
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": MODEL, "messages": HELLO, "max_tokens": 3}}
        for name in ("a", "b")
    ]  # fmt: skip
    content = "\n".join(json.dumps(line) for line in lines).encode()

    async def law() -> None:
        document = a_document({"isolate_cache": True}, {"name": "other"})
        async with (
            keyed_house(tmp_path, document, with_batches=True) as running,
            a_client(running) as acme,
            a_client(running, OTHER.key) as other,
            a_client(running, "hr-nobody") as nobody,
        ):
            file = await acme.files.create(file=("in.jsonl", content), purpose="batch")
            batch = await acme.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            while batch.status != "completed":
                await asyncio.sleep(0.02)
                batch = await acme.batches.retrieve(batch.id)
            assert batch.output_file_id is not None
            assert len((await acme.files.content(batch.output_file_id)).text.splitlines()) == 2
            allowance = running.house.members["acme"].allowance
            assert (allowance.admitted, allowance.open) == (2, 0)
            assert allowance.settled > 6

            assert [one.id async for one in other.files.list()] == []
            assert [one.id async for one in other.batches.list()] == []
            for attempt in (
                other.files.retrieve(file.id),
                other.files.content(batch.output_file_id),
                other.files.delete(file.id),
                other.batches.retrieve(batch.id),
                other.batches.cancel(batch.id),
                other.batches.create(
                    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
                ),
            ):
                with pytest.raises(openai.NotFoundError):
                    await attempt
            with pytest.raises(openai.AuthenticationError):
                await nobody.files.create(file=("in.jsonl", content), purpose="batch")
            assert len([one async for one in acme.files.list()]) == 2

    run(law())


def test_where_a_request_would_go_is_told_by_what_its_tenant_has_cached(tmp_path: Path) -> None:
    async def law() -> None:
        document = a_document(
            {"isolate_cache": True}, {"name": "other", "isolate_cache": True, "models": [MODEL]}
        )
        async with keyed_house(
            tmp_path, document, [a_sim(), a_sim()], policy="cache-aware"
        ) as running:
            body = a_chat("where does this go? " * 200)
            await running.ask(a_post(body, headers=bearing(ACME.key)))
            told = {}
            for made in (ACME, OTHER):
                ask = a_post(body, path="/debug/route", headers=bearing(made.key))
                told[made.id] = (await running.ask(ask)).json()["reason"]
            assert told[ACME.id] == "cached"
            assert told[OTHER.id] != "cached"
            ask = a_post(a_chat(model="theirs"), path="/debug/route", headers=bearing(OTHER.key))
            assert (await running.ask(ask)).code == "model_not_allowed"

    run(law())


def test_no_secret_is_ever_written_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []

    async def law() -> None:
        document = a_document({"isolate_cache": True, "requests_per_minute": 3})
        replica = Scripted(a_reply(b"{}", status=500))
        async with keyed_house(tmp_path, document, [replica], access_log="stdout") as running:
            for headers in (
                bearing(ACME.key),
                bearing(OTHER.key),
                bearing(ACME.key, ("X-Headrace-Class", "none")),
                bearing(ACME.key, ("X-Headrace-Deadline-Ms", "x")),
                bearing(ACME.key, ("X-Headrace-Explain", "1")),
                [("Authorization", f"Basic {ACME.key}")],
                bearing(ACME.key),
                bearing(ACME.key),
            ):
                answer = await running.ask(a_post(headers=headers))
                shown.append(f"{answer.headers} {answer.body!r}")
            answer = await running.ask(a_post(a_chat(cache_salt=1), headers=bearing(ACME.key)))
            shown.append(f"{answer.headers} {answer.body!r}")
            for path in ("/metrics", "/debug/fleet", "/v1/models", "/nowhere"):
                answer = await running.ask(a_get(path, headers=bearing(ACME.key)))
                shown.append(f"{answer.headers} {answer.body!r}")
            (tmp_path / "tenants.yaml").write_text(document.replace("tenants:", "tenants: ]"))
            await until(lambda: running.house.tenant_reload_failures)
            shown.append(repr(running.house.tenants) + repr(running.house.members))
            assert sum(running.reasons.values()) >= 7

    with caplog.at_level(logging.DEBUG):
        run(law())
    lines, complaints = capsys.readouterr()
    shown += [caplog.text, lines, complaints]
    secrets = [SECRET]
    for made in (ACME, OTHER):
        secrets += [made.key, made.key.removeprefix(made.id + "-"), digest(made.key.encode()).hex()]
    everything = "\n".join(shown)
    assert [secret for secret in secrets if secret in everything] == []
    whose = [(each["tenant"], each["key"]) for each in map(json.loads, lines.splitlines())]
    assert ("acme", ACME.id) in whose
    assert (None, None) in whose
