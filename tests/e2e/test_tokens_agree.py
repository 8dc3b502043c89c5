"""Our reading of prompts beside vLLM's own: the same tokens, whatever the route and the form."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.kv_cache import Tokenised
from gateway.parse.openai import parse_json
from gateway.request import GenerationRequest
from gateway.tokens.reader import Reader
from gateway.tokens.remote import Remote
from serving.engine_args import EngineKind, EngineSettings
from serving.engine_command import environment
from serving.launch import prepare
from serving.machine import choose_engine, look
from tests.builders import a_route
from tests.e2e.conftest import CHAT, free_port, until

TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}"
    "{% if message.name %} {{ message.name }}{% endif %}\n"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{% if message.tool_call_id %}{{ message.tool_call_id }}: {% endif %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if deep is defined %}deep={{ deep }}{% endif %}"
    "{% if reasoning_effort is defined %}{{ reasoning_effort }}{{ enable_thinking }}{% endif %}"
)
"""Writes out everything a template may be given."""

RENDERER = """
import uvloop
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.render.entry import run_launch_fastapi
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":
    args = make_arg_parser(FlexibleArgumentParser()).parse_args()
    validate_parsed_serve_args(args)
    uvloop.run(run_launch_fastapi(args))
"""
"""`vllm launch render`; the CPU build's own command line looks for a version it does not have."""

TEXT = "It's 12,345 o'clock:\n\n\tdef f(x):  return x  # naïve 東京 😀 <|im_end|> <|im_start|>"
PARAMETERS = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"enum": [1, 2.5]}}}
TOOL = {"type": "function", "function": {"parameters": PARAMETERS, "name": "f", "strict": None}}
CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": '{"z": "é"}'}}
USER = {"role": "user", "content": TEXT}
TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": TEXT}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "done"},
    {"role": "assistant", "content": "So it is.", "reasoning_content": "Hm."},
    {"role": "user", "name": "ann", "content": "more"},
]
BLOCKS = [
    USER,
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"z": "é", "a": 1}},
        ],
    },
    {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "c1",
                "content": [{"type": "text", "text": "x"}],
            },
            {"type": "text", "text": "and"},
            {"type": "text", "text": TEXT},
        ],
    },
]
CHATS: list[dict[str, Any]] = [
    {"messages": [USER]},
    {"messages": TURNS},
    {"messages": TURNS, "tools": [TOOL]},
    {"messages": [USER], "add_generation_prompt": False},
    {"messages": [USER], "add_special_tokens": True},
    {"messages": [USER], "chat_template_kwargs": {"deep": "yes"}},
    {"messages": [USER], "reasoning_effort": "low"},
]
PROMPTS: list[tuple[str, dict[str, Any]]] = [
    *(("/v1/chat/completions", chat) for chat in CHATS),
    ("/v1/completions", {"prompt": TEXT}),
    ("/v1/completions", {"prompt": [TEXT], "add_special_tokens": False}),
    ("/v1/completions", {"prompt": [1, 2, 3, 400]}),
    ("/v1/responses", {"input": TEXT}),
    ("/v1/responses", {"input": TEXT, "instructions": "Be kind."}),
    ("/v1/responses", {"input": [{"role": "user", "content": TEXT}]}),
    ("/v1/messages", {"messages": [USER], "max_tokens": 5}),
    ("/v1/messages", {"messages": BLOCKS, "max_tokens": 5, "system": "Be kind."}),
    (
        "/v1/messages",
        {
            "messages": BLOCKS,
            "max_tokens": 5,
            "system": [{"type": "text", "text": text} for text in ("Be ", "kind.")],
            "tools": [{"name": "f", "description": "d", "input_schema": {"properties": {}}}],
        },
    ),
]


@dataclass(frozen=True)
class Renderer:
    """vLLM's front without an engine behind it, and the folder it reads."""

    url: str
    folder: Path


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Renderer]:
    choice = choose_engine(look(), None)
    if choice.kind is EngineKind.SIM:
        pytest.skip(f"no real engine here: {choice.reason}")
    kit = prepare(choice.kind, [CHAT], lambda _: None)
    folder = tmp_path_factory.mktemp("model")
    for file in Path(kit.models[0].model).iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    port = free_port()
    command = [kit.python, "-c", RENDERER, "--model", str(folder)]
    command += ["--served-model-name", CHAT, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    engine = EngineSettings(choice.kind, str(folder), CHAT, port, offline=True)
    more = environment(engine)
    output = tmp_path_factory.mktemp("renderer") / "log"
    with output.open("w") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, **more}
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, output.read_text()[-4000:]
        try:
            return httpx.get(f"{url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until("the renderer is up", answers, 300.0, every_s=0.5)
        yield Renderer(url, folder)
    finally:
        process.terminate()
        process.wait(30)


def asked(path: str, body: dict[str, Any]) -> GenerationRequest:
    written = json.dumps({"model": CHAT, **body}).encode()
    return parse_json(written, a_route(path), lambda _, size: size // 4)


@pytest.mark.parametrize(("path", "body"), PROMPTS)
def test_we_read_the_tokens_that_the_engine_is_given(
    path: str, body: dict[str, Any], renderer: Renderer
) -> None:
    reply = httpx.post(
        f"{renderer.url}{path}/render", json={"model": CHAT, **body}, trust_env=False, timeout=60.0
    )
    assert reply.status_code == 200, reply.text
    rendered = reply.json()
    rendered = rendered[0] if isinstance(rendered, list) else rendered
    ours = Reader(renderer.folder, 1_000_000).read(asked(path, body), None)
    assert list(ours.tokens) == rendered["token_ids"]


@pytest.mark.parametrize("body", [*CHATS, {"prompt": TEXT}])
def test_a_replica_that_is_asked_tells_the_same(body: dict[str, Any], renderer: Renderer) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    told = read_there(asked(path, body), renderer)
    read = Reader(renderer.folder, 1_000_000).read(asked(path, body), None)
    assert list(told.tokens) == list(read.tokens)


def test_a_replica_tells_where_messages_end(renderer: Renderer) -> None:
    words = " ".join(["it was said that the sea is wide and so it was"] * 60)
    messages = [
        {"role": role, "content": f"{index}: {words}"}
        for index, role in enumerate(("system", "user", "assistant", "user"))
    ]
    request = asked("/v1/chat/completions", {"messages": messages})
    told = read_there(request, renderer)
    read = Reader(renderer.folder, 1_000_000).read(request, None)
    assert len(told.edges) >= 0.8 * len(read.edges)
    ours = dict(read.edges)
    common = [(count, ours[at]) for at, count in told.edges if at in ours]
    assert len(common) >= 0.8 * len(read.edges)
    assert all(abs(one - other) <= 64 for one, other in common)


def read_there(request: GenerationRequest, renderer: Renderer) -> Tokenised:
    async def read() -> Tokenised:
        with ThreadPoolExecutor(1) as thread:
            remote = Remote(60.0, None, thread)
            return await remote.read(request, f"{renderer.url}/tokenize", None, lambda _: None)

    return asyncio.run(read())
