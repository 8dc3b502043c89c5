"""What arrives at which replicas: a published trace replayed, and generators.

Every workload is scaled to a stated share of the *measured* capacity of its replicas: the rate of
first tokens that they reach when the same requests come far too fast and are placed by `Reference`.
So the work of decoding, the limits of the KV cache and the hits that a pool of caches can have are
all in it. Open loops keep their instants; in closed ones a request comes some time after the end of
the one it follows.

Seeds. In the trace, arrivals that share an instant (it counts in steps of three seconds) are spread
over the step by the seed; a generator draws everything by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Final

import msgspec

from tests.bench.routing.cache import BLOCK_TOKENS, Arrival, ideal_hit_tokens
from tests.bench.routing.comparators import Reference
from tests.bench.routing.engine import ReplicaSpec
from tests.bench.routing.world import World

TRACE: Final = "mooncake_conversation.jsonl"
TRACE_STEP_S: Final = 3.0

RATE: Final = 16_000.0
"""Prefill tokens a second of an ordinary replica: of the order published for 32B models."""

EVEN: Final = (ReplicaSpec(RATE, cache_blocks=2000),) * 8
SMALL: Final = (ReplicaSpec(RATE, cache_blocks=400),) * 8
UNEQUAL: Final = (ReplicaSpec(1.5 * RATE, cache_blocks=2000),) * 4 + (
    ReplicaSpec(0.5 * RATE, cache_blocks=2000),
) * 4
CHURN: Final = (
    ReplicaSpec(RATE, cache_blocks=2000, leaves_at=0.4),
    *(ReplicaSpec(RATE, cache_blocks=2000),) * 7,
    ReplicaSpec(RATE, cache_blocks=2000, joins_at=0.6),
)
"""One of eight is killed, and some time later another one comes, cold."""

PREFIX_BLOCKS: Final = 12
SUFFIX_TOKENS: Final = 1200
MEAN_OUTPUT_TOKENS: Final = 250


class Unavailable(Exception):
    """A workload cannot be had here; says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """How many requests, by which seed, and where traces lie."""

    requests: int
    seed: int
    traces: Path


@dataclass(frozen=True, slots=True)
class Workload:
    """Arrivals to be scaled to `load` on these replicas; `quick` ones make the short run."""

    arrivals: Callable[[Source], list[Arrival]]
    load: float
    specs: Sequence[ReplicaSpec]
    about: str
    quick: bool = False

    def draw(self, source: Source) -> list[Arrival]:
        """Arrivals in order of time, at the stated load. Raises Unavailable."""
        return scaled(self.arrivals(source), self.load, self.specs)


FLOOD: Final = 2.0  # times what one boundless cache would leave to be prefilled


def scaled(arrivals: Sequence[Arrival], load: float, specs: Sequence[ReplicaSpec]) -> list[Arrival]:
    """The same arrivals, time stretched so that they come at `load` times the measured capacity."""
    hits = ideal_hit_tokens(arrivals)
    work_tokens = sum(each.prompt_tokens for each in arrivals) - sum(hits)
    always = [each for each in specs if each.joins_at == 0.0]
    flood_s = work_tokens / (FLOOD * sum(each.prefill_tokens_per_s for each in always))
    flood = [replace(each, after=None, think_s=0.0) for each in _stretched(arrivals, flood_s)]
    whole = [replace(each, leaves_at=math.inf) for each in always]
    world = World(whole)
    run = world.run(flood, Reference(whole, world, Random(0)))
    firsts_s = sorted(each.first_token_at_s for each in run.served)
    low, high = len(firsts_s) // 10, len(firsts_s) * 9 // 10
    capacity_per_s = (high - low) / (firsts_s[high] - firsts_s[low])
    return _paced(_stretched(arrivals, len(arrivals) / (load * capacity_per_s)), specs)


def _stretched(arrivals: Sequence[Arrival], span_s: float) -> list[Arrival]:
    """From 0 to `span_s`."""
    first_s = arrivals[0].at_s
    factor = span_s / (arrivals[-1].at_s - first_s)
    return [replace(each, at_s=(each.at_s - first_s) * factor) for each in arrivals]


def _paced(arrivals: Sequence[Arrival], specs: Sequence[ReplicaSpec]) -> list[Arrival]:
    """In a closed loop a client thinks for what is left of the gap after an answer without wait."""
    spec = specs[0]
    answered_s = [
        each.at_s + spec.prefill_s(each.prompt_tokens, 0) + each.output_tokens * spec.step_s
        for each in arrivals
    ]
    return [
        each
        if each.after is None
        else replace(each, think_s=max(each.at_s - answered_s[each.after], 0.0))
        for each in arrivals
    ]


class _Line(msgspec.Struct, frozen=True):
    """One line of a Mooncake trace: `timestamp` in ms, one id for each 512 tokens begun."""

    timestamp: int
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def conversation(source: Source, skipped: int = 0) -> list[Arrival]:
    """The Mooncake conversation trace from a line on. Raises Unavailable where there is none."""
    path = source.traces / TRACE
    try:
        text = path.read_text()
    except OSError as error:
        raise Unavailable(f"no {TRACE} in the traces folder ({error.strerror})") from error
    rng = Random(source.seed)
    lines = text.splitlines()[skipped : skipped + source.requests]
    rows = [msgspec.json.decode(line, type=_Line) for line in lines]
    if len(rows) < source.requests:
        raise Unavailable(f"{TRACE} has only {len(rows)} requests after line {skipped}")
    timed = sorted(
        (row.timestamp / 1e3 + rng.uniform(0, TRACE_STEP_S), i) for i, row in enumerate(rows)
    )
    return [
        Arrival(
            number,
            at_s,
            max(rows[i].input_length, 1),
            max(rows[i].output_length, 1),
            rows[i].hash_ids,
        )
        for number, (at_s, i) in enumerate(timed)
    ]


def later_conversation(source: Source) -> list[Arrival]:
    """A part of the trace that was not looked at while the score was designed."""
    return conversation(source, skipped=8000)


def closed_conversation(source: Source) -> list[Arrival]:
    """The trace as conversations: a request follows the latest that holds the most of its prompt.

    The first block does not tell conversations apart: it is the system prompt of very many.
    """
    latest: dict[int, int] = {}
    arrivals = []
    for each in conversation(source):
        followed = [latest[block] for block in each.blocks[1:] if block in latest]
        arrivals.append(replace(each, after=followed[-1] if followed else None))
        latest |= dict.fromkeys(each.blocks, each.number)
    return arrivals


class _Prompts:
    """Makes arrivals from block ids that no other prompt has, except for shared prefixes."""

    def __init__(self, source: Source) -> None:
        self.rng = Random(source.seed)
        self._ids = count()

    def blocks(self, number: int) -> tuple[int, ...]:
        """So many new blocks."""
        return tuple(next(self._ids) for _ in range(number))

    def arrival(self, at_s: float, prefix: tuple[int, ...], suffix_tokens: int) -> Arrival:
        """A prompt of a shared prefix and tokens of its own; numbered later."""
        own = self.blocks(-(-suffix_tokens // BLOCK_TOKENS))
        tokens = len(prefix) * BLOCK_TOKENS + suffix_tokens
        output = 1 + int(self.rng.expovariate(1 / MEAN_OUTPUT_TOKENS))
        return Arrival(0, at_s, tokens, output, prefix + own)

    def poisson(self) -> Iterable[float]:
        """Instants one second apart in the mean, without end."""
        now = 0.0
        while True:
            now += self.rng.expovariate(1.0)
            yield now


def _numbered(arrivals: Iterable[Arrival]) -> list[Arrival]:
    """In order of time, and numbered so; who follows whom is kept."""
    ordered = sorted(arrivals, key=lambda each: each.at_s)
    numbers = {each.number: number for number, each in enumerate(ordered)}
    return [
        replace(each, number=number, after=None if each.after is None else numbers[each.after])
        for number, each in enumerate(ordered)
    ]


def groups(source: Source, number: int = 150, hot_share: float = 0.0) -> list[Arrival]:
    """Prefixes of 6144 tokens, drawn evenly, each time with 1200 tokens of its own.

    `hot_share` of the requests have one further prefix.
    """
    prompts = _Prompts(source)
    prefixes = [prompts.blocks(PREFIX_BLOCKS) for _ in range(number)]
    hot = prompts.blocks(PREFIX_BLOCKS)
    rng = prompts.rng
    return _numbered(
        prompts.arrival(
            at_s, hot if rng.random() < hot_share else rng.choice(prefixes), SUFFIX_TOKENS
        )
        for at_s, _ in zip(prompts.poisson(), range(source.requests), strict=False)
    )


def hot_prefix(source: Source) -> list[Arrival]:
    """One prefix in half of the requests."""
    return groups(source, hot_share=0.5)


def siblings(source: Source, burst: int = 16) -> list[Arrival]:
    """Bursts that share a prefix nobody had before, all at once."""
    prompts = _Prompts(source)
    arrivals = []
    for at_s, _ in zip(prompts.poisson(), range(source.requests // burst), strict=False):
        prefix = prompts.blocks(PREFIX_BLOCKS)
        arrivals += [prompts.arrival(at_s, prefix, SUFFIX_TOKENS) for _ in range(burst)]
    return _numbered(arrivals)


def agents(source: Source, turns: int = 20) -> list[Arrival]:
    """Sessions that each wait for their answer and come back with it and some 700 tokens more.

    All begin with the same 2048 tokens, each with 4096 of its own; `turns` in each, 3 s apart.
    """
    prompts = _Prompts(source)
    rng, shared = prompts.rng, prompts.blocks(4)
    arrivals: list[Arrival] = []
    for session, at_s in zip(range(source.requests // turns), prompts.poisson(), strict=False):
        prefix = shared + prompts.blocks(8)
        now = at_s * turns
        for turn in range(turns):
            each = prompts.arrival(now, prefix, int(rng.expovariate(1 / 700)) + 1)
            number = len(arrivals)
            after = number - 1 if turn else None
            arrivals.append(replace(each, number=number, session=session, after=after))
            prefix = each.blocks
            now += rng.expovariate(1 / 3.0)
    return _numbered(arrivals)


def system_prompt(source: Source) -> list[Arrival]:
    """The same 4096 tokens before everything, and strangers after it."""
    prompts = _Prompts(source)
    shared = prompts.blocks(8)
    return _numbered(
        prompts.arrival(at_s, shared, min(1 + int(prompts.rng.lognormvariate(7.0, 1.0)), 32_000))
        for at_s, _ in zip(prompts.poisson(), range(source.requests), strict=False)
    )


def strangers(source: Source) -> list[Arrival]:
    """Nothing in common: lengths spread widely (log-normal, median 2000 tokens, at most 32 000)."""
    prompts = _Prompts(source)
    return _numbered(
        prompts.arrival(at_s, (), min(1 + int(prompts.rng.lognormvariate(7.6, 1.0)), 32_000))
        for at_s, _ in zip(prompts.poisson(), range(source.requests), strict=False)
    )


WORKLOADS: Final[Mapping[str, Workload]] = MappingProxyType(
    {
        "conversation-60": Workload(conversation, 0.60, EVEN, "trace at 60 %"),
        "conversation-80": Workload(conversation, 0.80, EVEN, "trace at 80 %", quick=True),
        "conversation-95": Workload(conversation, 0.95, EVEN, "trace at 95 %"),
        "later-80": Workload(later_conversation, 0.80, EVEN, "trace from line 8000 on, at 80 %"),
        "closed-60": Workload(closed_conversation, 0.60, EVEN, "trace in closed loops, at 60 %"),
        "closed-80": Workload(closed_conversation, 0.80, EVEN, "trace in closed loops, at 80 %"),
        "closed-95": Workload(
            closed_conversation, 0.95, EVEN, "trace in closed loops, at 95 %", quick=True
        ),
        "groups-80": Workload(groups, 0.80, SMALL, "150 shared prefixes, at 80 %", quick=True),
        "hot-80": Workload(
            hot_prefix, 0.80, SMALL, "one prefix in half of them, at 80 %", quick=True
        ),
        "siblings-80": Workload(
            siblings, 0.80, SMALL, "bursts of 16 siblings, at 80 %", quick=True
        ),
        "agents-80": Workload(
            agents, 0.80, SMALL, "sessions that wait for their answers, at 80 %", quick=True
        ),
        "strangers-80": Workload(strangers, 0.80, EVEN, "no reuse, at 80 %", quick=True),
        "system-80": Workload(
            system_prompt, 0.80, EVEN, "one system prompt before all, at 80 %", quick=True
        ),
        "unequal-80": Workload(
            conversation,
            0.80,
            UNEQUAL,
            "trace at 80 %, 4 fast and 4 slow (24k and 8k tokens/s)",
            quick=True,
        ),
        "churn-80": Workload(
            conversation, 0.80, CHURN, "trace at 80 %, one killed, one added", quick=True
        ),
    }
)
