"""The trace as requests that can be sent: real text for block ids, lengths scaled, time stretched.

Equal leading blocks are equal leading text and equal leading tokens, and only they: a block is
words drawn by its id, each a token of four bytes to the simulator. A block of 512 tokens in the
trace is one of `BLOCK_TOKENS` here and lengths are divided alike; replies, which cost an event a
token, by `OUTPUT_SCALE`. The ideal hit ratio is the trace's own.

Time is stretched so that what one boundless cache would leave to prefill is a stated share of the
capacity that was measured. Pure but for reading the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Final

import msgspec

from serving.sim.tokens import BYTES_PER_TOKEN, VOCABULARY, detokenize
from tests.bench.routing.cache import BLOCK_TOKENS as TRACE_BLOCK_TOKENS
from tests.bench.routing.cache import Arrival, ideal_hit_tokens
from tests.bench.routing.workloads import Source, conversation

SCALE: Final = 4
"""Prompt lengths of the trace are divided by this."""

OUTPUT_SCALE: Final = 16
BLOCK_TOKENS: Final = TRACE_BLOCK_TOKENS // SCALE


class Ask(msgspec.Struct, frozen=True):
    """One request of the plan: when it is sent, and what it says; `salt` keeps caches out of it."""

    at_s: float
    blocks: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    salt: str | None = None


@lru_cache(maxsize=65_536)
def block_text(block: int) -> str:
    """A block's words: `BLOCK_TOKENS` tokens, others for every id."""
    return detokenize(Random(block).choices(VOCABULARY, k=BLOCK_TOKENS))


def prompt_text(ask: Ask) -> str:
    """The user's message."""
    whole = "".join(map(block_text, ask.blocks))
    return whole[: ask.prompt_tokens * BYTES_PER_TOKEN]


def body(ask: Ask, model: str) -> bytes:
    """A streamed chat; the reply has exactly the length the trace says."""
    chat: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt_text(ask)}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": ask.output_tokens,
        "ignore_eos": True,
    }
    if ask.salt is not None:
        chat["cache_salt"] = ask.salt
    return msgspec.json.encode(chat)


def arrivals(traces: Path, seed: int, requests: int) -> list[Arrival]:
    """The seed's own stretch of the trace, at the trace's lengths. Raises Unavailable."""
    return conversation(Source(requests, seed, traces), skipped=(seed - 1) * requests)


def plan(
    drawn: Sequence[Arrival], *, load: float, capacity_tokens_s: float
) -> tuple[list[Ask], float]:
    """The arrivals as requests at `load` of the capacity, and their ideal hit ratio.

    The capacity is that of all replicas together, in prompt tokens as they are here.
    """
    prompts = sum(each.prompt_tokens for each in drawn)
    hits = sum(ideal_hit_tokens(drawn))
    first_s, last_s = drawn[0].at_s, drawn[-1].at_s
    span_s = (prompts - hits) / SCALE / (load * capacity_tokens_s)
    stretch = span_s / (last_s - first_s)
    asks = [
        msgspec.structs.replace(as_ask(each), at_s=(each.at_s - first_s) * stretch)
        for each in drawn
    ]
    return asks, hits / prompts


def pressing(drawn: Sequence[Arrival]) -> list[Ask]:
    """The arrivals all at once, and nothing to be reused: what measures the capacity."""
    asks = map(as_ask, drawn)
    return [msgspec.structs.replace(ask, at_s=0.0, salt=str(i)) for i, ask in enumerate(asks)]


def as_ask(arrival: Arrival) -> Ask:
    """One arrival, its lengths scaled; neither becomes less than one token."""
    return Ask(
        at_s=arrival.at_s,
        blocks=arrival.blocks,
        prompt_tokens=-(-arrival.prompt_tokens // SCALE),
        output_tokens=-(-arrival.output_tokens // OUTPUT_SCALE),
    )
