"""Tokens read on a thread: told on the loop, once each, bounded, and in nobody's way."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from gateway.kv_cache import Tokenised
from gateway.parse.openai import parse_json
from gateway.request import GenerationRequest
from gateway.settings import TokensSettings
from gateway.tokens.prompts import Unreadable
from gateway.tokens.service import Tokens
from gateway.vocabulary import ModelCard, ModelName, ReplicaAddress
from tests.builders import a_route
from tests.integration.sim_clients import clients, run, until
from tests.tokenizers_made import CHATML, byte_level, made_folder

QUESTION = [{"role": "user", "content": "The quick brown fox, 我们 and others. " * 200}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_folder(tmp_path_factory.mktemp("model"), byte_level(), CHATML)


def asked(model: str = "m", path: str = "/v1/chat/completions", **body: Any) -> GenerationRequest:
    body = body or {"messages": QUESTION}
    written = json.dumps({"model": model, **body}).encode()
    return parse_json(written, a_route(path), lambda _, size: size // 4)


def no_card(model: ModelName) -> ModelCard | None:
    return None


def test_it_is_told_once_on_the_loop(folder: Path) -> None:
    async def law() -> None:
        tokens = Tokens(TokensSettings(folder=str(folder)), no_card)
        told: list[tuple[Tokenised | None, int]] = []
        for _ in range(3):
            tokens.submit(asked(), lambda read: told.append((read, threading.get_ident())))
        assert told == []
        await until(lambda: len(told) == 3)
        assert {thread for _, thread in told} == {threading.get_ident()}
        assert told[0][0] is not None
        assert told[0][0] == told[1][0] == tokens.read_sync(asked())
        assert tokens.statistics.done == 3
        assert tokens.statistics.seconds > 0
        tokens.close()

    run(law)


def test_what_does_not_fit_the_queue_is_left_out_and_counted(folder: Path) -> None:
    async def law() -> None:
        size = len(asked().prompt)
        tokens = Tokens(TokensSettings(folder=str(folder), queue_bytes=size * 2), no_card)
        told: list[Tokenised | None] = []
        for _ in range(5):
            tokens.submit(asked(), told.append)
        await until(lambda: len(told) == 5)
        assert tokens.statistics.dropped == told.count(None) == 3
        told.clear()
        tokens.submit(asked(), told.append)
        await until(lambda: len(told) == 1)
        assert told[0] is not None, "there is room again"
        tokens.close()

    run(law)


def test_a_prompt_may_be_waited_for_but_not_for_long(folder: Path) -> None:
    async def law() -> None:
        tokens = Tokens(TokensSettings(folder=str(folder)), no_card)
        assert await tokens.tokenised(asked(), 0.0) is None
        assert await tokens.tokenised(asked(), 10.0) is not None
        waiting = asyncio.ensure_future(tokens.tokenised(asked(), 10.0))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: tokens.statistics.done == 3)
        tokens.close()

    run(law)


def test_files_are_found_by_name_by_base_or_where_the_replica_has_them(folder: Path) -> None:
    cards = {
        "plain": ModelCard(ModelName("plain"), root=str(folder)),
        "adapted": ModelCard(ModelName("adapted"), parent="plain", root="/adapters/a"),
        "remote": ModelCard(ModelName("remote"), root="organisation/model"),
    }
    named = TokensSettings(folders={"remote": str(folder)})
    for settings, readable in ((TokensSettings(), "plain adapted"), (named, "remote")):
        tokens = Tokens(settings, cards.get)
        for model in readable.split():
            read = tokens.read_sync(asked(model))
            assert read.adapter == ("adapted" if model == "adapted" else None)
        tokens.close()
    tokens = Tokens(TokensSettings(), cards.get)
    for model in ("remote", "unheard-of"):
        with pytest.raises(Unreadable, match=r"tokens\.folders"):
            tokens.read_sync(asked(model))
    tokens.close()


def test_a_damaged_folder_is_a_prompt_that_is_not_known(tmp_path: Path) -> None:
    async def law() -> None:
        (tmp_path / "tokenizer.json").write_text("{}")
        tokens = Tokens(TokensSettings(folder=str(tmp_path)), no_card)
        assert await tokens.tokenised(asked(), 10.0) is None
        assert tokens.statistics.failed == 1
        assert tokens.wrong
        (tmp_path / "tokenizer.json").unlink()
        why = dict(tokens.wrong)
        assert await tokens.tokenised(asked(), 10.0) is None
        assert tokens.wrong == why, "it was not looked at again"
        tokens.close()

    run(law)


def test_a_replica_is_asked_where_there_are_no_files() -> None:
    async def law() -> None:
        tokens = Tokens(TokensSettings(), no_card)
        async with clients() as (sim, web):
            replica = ReplicaAddress(sim.url)
            told = await tokens.tokenised(asked("sim"), 10.0, replica)
            reply = await web.post("/tokenize", json={"model": "sim", "messages": QUESTION})
            assert told is not None
            assert list(told.tokens) == reply.json()["tokens"]
            whole = (len(asked("sim").prompt), len(told.tokens))
            assert told.edges[-1] == whole
            assert [at for at, _ in told.edges[:-1]] == [whole[0] - 1], "where the message ends"
            early: list[Tokenised] = []
            again: list[Tokenised | None] = []
            tokens.submit(asked("sim"), again.append, replica, early.append)
            await until(lambda: len(again) == 1)
            assert (again, [each.edges for each in early]) == ([told], [[whole]])
            text = asked("sim", "/v1/completions", prompt="some words")
            assert await tokens.tokenised(text, 10.0, replica) is not None
            assert await tokens.tokenised(asked("other"), 10.0, replica) is None
            assert "404" in tokens.wrong[ModelName("other")]
            image = asked("sim", messages=[{"role": "user", "content": [{"type": "image_url"}]}])
            assert await tokens.tokenised(image, 10.0, replica) is None
            assert "image_url" in tokens.wrong[ModelName("sim")]
        assert await tokens.tokenised(asked("sim"), 10.0, replica) is None, "it is gone"
        tokens.close()

    run(law)


def test_closing_leaves_nothing_behind(folder: Path) -> None:
    async def law() -> None:
        tokens = Tokens(TokensSettings(folder=str(folder), ask_timeout_s=20), no_card)
        for _ in range(20):
            tokens.submit(asked(), lambda _: None)

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        remote = Tokens(TokensSettings(), no_card)
        remote.submit(asked(), lambda _: None, ReplicaAddress(f"http://127.0.0.1:{port}"))
        await asyncio.sleep(0.1)
        remote.close()
        tokens.close()
        server.close()
        await asyncio.sleep(0.05)

    run(law)
