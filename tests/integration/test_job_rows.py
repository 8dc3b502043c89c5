"""Texts asked of a gateway one by one: paced by it, in their order, each on its own account."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.tenants.keys import ID_BYTES, SECRET_BYTES, digest, new_key
from serving.jobs.rows import Refused, Scored, Scorer, Scoring
from tests.builders import MODEL
from tests.house import a_sim, run, running_house
from tests.scripted_gateway import Asked, Reply, scripted_gateway


def scored(scoring: Scoring, texts: list[str | None]) -> list[Scored]:
    with Scorer(scoring) as scorer:
        return scorer.score(texts)


def echo(asked: Asked) -> Reply:
    """A chat that says what it was told."""
    said = asked.body["messages"][-1]["content"]
    usage = {"prompt_tokens": len(said), "completion_tokens": 1}
    return 200, {}, {"choices": [{"message": {"content": said}}], "usage": usage}


def lengths(asked: Asked) -> Reply:
    """Embeddings that tell the texts apart, in an order of their own."""
    texts = asked.body["input"]
    found = [{"index": n, "embedding": [len(text), n]} for n, text in enumerate(texts)]
    return 200, {}, {"data": found[::-1]}


def test_a_real_gateway_answers_every_row_in_its_place() -> None:
    async def law() -> None:
        async with running_house({}, [a_sim(), a_sim()]) as house:
            chat = Scoring(house.url, MODEL, parameters={"max_tokens": 3}, concurrency=4)
            texts = ["a", None, "b" * 500, "c"]
            found = await asyncio.to_thread(scored, chat, texts)
            assert [each.error for each in found] == [None] * 4
            assert [each.answer is None for each in found] == [False, True, False, False]
            assert [each.completion_tokens for each in found] == [3, None, 3, 3]
            vectors = Scoring(f"{house.url}/v1", MODEL, "embeddings", rows_per_call=2)
            found = await asyncio.to_thread(scored, vectors, texts)
            assert [isinstance(each.answer, list) for each in found] == [True, False, True, True]
            await house.until_quiet()
            assert house.house.accounts.received == 3 + 2

    run(law())


def test_rows_keep_their_order_whatever_order_answers_come_in() -> None:
    chance = random.Random(7)

    def late(asked: Asked) -> Reply:
        time.sleep(chance.uniform(0.0, 0.02))
        return echo(asked)

    texts: list[str | None] = [f"row {number}" for number in range(200)]
    with scripted_gateway(late) as gateway:
        found = scored(Scoring(gateway.url, "m", concurrency=16), texts)
        assert [each.answer for each in found] == texts
        assert 2 < gateway.most <= 16
        assert len(gateway.asked) == 200
        assert {each.headers["x-headrace-class"] for each in gateway.asked} == {"batch"}


def test_a_gateway_that_pushes_back_is_asked_less_and_later() -> None:
    """Each 503 asks for a second. The first wave finds nothing answered: nothing comes in it. Then
    half as much comes at once, and what was refused comes no sooner than it was told."""
    capacity, lock = 4, threading.Lock()
    inside = 0
    refused_at: list[float] = []

    def small(asked: Asked) -> Reply:
        nonlocal inside
        with lock:
            if inside >= capacity:
                refused_at.append(time.monotonic())
                return 503, {"Retry-After": "1"}, {"error": {"message": "No room."}}
            inside += 1
        time.sleep(0.05)
        with lock:
            inside -= 1
        return echo(asked)

    texts: list[str | None] = [f"{number}" for number in range(60)]
    with scripted_gateway(small) as gateway:
        scoring = Scoring(gateway.url, "m", concurrency=32)
        with Scorer(scoring) as scorer:
            found = scorer.score(texts)
            window = scorer.gate.window
        assert [each.answer for each in found] == texts
        assert window.refusals == len(refused_at) > 0
        assert window.limit < 32
        first = refused_at[0]
        early = [each for each in gateway.asked if first + 0.2 < each.at < first + 0.95]
        assert not early
        sent: dict[str, list[Asked]] = {}
        for each in gateway.asked:
            sent.setdefault(each.headers["x-request-id"], []).append(each)
        assert len(sent) == 60  # what is sent again is the same request
        for tries in sent.values():
            assert all(each.body == tries[0].body for each in tries)
            assert all(b.at - a.at >= 1.0 for a, b in pairwise(tries))


def test_a_gateway_that_takes_some_is_kept_busy_meanwhile() -> None:
    """Six at once, and a second's wait for whoever is too many: the six go on."""
    lock, inside = threading.Lock(), 0

    def small(asked: Asked) -> Reply:
        nonlocal inside
        with lock:
            if inside >= 6:
                return 429, {"Retry-After": "1"}, {"error": {"message": "Later."}}
            inside += 1
        time.sleep(0.05)
        with lock:
            inside -= 1
        return echo(asked)

    with scripted_gateway(small) as gateway:
        with Scorer(Scoring(gateway.url, "m", concurrency=32)) as scorer:
            began = time.monotonic()
            found = scorer.score([f"{number}" for number in range(400)])
            took_s, refusals = time.monotonic() - began, scorer.gate.window.refusals
        assert all(each.error is None for each in found)
        assert 0 < refusals < 120
        assert took_s < 30  # 3.3 s at the least


def test_limits_of_a_tenant_make_rows_wait_not_fail(tmp_path: Path) -> None:
    made = new_key(bytes(ID_BYTES + SECRET_BYTES))
    document = {
        "tenants": [{"name": "red", "max_concurrent": 2}],
        "keys": [{"id": made.id, "tenant": "red", "sha256": digest(made.key.encode()).hex()}],
    }
    (tmp_path / "tenants.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "key").write_text(made.key)

    async def law() -> None:
        settings = {"tenants": {"path": f"{tmp_path}/tenants.yaml"}}
        async with running_house(settings, [a_sim()]) as house:
            scoring = Scoring(
                house.url, MODEL, parameters={"max_tokens": 20}, concurrency=8,
                api_key_file=f"{tmp_path}/key",
            )  # fmt: skip
            found = await asyncio.to_thread(scored, scoring, [f"{n}" for n in range(20)])
            assert [each.error for each in found] == [None] * 20
            assert house.house.accounts.received > 20  # some were refused, and came again

    run(law())


def test_the_text_at_fault_is_found_and_the_others_of_its_call_are_answered() -> None:
    def picky(asked: Asked) -> Reply:
        if "bad" in asked.body["input"]:
            return 400, {}, {"error": {"message": "Too long."}}
        return lengths(asked)

    texts: list[str | None] = ["x" * number for number in range(1, 30)]
    texts[13] = "bad"
    with scripted_gateway(picky) as gateway:
        scoring = Scoring(gateway.url, "m", "embeddings", rows_per_call=16, concurrency=2)
        found = scored(scoring, texts)
    assert [row for row, each in enumerate(found) if each.error] == [13]
    assert found[13].error == "400: Too long."
    for row, each in enumerate(found):
        if row != 13:
            assert isinstance(each.answer, list)
            assert each.answer[0] == row + 1


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ((400, {}, {"error": {"message": "No."}}), "400: No."),
        ((500, {}, "broken"), "500: "),
        ((200, {}, {"choices": []}), "not an answer: IndexError"),
        ((200, {}, [1]), "not an answer: "),
        ((503, {"Retry-After": "0"}, {}), "503: "),
    ],
)
def test_an_error_is_its_rows(reply: Reply, error: str) -> None:
    def odd(asked: Asked) -> Reply:
        return reply if asked.body["messages"][-1]["content"] == "odd" else echo(asked)

    with scripted_gateway(odd) as gateway:
        found = scored(Scoring(gateway.url, "m", patience_s=3.0), ["fine", "odd", "too"])
    assert [each.answer for each in found] == ["fine", None, "too"]
    assert (found[1].error or "").startswith(error)


def test_a_gateway_that_was_away_is_asked_again() -> None:
    with scripted_gateway(echo) as gateway:
        port = int(gateway.url.rpartition(":")[2])
    found: list[Scored] = []
    thread = threading.Thread(
        target=lambda: found.extend(scored(Scoring(f"127.0.0.1:{port}", "m"), ["a"]))
    )
    thread.start()
    time.sleep(0.5)
    with scripted_gateway(echo, port):
        thread.join(10)
    assert [each.answer for each in found] == ["a"]
    gone = scored(Scoring(f"127.0.0.1:{port}", "m", patience_s=0.5), ["a", "b"])
    assert {(each.error or "")[:19] for each in gone} == {"the gateway is away"}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_row_will_be_answered_with_is_no_rows_error(status: int) -> None:
    with scripted_gateway(lambda _: (status, {}, {"error": {"message": "No."}})) as gateway:
        with pytest.raises(Refused, match=f"{status}: No"):
            scored(Scoring(gateway.url, "m"), ["a"] * 50)
        assert len(gateway.asked) < 50


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "poems"},
        {"parameters": {"stream": True}},
        {"concurrency": 0},
        {"kind": "embeddings", "system": "Be kind."},
    ],
)
def test_what_makes_no_sense_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"kind|parameter|concurrency|system"):
        Scoring("http://127.0.0.1:1", "m", **wrong)
