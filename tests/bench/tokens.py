"""What it costs to read prompts, and who feels it: `python -m tests.bench.tokens [FOLDER]`.

Three figures of one model's folder (that of SmolLM2 in the cache folder, unless another is named):
a whole prompt that was never seen, the turns of one conversation, and how late the event loop comes
to its own work while a 128 KB prompt is read beside it.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Final

import uvloop

from gateway.parse.openai import parse_json
from gateway.settings import TokensSettings
from gateway.tokens.service import Tokens
from gateway.vocabulary import GenerationRequest
from tests.builders import a_route

SEED: Final = 20_26
SMOLLM2: Final = Path.home() / ".cache/headrace/models/SmolLM2-135M-Instruct"
TEXT: Final = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or "
    "had an they which one you were her all she there would their we him been has when who will "
    "more no if out so said what up its about into than them can only other new some could time "
    "gateway inference replica token cache latency return def class import self None True 1024"
)
WORDS: Final = TEXT.split()
TICK_S: Final = 0.001


def text(rng: random.Random, size: int) -> str:
    """Words and lines, so many characters."""
    words: list[str] = []
    left = size
    while left > 0:
        word = rng.choice(WORDS) + rng.choice((" ", " ", " ", " ", ", ", ".\n"))
        words.append(word)
        left -= len(word)
    return "".join(words)[:size]


def asking(messages: list[dict[str, str]]) -> GenerationRequest:
    """A request as the gateway parses it."""
    body: dict[str, Any] = {"model": "m", "messages": messages}
    written = json.dumps(body).encode()
    return parse_json(written, a_route(), lambda _, size: size // 4)


def whole(tokens: Tokens, rng: random.Random) -> None:
    """Prompts never seen before."""
    for size in (4_096, 32_768, 131_072):
        costs, rates = [], []
        for _ in range(7):
            request = asking([{"role": "user", "content": text(rng, size)}])
            begun = time.perf_counter()
            read = tokens.read_sync(request)
            costs.append((time.perf_counter() - begun) * 1e3)
            rates.append(costs[-1] / len(read.tokens) * 1e3)
        print(
            f"whole, {size} bytes, {len(read.tokens)} tokens, {len(read.edges)} edges: "
            f"{statistics.median(costs):.1f} ms, {statistics.median(rates):.2f} ms per 1000 tokens"
        )


def turns(tokens: Tokens, rng: random.Random) -> None:
    """A conversation that grows by two messages of 2 KB a turn."""
    messages = [{"role": "system", "content": text(rng, 8_192)}]
    for turn in range(1, 33):
        messages.append({"role": "user", "content": text(rng, 2_048)})
        request = asking(messages)
        begun = time.perf_counter()
        read = tokens.read_sync(request)
        cost = (time.perf_counter() - begun) * 1e3
        if turn in (1, 8, 32):
            print(f"turn {turn}, {len(read.tokens)} tokens, the last new: {cost:.1f} ms")
        messages.append({"role": "assistant", "content": text(rng, 2_048)})


async def lag(tokens: Tokens, rng: random.Random) -> None:
    """How late a timer of 1 ms fires, while prompts of 128 KB are read and while none are."""
    for busy in (False, True):
        late: list[float] = []
        reading = [
            tokens.tokenised(asking([{"role": "user", "content": text(rng, 131_072)}]), 60.0)
            for _ in range(8 * busy)
        ]
        work = asyncio.gather(*reading, asyncio.sleep(1.0))
        while not work.done():
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            late.append((time.perf_counter() - due) * 1e3)
        late.sort()
        print(
            f"loop {'beside 8 prompts of 128 KB' if busy else 'alone'}: late by "
            f"{late[len(late) // 2]:.2f} ms (median), {late[len(late) * 99 // 100]:.2f} (p99), "
            f"{late[-1]:.2f} (most), of {len(late)}"
        )


def main() -> None:
    """Print the figures."""
    folder = sys.argv[1] if len(sys.argv) > 1 else str(SMOLLM2)
    tokens = Tokens(TokensSettings(folder=folder), lambda _: None)
    rng = random.Random(SEED)
    begun = time.perf_counter()
    tokens.read_sync(asking([{"role": "user", "content": "a"}]))
    print(f"first prompt, files and libraries loaded: {(time.perf_counter() - begun) * 1e3:.0f} ms")
    whole(tokens, rng)
    turns(tokens, rng)
    uvloop.run(lag(tokens, rng))
    tokens.close()


if __name__ == "__main__":
    main()
