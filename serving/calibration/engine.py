"""Asks an engine for tokens and notes when each comes: one connection a request, raw streams.

Prompts are token ids and so of exact length, and random, so that nothing of them is cached unless
it is meant to be. What is read of a response is the little that times and counts need.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from serving.asking import ask, fetch
from serving.vllm_facts import Facts, read_facts

VOCABULARY: Final = (1000, 30_000)
"""Ids that models of our time have, special ones left out."""

PATIENCE_S: Final = 300.0
"""For one generation: more than the longest prompt takes on the slowest engine worth a profile."""


class EngineError(Exception):
    """The engine does not answer as one that can be calibrated; the text is for the user."""


@dataclass(slots=True)
class Reply:
    """One generation: when it was asked for, when its tokens came, what of it was cached."""

    asked_at: float
    token_at: list[float] = field(default_factory=list)
    cached_tokens: int = 0

    @property
    def first_s(self) -> float:
        """From the request to the first token."""
        return self.token_at[0] - self.asked_at


class CalibratedEngine:
    """One engine, reached over HTTP."""

    def __init__(self, url: str, model: str | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or parts.hostname is None:
            raise EngineError(f"{url}: expected http://HOST:PORT")
        self.host, self.port = parts.hostname, parts.port or 80
        self.model = model or ""

    def __repr__(self) -> str:
        return f"<CalibratedEngine {self.host}:{self.port} {self.model}>"

    async def look(self) -> Facts:
        """What it says of itself. Raises EngineError."""
        listing = await fetch(self.host, self.port, "/v1/models", 10.0)
        page = await fetch(self.host, self.port, "/metrics", 10.0)
        if listing is None or page is None:
            raise EngineError(f"no engine answers at {self.host}:{self.port}")
        try:
            facts = read_facts(listing, page)
        except ValueError as error:
            raise EngineError(f"{self.host}:{self.port}: {error}") from error
        self.model = self.model or facts.model
        return facts

    async def fingerprint(self) -> str:
        """What it calls itself in unary answers; empty where it does not. Raises EngineError.

        The first request of a calibration: what does not work at all is said at once.
        """
        body = {"model": self.model, "prompt": [VOCABULARY[0]], "max_tokens": 1}
        path = "/v1/completions"
        answer = await ask(self.host, self.port, path, json.dumps(body).encode(), PATIENCE_S)
        if answer is None:
            raise EngineError(f"{self.host}:{self.port}: {path} was not answered")
        if answer.status != 200:
            raise EngineError(
                f"answered {answer.status}: {answer.body[:300].decode('utf-8', 'replace')}"
            )
        try:
            return str(json.loads(answer.body).get("system_fingerprint") or "")
        except (ValueError, AttributeError) as error:
            raise EngineError(f"answered with what is no completion: {error}") from error

    async def generate(
        self, prompt: Sequence[int], tokens: int, begun: asyncio.Event | None = None
    ) -> Reply:
        """Let it read `prompt` and make so many tokens. Raises EngineError.

        `begun` is set with the first token, or at the end if none comes.
        """
        body = json.dumps({
            "model": self.model, "prompt": list(prompt), "max_tokens": tokens, "ignore_eos": True,
            "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
        }).encode()  # fmt: skip
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            "Content-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        begun = begun or asyncio.Event()
        try:
            async with asyncio.timeout(PATIENCE_S):
                reply = await self._exchange(head.encode() + body, begun)
        except TimeoutError as error:
            raise EngineError(f"{self.host}:{self.port} hangs: {PATIENCE_S:g} s") from error
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise EngineError(f"{self.host}:{self.port}: {error}") from error
        finally:
            begun.set()
        if len(reply.token_at) < tokens:
            raise EngineError(f"{tokens} tokens were asked for, {len(reply.token_at)} came")
        return reply

    async def _exchange(self, request: bytes, begun: asyncio.Event) -> Reply:
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 20)
        try:
            reply = Reply(time.perf_counter())
            writer.write(request)
            await self._read(reader, reply, begun)
        finally:
            writer.close()
        return reply

    async def _read(self, reader: asyncio.StreamReader, reply: Reply, begun: asyncio.Event) -> None:
        status = await reader.readline()
        if b" 200 " not in status:
            said = (await reader.read()).decode("utf-8", "replace").split("\r\n\r\n")[-1]
            raise EngineError(f"answered {status.decode('latin-1').strip()}: {said[:300].strip()}")
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                _note(json.loads(line[6:]), time.perf_counter(), reply)
                begun.set()


def _note(event: Mapping[str, Any], now: float, reply: Reply) -> None:
    usage = event.get("usage")
    if usage is not None:
        # Several tokens may leave in one event: they are counted, and have its time.
        missing = usage["completion_tokens"] - len(reply.token_at)
        reply.token_at += reply.token_at[-1:] * missing
        details = usage.get("prompt_tokens_details") or {}
        reply.cached_tokens = details.get("cached_tokens") or 0
    elif event.get("choices"):
        reply.token_at.append(now)
