"""Conversations with a real model, and what each answer says of the prompt it read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from tests.e2e.conftest import CHAT, Process

HITS = "vllm:prefix_cache_hits_total"
QUERIES = "vllm:prefix_cache_queries_total"
WORDS = (
    "water", "turbine", "valley", "bridge", "engine", "forest", "harbour", "copper", "signal",
    "winter", "meadow", "lantern", "granite", "orchard", "furnace", "channel",
)  # fmt: skip


def prose(rng: Random, words: int) -> str:
    """Text no cache has seen, for a generator that has not been used before."""
    return " ".join(rng.choice(WORDS) for _ in range(words)) + "."


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one turn."""

    prompt_tokens: int
    cached_tokens: int
    predicted: int | None
    """What the gateway expected to be cached when it chose; None where nobody was asked."""


@dataclass(slots=True)
class Conversation:
    """One client's, its answers kept as part of it."""

    rng: Random
    messages: list[dict[str, str]] = field(default_factory=list)
    sent: list[list[dict[str, str]]] = field(default_factory=list)
    """Every prompt so far."""

    def open(self, words: int = 120) -> None:
        """A system prompt of its own."""
        self.messages.append({"role": "system", "content": prose(self.rng, words)})

    def turn(self, http: httpx.Client, words: int = 40) -> Answer:
        """Say something and hear the answer."""
        self.messages.append({"role": "user", "content": prose(self.rng, words)})
        self.sent.append(list(self.messages))
        reply, answer = ask(http, self.messages)
        self.messages.append({"role": "assistant", "content": reply})
        return answer


def ask(
    http: httpx.Client, messages: Sequence[Mapping[str, str]], **more: object
) -> tuple[str, Answer]:
    """One chat request."""
    body = {"model": CHAT, "messages": messages, "temperature": 0, "max_tokens": 16, **more}
    reply = http.post("/v1/chat/completions", json=body, headers={"X-Headrace-Explain": "1"})
    assert reply.status_code == 200, reply.text
    document: dict[str, Any] = reply.json()
    usage = document["usage"]
    told = re.search(r"hit_tokens=(\d+)", reply.headers.get("x-headrace-decision", ""))
    answer = Answer(
        usage["prompt_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"],
        int(told[1]) if told else None,
    )
    return document["choices"][0]["message"]["content"], answer


def talk(http: httpx.Client, conversations: Iterable[Conversation], turns: int) -> list[Answer]:
    """Everybody says something in every round, two at a time."""
    answers: list[Answer] = []
    everybody = list(conversations)
    with ThreadPoolExecutor(2) as threads:
        for _ in range(turns):
            answers += threads.map(lambda each: each.turn(http), everybody)
    return answers


@dataclass(slots=True)
class HitRate:
    """Of some replicas, by their own counters, between two moments."""

    replicas: Sequence[Process]
    _hits: float = 0.0
    _queries: float = 0.0

    def __post_init__(self) -> None:
        self._hits, self._queries = self._read()

    def _read(self) -> tuple[float, float]:
        return (
            sum(each.metric(HITS) for each in self.replicas),
            sum(each.metric(QUERIES) for each in self.replicas),
        )

    def so_far(self) -> float:
        """Tokens found in the cache over tokens looked up, since this was made."""
        hits, queries = self._read()
        return (hits - self._hits) / (queries - self._queries)
