"""The simulator answers as the real engine does: the same members, kinds and names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import CHAT, Stack, free_port, until

ASK = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "Name three fruits."}],
    "max_tokens": 8,
    "temperature": 0,
}
COMPLETE = {"model": CHAT, "prompt": "One, two, three,", "max_tokens": 6, "temperature": 0}
KNOWN = {
    ".usage.prompt_tokens_details.created_cache_tokens",
    ".usage.cache_creation_input_tokens",
}
"""The simulator does not count what a prompt adds to the cache."""

STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def sim() -> Iterator[str]:
    """A simulated replica as a process; its URL."""
    port = free_port()
    command = [sys.executable, "-m", "serving.sim.server", "--port", str(port), "--model", CHAT]
    process = subprocess.Popen([*command, "--profile", "fast"], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until("the simulator is up", lambda: answers(url), 20.0)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def shape(value: Any) -> Any:
    """Members and kinds, without the values; of a list, its first item."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in sorted(value.items())}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if value is None:
        return None
    return "number" if isinstance(value, int | float) else type(value).__name__


def missing(real: Any, simulated: Any, at: str = "") -> list[str]:
    """What a client that knows the engine would miss in the simulator, or find of another kind.

    A member that one of them leaves null says nothing of its kind.
    """
    if real is None or simulated is None:
        return []
    if isinstance(real, dict) and isinstance(simulated, dict):
        absent = [
            f"{at}.{name}"
            for name in real
            if name not in simulated and real[name] and f"{at}.{name}" not in KNOWN
        ]
        deeper = [
            each
            for name in real.keys() & simulated.keys()
            for each in missing(real[name], simulated[name], f"{at}.{name}")
        ]
        return absent + deeper
    if isinstance(real, list) and isinstance(simulated, list):
        return missing(real[0], simulated[0], f"{at}[]") if real and simulated else []
    return [] if real == simulated else [f"{at}: {real} is {simulated}"]


def events(url: str, path: str, body: dict[str, Any]) -> list[Any]:
    """The data of a stream's events; `[DONE]` as it is."""
    reply = httpx.post(f"{url}{path}", json={**body, **STREAMED}, trust_env=False, timeout=60.0)
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", ASK),
        ("/v1/completions", COMPLETE),
        ("/tokenize", {"model": CHAT, "prompt": "a river"}),
        ("/v1/messages", ASK),
        ("/v1/chat/completions", {**ASK, "model": "nobody"}),
        ("/v1/chat/completions", {**ASK, "max_tokens": 10_000_000}),
    ],
)
def test_a_simulated_answer_has_what_the_engines_has(
    stack: Stack, sim: str, path: str, body: dict[str, Any]
) -> None:
    real, simulated = (
        httpx.post(f"{url}{path}", json=body, trust_env=False, timeout=60.0)
        for url in (stack.chat_replicas[0].url, sim)
    )
    assert simulated.status_code == real.status_code
    assert not missing(shape(real.json()), shape(simulated.json()))


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", ASK), ("/v1/completions", COMPLETE)]
)
def test_a_simulated_stream_has_the_engines_events(
    stack: Stack, sim: str, path: str, body: dict[str, Any]
) -> None:
    real = events(stack.chat_replicas[0].url, path, body)
    simulated = events(sim, path, body)
    assert real[-1] == simulated[-1] == "[DONE]"
    for at in (0, 1, -3, -2):  # the opening, a token, the last token, the usage
        assert not missing(shape(real[at]), shape(simulated[at])), at


def test_the_simulator_shows_the_engines_metrics_under_their_names(stack: Stack, sim: str) -> None:
    def families(url: str) -> set[str]:
        text = httpx.get(f"{url}/metrics", trust_env=False).text
        return set(re.findall(r"^# TYPE (vllm:\S+) ", text, re.MULTILINE))

    unknown = families(sim) - families(stack.chat_replicas[0].url)
    assert not unknown, "a name that the engine does not have"


def test_models_are_described_alike(stack: Stack, sim: str) -> None:
    real, simulated = (
        httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]
        for url in (stack.chat_replicas[0].url, sim)
    )
    assert not missing(shape(real), shape(simulated))
