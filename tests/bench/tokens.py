"""What it costs to read prompts, and who feels it: `python -m tests.bench.tokens [FOLDER]`.

Three figures of one model's folder (that of SmolLM2 in the cache folder, unless another is named):
a whole prompt that was never seen, the turns of one conversation, and how late the event loop comes
to its own work while a 128 KB prompt is read beside it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Final

import uvloop

from gateway.kv_cache import Tokenised
from gateway.parse.openai import parse_json
from gateway.request import GenerationRequest
from gateway.settings import TokensSettings
from gateway.tokens.reader import Reader
from gateway.tokens.service import Tokens
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


def read(reader: Reader, messages: list[dict[str, str]]) -> tuple[float, Tokenised]:
    """CPU milliseconds of the thread that reads it, and what it read."""
    request = asking(messages)
    begun = time.thread_time()
    tokenised = reader.read(request, None)
    return (time.thread_time() - begun) * 1e3, tokenised


def whole(reader: Reader, rng: random.Random) -> None:
    """Prompts never seen before."""
    for size in (4_096, 32_768, 131_072):
        costs = []
        for _ in range(7):
            cost, tokenised = read(reader, [{"role": "user", "content": text(rng, size)}])
            costs.append(cost)
        median, count = statistics.median(costs), len(tokenised.tokens)
        print(
            f"whole, {size} bytes, {count} tokens, {len(tokenised.edges)} edges: "
            f"{median:.1f} ms of CPU, {median / count * 1e3:.2f} ms per 1000 tokens"
        )


def turns(reader: Reader, rng: random.Random) -> None:
    """Conversations that grow by two messages of 2 KB a turn."""
    costs: dict[int, list[float]] = {}
    counts: dict[int, int] = {}
    for _ in range(5):
        messages = [{"role": "system", "content": text(rng, 8_192)}]
        for turn in range(1, 33):
            messages.append({"role": "user", "content": text(rng, 2_048)})
            cost, tokenised = read(reader, messages)
            costs.setdefault(turn, []).append(cost)
            counts[turn] = len(tokenised.tokens)
            messages.append({"role": "assistant", "content": text(rng, 2_048)})
    for turn in (2, 8, 32):
        median = statistics.median(costs[turn])
        print(f"turn {turn}, {counts[turn]} tokens, 4 KB of them new: {median:.1f} ms of CPU")


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
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rng = random.Random(SEED)
    begun = time.thread_time()
    reader = Reader(Path(folder), 64 * 1024 * 1024)
    print(f"the model's files loaded: {(time.thread_time() - begun) * 1e3:.0f} ms of CPU")
    for _ in range(4):  # the first are read twice, to see that pieces may be trusted
        read(reader, [{"role": "user", "content": "a"}])
    whole(reader, rng)
    turns(reader, rng)
    tokens = Tokens(TokensSettings(folder=folder), lambda _: None)
    tokens.read_sync(asking([{"role": "user", "content": "a"}]))
    uvloop.run(lag(tokens, rng))
    tokens.close()


if __name__ == "__main__":
    main()
