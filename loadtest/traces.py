"""Recorded traffic of others and of our own, as requests to be made up again.

Pure. Four formats are told apart by their first line:

- Mooncake (FAST '25): JSON lines of `timestamp` (ms), `input_length`, `output_length`, `hash_ids`
  of blocks of 512 tokens.
- Azure (LLM inference traces 2023 and 2024): CSV of TIMESTAMP, ContextTokens, GeneratedTokens.
- BurstGPT: CSV of Timestamp (s), Model, Request tokens, Response tokens, and more.
- Our own recordings (`headrace record`): JSON lines that begin with one that says so.

Where blocks are known, equal beginnings become equal beginnings again, so caches hit as they did.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain
from typing import Final

import msgspec

MOONCAKE_BLOCK_TOKENS: Final = 512
RECORDING: Final = "headrace-recording"
"""The value of `format` in the first line of a recording."""


class Replayed(msgspec.Struct, frozen=True):
    """One request of a trace: when, how long, and which blocks of tokens its prompt begins with.

    A block's name stands for its text. `block_tokens` holds the length of each named block.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[str, ...] = ()
    block_tokens: tuple[int, ...] = ()
    route: str = "/v1/chat/completions"
    stream: bool = True
    tenant: str = ""

    def named(self) -> Iterator[tuple[str, int]]:
        """Names and lengths of the blocks its prompt begins with, the last of them cut to fit."""
        left = self.prompt_tokens
        for name, tokens in zip(self.blocks, self.block_tokens, strict=True):
            if left <= 0:
                return
            yield name, min(tokens, left)
            left -= tokens

    @property
    def own_tokens(self) -> int:
        """What follows the named blocks and is nobody else's."""
        return max(0, self.prompt_tokens - sum(self.block_tokens))


class TraceError(ValueError):
    """A file is no trace we know; the message says what was wrong where."""


class _Mooncake(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


class _Recorded(msgspec.Struct):
    """A line of our own recordings, as `gateway.account.recording` writes it."""

    at_s: float
    route: str
    stream: bool
    prompt_tokens: int | None
    output_tokens: int | None
    chunks: int
    prompt_bytes: int
    tenant: str | None
    marks: list[tuple[int, str]]


def read_trace(lines: Iterable[str]) -> list[Replayed]:
    """All requests, in the order of their times. Raises TraceError."""
    lines = iter(lines)
    first = next(lines, "").strip()
    try:
        found = list(_reader_of(first, lines))
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"not a trace we know: {error}") from error
    if not found:
        raise TraceError("the trace holds no request")
    return sorted(found, key=lambda request: request.at_s)


def _reader_of(first: str, lines: Iterator[str]) -> Iterator[Replayed]:
    if RECORDING in first:
        # a gateway that could not keep up says so in lines of another kind
        return (_own(line) for line in lines if '"at_s"' in line)
    if first.startswith("{"):
        return map(_mooncake, chain([first], lines))
    columns = [name.strip() for name in first.split(",")]
    rows = csv.DictReader(lines, fieldnames=columns)
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(columns):
        return map(_azure, rows)
    if {"Timestamp", "Request tokens", "Response tokens"} <= set(columns):
        return (each for row in rows if (each := _burstgpt(row)) is not None)
    raise TraceError(f"no format begins with {first[:80]!r}")


def _mooncake(line: str) -> Replayed:
    row = msgspec.json.decode(line, type=_Mooncake)
    names = tuple(map(str, row.hash_ids))
    return Replayed(
        at_s=row.timestamp / 1e3,
        prompt_tokens=max(1, row.input_length),
        output_tokens=max(1, row.output_length),
        blocks=names,
        block_tokens=(MOONCAKE_BLOCK_TOKENS,) * len(names),
    )


def _azure(row: dict[str, str]) -> Replayed:
    at = datetime.fromisoformat(row["TIMESTAMP"].strip()[:26])  # seven digits of a second
    return Replayed(
        at_s=(at.replace(tzinfo=None) - datetime(2000, 1, 1)).total_seconds(),  # noqa: DTZ001
        prompt_tokens=max(1, int(row["ContextTokens"])),
        output_tokens=max(1, int(row["GeneratedTokens"])),
    )


def _burstgpt(row: dict[str, str]) -> Replayed | None:
    """None for the failed requests of that trace, which have no reply."""
    output = int(row["Response tokens"])
    if output < 1:
        return None
    prompt = max(1, int(row["Request tokens"]))
    return Replayed(at_s=float(row["Timestamp"]), prompt_tokens=prompt, output_tokens=output)


def _own(line: str) -> Replayed:
    """Marks are places in the prompt's bytes; tokens are spread over them evenly."""
    row = msgspec.json.decode(line, type=_Recorded)
    tokens = row.prompt_tokens or max(1, row.prompt_bytes // 4)
    ends = [at * tokens // max(1, row.prompt_bytes) for at, _ in row.marks]
    starts = [0, *ends[:-1]] if ends else []
    return Replayed(
        at_s=row.at_s,
        prompt_tokens=max(1, tokens),
        output_tokens=max(1, row.output_tokens or row.chunks),
        blocks=tuple(name for _, name in row.marks),
        block_tokens=tuple(end - start for start, end in zip(starts, ends, strict=True)),
        route=row.route,
        stream=row.stream,
        tenant=row.tenant or "",
    )
