"""What arrives over hours: the published trace, a day, a crowd out of nothing, a step down.

But for the trace, instants are Poisson at a rate that changes over time, and requests are those of
the trace drawn in its own order from a place that the seed decides: sizes, answers and what they
share are real, only their rate is made. `mixed` is what a rate of requests cannot tell: halfway,
clients begin to send short prompts and want long answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Final

from tests.bench.routing.cache import Arrival
from tests.bench.routing.workloads import Source, conversation

TRACE_REQUESTS: Final = 12_031
OTHER_IDS: Final = 10**7  # blocks of another copy of the trace are others
HOUR_S: Final = 3600.0

Rate = Callable[[float], float]  # requests a second at an instant


@lru_cache(maxsize=4)
def _trace(traces: Path, seed: int) -> tuple[Arrival, ...]:
    return tuple(conversation(Source(TRACE_REQUESTS, seed, traces)))


def _drawn(traces: Path, seed: int) -> Iterator[Arrival]:
    """Requests of the trace in their order, round and round, from a place of the seed's."""
    whole = _trace(traces, seed)
    at, lap = Random(seed).randrange(len(whole)), 0
    while True:
        each = whole[at]
        blocks = tuple([block + lap * OTHER_IDS for block in each.blocks])
        yield replace(each, blocks=blocks)
        at += 1
        if at == len(whole):
            at, lap = 0, lap + 1


def _poisson(rate: Rate, most: float, until_s: float, rng: Random) -> Iterator[float]:
    """Instants at a changing rate, by thinning."""
    now = 0.0
    while True:
        now += rng.expovariate(most)
        if now >= until_s:
            return
        if rng.random() * most < rate(now):
            yield now


def _at(rate: Rate, most: float, until_s: float, traces: Path, seed: int) -> list[Arrival]:
    rng = Random(f"{seed}/instants")
    drawn = _drawn(traces, seed)
    return [
        replace(next(drawn), number=number, at_s=at_s)
        for number, at_s in enumerate(_poisson(rate, most, until_s, rng))
    ]


def trace(traces: Path, seed: int) -> list[Arrival]:
    """The trace's own hour and instants."""
    return list(_trace(traces, seed))


def day(traces: Path, seed: int) -> list[Arrival]:
    """A day in three hours: from 0.2 requests a second to 4 and back."""
    return _at(
        lambda now: 2.1 - 1.9 * math.cos(2 * math.pi * now / (3 * HOUR_S)),
        4.0, 3 * HOUR_S, traces, seed,
    )  # fmt: skip


def flash(traces: Path, seed: int) -> list[Arrival]:
    """Nobody, and at 600 s all at once 4 a second, for 20 minutes; then nobody."""
    return _at(lambda now: 4.0 if 600 <= now < 1800 else 0.0, 4.0, 1800.0, traces, seed)


def step_down(traces: Path, seed: int) -> list[Arrival]:
    """5 a second for half an hour, then 1 for three quarters of one."""
    return _at(lambda now: 5.0 if now < HOUR_S / 2 else 1.0, 5.0, 1.25 * HOUR_S, traces, seed)


def mixed(traces: Path, seed: int) -> list[Arrival]:
    """3 a second for an hour; in its second half they send an eighth of the prompt and want three
    times the answer."""
    arrivals = _at(lambda _now: 3.0, 3.0, HOUR_S, traces, seed)
    return [each if each.at_s < HOUR_S / 2 else _chat(each) for each in arrivals]


def _chat(each: Arrival) -> Arrival:
    kept = max(len(each.blocks) // 8, 1)
    tokens = max(each.prompt_tokens // 8, 1)
    return replace(
        each,
        prompt_tokens=tokens,
        blocks=each.blocks[: -(-tokens // 512)] or each.blocks[:kept],
        output_tokens=3 * each.output_tokens,
    )


@dataclass(frozen=True, slots=True)
class Workload:
    """Arrivals, until when replicas are counted, how many there are at first, and from when on
    requests are judged: replicas that are there at first have empty caches, which no rule can help.
    """

    arrivals: Callable[[Path, int], list[Arrival]]
    until_s: float
    first: int
    judged_from_s: float = 300.0

    @property
    def about(self) -> str:
        """In words."""
        return " ".join((self.arrivals.__doc__ or "").split())


WORKLOADS: Final[Mapping[str, Workload]] = MappingProxyType(
    {
        "trace": Workload(trace, HOUR_S, 8),
        "day": Workload(day, 3 * HOUR_S, 2),
        "flash": Workload(flash, HOUR_S, 0, 0.0),
        "step-down": Workload(step_down, 1.25 * HOUR_S, 11),
        "mixed": Workload(mixed, HOUR_S, 8),
    }
)
