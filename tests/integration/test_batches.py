"""Files and batches over HTTP, by the official client and byte by byte."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import (
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    DefaultAsyncHttpxClient,
    NotFoundError,
)
from openai.types import Batch

from gateway.section import SettingsError
from gateway.settings import Settings
from gateway.tenants.keys import ID_BYTES, SECRET_BYTES, digest, new_key
from gateway.vocabulary import Outcome
from tests.builders import MODEL, a_get, a_post
from tests.house import RunningHouse, a_sim, run, running_house, until

ENDED = {"completed", "failed", "expired", "cancelled"}


def a_line(custom_id: str, **fields: Any) -> dict[str, Any]:
    """One line of an input file, three tokens long."""
    body = {"messages": [{"role": "user", "content": f"line {custom_id}"}], "max_tokens": 3}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return {**line, "body": {"model": MODEL, **body, **fields}}


def a_file(lines: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@asynccontextmanager
async def running(folder: Path, **knobs: Any) -> AsyncIterator[tuple[RunningHouse, AsyncOpenAI]]:
    """A gateway with the Batch API on, and its client."""
    batch = {"folder": str(folder), **knobs}
    async with (
        running_house({"batch": batch}, [a_sim(), a_sim()]) as house,
        a_client(house) as client,
    ):
        yield house, client


def a_client(house: RunningHouse, key: str = "none") -> AsyncOpenAI:
    """The official client, which must not hide failures by trying again."""
    http = DefaultAsyncHttpxClient(trust_env=False)
    return AsyncOpenAI(base_url=f"{house.url}/v1", api_key=key, max_retries=0, http_client=http)


async def a_batch(client: AsyncOpenAI, content: bytes, **more: Any) -> Batch:
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    more.setdefault("endpoint", "/v1/chat/completions")
    return await client.batches.create(input_file_id=file.id, completion_window="24h", **more)


async def ended(client: AsyncOpenAI, batch: Batch, *, within_s: float = 20.0) -> Batch:
    async with asyncio.timeout(within_s):
        while batch.status not in ENDED:
            await asyncio.sleep(0.05)
            batch = await client.batches.retrieve(batch.id)
    return batch


async def lines_of(client: AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    content = await client.files.content(file_id)
    return [json.loads(line) for line in content.text.splitlines()]


def test_every_line_is_answered_once_in_the_order_of_the_input(tmp_path: Path) -> None:
    async def law() -> None:
        async with running(tmp_path) as (house, client):
            ids = [f"line-{number:03}" for number in range(60)]
            batch = await a_batch(client, a_file(map(a_line, ids)), metadata={"for": "tests"})
            assert batch.status == "validating"
            assert batch.object == "batch"
            batch = await ended(client, batch)
            assert batch.status == "completed"
            assert batch.metadata == {"for": "tests"}
            counts = batch.request_counts
            assert counts is not None
            assert (counts.total, counts.completed, counts.failed) == (60, 60, 0)
            assert batch.error_file_id is None
            output = await lines_of(client, batch.output_file_id)
            assert [line["custom_id"] for line in output] == ids
            assert len({line["id"] for line in output}) == 60
            for line in output:
                assert line["error"] is None
                assert line["response"]["status_code"] == 200
                assert line["response"]["body"]["usage"]["completion_tokens"] == 3
            await house.until_quiet()
            assert house.outcomes == {Outcome.FINISHED: 60}

    run(law())


def test_one_that_leaves_takes_nothing_new_while_batches_are_put_away(tmp_path: Path) -> None:
    async def law() -> None:
        async with running(tmp_path) as (house, client):
            for sim in house.sims:
                sim.faults.merge({"slow": 50})
            await a_batch(client, a_file([a_line("one", max_tokens=400)]))
            await until(lambda: house.house.accounts.open_entries)
            house.server.stop()
            await asyncio.sleep(0)
            assert not house.house.is_ready
            refused = await house.ask(a_post())
            assert (refused.status, refused.code) == (503, "draining")

    run(law())


def test_a_line_that_fails_fails_alone_and_is_in_the_error_file(tmp_path: Path) -> None:
    async def law() -> None:
        async with running(tmp_path) as (_, client):
            lines = [a_line("good"), a_line("bad", max_tokens=-1), a_line("fine")]
            batch = await ended(client, await a_batch(client, a_file(lines)))
            assert batch.status == "completed"
            counts = batch.request_counts
            assert counts is not None
            assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
            output = await lines_of(client, batch.output_file_id)
            assert [line["custom_id"] for line in output] == ["good", "fine"]
            (error,) = await lines_of(client, batch.error_file_id)
            assert error["custom_id"] == "bad"
            assert error["response"]["status_code"] == 400
            assert error["response"]["body"]["error"]["type"] == "invalid_request_error"

    run(law())


def test_a_file_that_cannot_be_worked_on_is_refused_line_by_line(tmp_path: Path) -> None:
    async def law() -> None:
        async with running(tmp_path) as (house, client):
            lines = [a_line("a"), a_line("a"), a_line("b", model="nope"), a_line("c", stream=True)]
            content = a_file(lines) + b"not json\n" + a_file([{**a_line("d"), "method": "GET"}])
            batch = await ended(client, await a_batch(client, content))
            assert batch.status == "failed"
            assert batch.failed_at is not None
            assert batch.errors is not None
            told = [(each.line, each.code, each.param) for each in batch.errors.data or []]
            assert told == [
                (2, "duplicate_custom_id", "custom_id"),
                (3, "model_not_found", "body.model"),
                (4, "invalid_value", "body.stream"),
                (5, "invalid_json_line", None),
                (6, "invalid_method", "method"),
            ]
            empty = await ended(client, await a_batch(client, b"\n\n"))
            assert empty.errors is not None
            assert [each.code for each in empty.errors.data or []] == ["empty_file"]
            assert house.house.accounts.received == 0

    run(law())


def test_a_batch_that_is_cancelled_keeps_what_was_answered(tmp_path: Path) -> None:
    async def law() -> None:
        async with running(tmp_path) as (house, client):
            ids = [f"{number}" for number in range(300)]
            lines = (a_line(name, max_tokens=60, ignore_eos=True) for name in ids)
            batch = await a_batch(client, a_file(lines))
            await until(lambda: house.house.accounts.outcomes().get(Outcome.FINISHED, 0) > 5)
            batch = await client.batches.cancel(batch.id)
            assert batch.status == "cancelling"
            batch = await ended(client, batch)
            assert batch.status == "cancelled"
            output = await lines_of(client, batch.output_file_id)
            errors = await lines_of(client, batch.error_file_id)
            told = [line["custom_id"] for line in (*output, *errors)]
            assert sorted(told) == sorted(ids)
            assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
            assert batch.request_counts is not None
            assert batch.request_counts.completed == len(output)
            with pytest.raises(ConflictError, match="cancelled"):
                await client.batches.cancel(batch.id)

    run(law())


def test_a_batch_whose_window_has_passed_has_expired(tmp_path: Path) -> None:
    async def law() -> None:
        async with running(tmp_path) as (house, client):
            keeper = house.house.batches
            assert keeper is not None
            lines = (a_line(f"{number}", max_tokens=400, ignore_eos=True) for number in range(200))
            batch = await a_batch(client, a_file(lines))
            await until(lambda: house.house.accounts.received > 2)
            now = keeper.wall
            keeper.wall = lambda: now() + 86_401.0
            batch = await ended(client, batch)
            assert (batch.status, batch.expired_at is not None) == ("expired", True)
            errors = await lines_of(client, batch.error_file_id)
            assert {line["error"]["code"] for line in errors} == {"batch_expired"}
            output = await lines_of(client, batch.output_file_id)
            assert len(errors) + len(output) == 200

    run(law())


def test_files_are_kept_listed_and_removed(tmp_path: Path) -> None:
    async def law() -> None:
        async with running(tmp_path) as (_, client):
            content = bytes(range(256)) * 5000
            files = [
                await client.files.create(file=(f"{number}.jsonl", content), purpose="batch")
                for number in range(3)
            ]
            assert [file.bytes for file in files] == [len(content)] * 3
            assert (await client.files.content(files[1].id)).content == content
            first = await client.files.list(limit=2)
            assert [file.id for file in first.data] == [files[2].id, files[1].id]
            assert first.has_next_page()
            everything = [file.id async for file in client.files.list(limit=2, order="asc")]
            assert everything == [file.id for file in files]
            deleted = await client.files.delete(files[0].id)
            assert deleted.deleted
            assert files[0].id not in await asyncio.to_thread(os.listdir, tmp_path / "files")
            for asked in (client.files.retrieve, client.files.content, client.files.delete):
                with pytest.raises(NotFoundError):
                    await asked(files[0].id)
            with pytest.raises(NotFoundError):
                await a_batch_of(client, files[0].id)

    run(law())


async def a_batch_of(client: AsyncOpenAI, file_id: str, **more: Any) -> Batch:
    asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **more}
    return await client.batches.create(input_file_id=file_id, **asked)


def test_batches_are_listed_newest_first_page_by_page(tmp_path: Path) -> None:
    async def law() -> None:
        async with running(tmp_path) as (_, client):
            content = a_file([a_line("a")])
            made = [(await a_batch(client, content)).id for _ in range(5)]
            listed = [batch.id async for batch in client.batches.list(limit=2)]
            assert listed == made[::-1]
            with pytest.raises(NotFoundError):
                await client.batches.list(after="batch_none")
            for batch_id in made:
                await ended(client, await client.batches.retrieve(batch_id))

    run(law())


def test_what_is_asked_wrongly_is_told_in_openais_shape(tmp_path: Path) -> None:
    async def law() -> None:
        async with running(tmp_path, max_file_bytes=1000) as (house, client):
            file = await client.files.create(file=("a", a_file([a_line("a")])), purpose="batch")
            for wrong in (
                {"endpoint": "/v1/rerank"},
                {"completion_window": "soon"},
                {"completion_window": "8d"},
                {"metadata": {"a": "b" * 513}},
                {"extra_body": {"nonsense": 1}},
            ):
                with pytest.raises(BadRequestError):
                    await a_batch_of(client, file.id, **wrong)
            with pytest.raises(BadRequestError, match="purpose"):
                await client.files.create(file=("a", b"{}"), purpose="fine-tune")
            big = await house.ask(
                a_post(
                    b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
                    + b"x" * 2000,
                    path="/v1/files",
                    headers=[("Content-Type", "multipart/form-data; boundary=b")],
                ).replace(b"Content-Type: application/json\r\n", b"")
            )
            assert (big.status, big.code) == (413, "body_too_large")
            for path in ("/v1/files/x", "/v1/files/x/content", "/v1/batches/x"):
                assert (await house.ask(a_get(path))).status == 404
            assert (await house.ask(a_get("/v1/files?limit=0"))).code == "invalid_request"
            assert await asyncio.to_thread(os.listdir, tmp_path / "files") == [file.id]

    run(law())


def test_a_batch_is_its_tenants_and_goes_at_its_tenants_pace(tmp_path: Path) -> None:
    keys = {
        name: new_key(bytes([number]) * (ID_BYTES + SECRET_BYTES))
        for number, name in enumerate(("red", "blue"))
    }
    tenants = [{"name": "red", "max_concurrent": 2}, {"name": "blue", "models": ["other"]}]
    document = {
        "tenants": tenants,
        "keys": [
            {"id": made.id, "tenant": name, "sha256": digest(made.key.encode()).hex()}
            for name, made in keys.items()
        ],
    }
    (tmp_path / "tenants.yaml").write_text(yaml.safe_dump(document))
    settings = {
        "batch": {"folder": str(tmp_path)},
        "tenants": {"path": f"{tmp_path}/tenants.yaml"},
    }

    async def law() -> None:
        async with (
            running_house(settings, [a_sim()]) as house,
            a_client(house, keys["red"].key) as red,
            a_client(house, keys["blue"].key) as blue,
            a_client(house) as stranger,
        ):
            lines = a_file(a_line(f"{number}", max_tokens=20) for number in range(30))
            batch = await a_batch(red, lines)
            with pytest.raises(AuthenticationError):
                await stranger.batches.list()
            assert (await blue.batches.list()).data == []
            for asked in (
                blue.batches.retrieve(batch.id),
                blue.files.content(batch.input_file_id),
                blue.files.delete(batch.input_file_id),
                a_batch_of(blue, batch.input_file_id),
            ):
                with pytest.raises(NotFoundError):
                    await asked
            batch = await ended(red, batch)
            assert batch.request_counts is not None
            assert batch.request_counts.completed == 30  # its limits made them wait, not fail
            with pytest.raises(NotFoundError):
                await blue.files.content(batch.output_file_id or "")
            denied = await ended(blue, await a_batch(blue, a_file([a_line("a")])))
            (error,) = await lines_of(blue, denied.error_file_id)
            assert error["response"]["status_code"] == 403
            metrics = (await house.ask(a_get("/metrics"))).body.decode()
            assert 'tenant="red"' in metrics

    run(law())


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "batch.md").read_text(encoding="utf-8")


def test_what_the_page_shows_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (line,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "requests.jsonl").write_text(line)

    async def law() -> None:
        async with running(tmp_path) as (house, _):
            code = snippet.replace("http://127.0.0.1:8000", house.url)
            code = code.replace("requests.jsonl", f"{tmp_path}/requests.jsonl")
            await asyncio.to_thread(exec, code, {})

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    run(law())
    assert json.loads(capsys.readouterr().out)["custom_id"] == "a-1"


def test_the_settings_on_the_page_can_be_used() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert Settings.load(block, {}).batch.is_on
    with pytest.raises(SettingsError, match="files"):
        Settings.load("batch: {store: 'sqlite:///x'}", {})


def test_what_is_off_is_not_there() -> None:
    async def law() -> None:
        async with running_house({}) as house:
            assert (await house.ask(a_get("/v1/batches"))).status == 404
            assert (await house.ask(a_get("/v1/files"))).status == 404

    run(law())


def test_metrics_tell_of_batches_and_their_lines(tmp_path: Path) -> None:
    async def law() -> None:
        async with running(tmp_path) as (house, client):
            await ended(client, await a_batch(client, a_file([a_line("a"), a_line("b")])))
            metrics = (await house.ask(a_get("/metrics"))).body.decode()
            assert 'gateway_batch_lines_total{outcome="completed"} 2.0' in metrics
            assert "gateway_batch_lines_inflight 0.0" in metrics
            assert 'gateway_batches{status="in_progress"}' in metrics

    run(law())
