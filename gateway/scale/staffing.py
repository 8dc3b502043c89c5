"""How many replicas does this much work need?

Work is counted in replica-seconds: what a request costs the mean replica of its model, alone. Work
arriving at r replica-seconds per second keeps r replicas busy all the time; beyond that there must
be some to spare, or requests wait for each other.

    level      slow + shrunk(fast - slow)        two means of the past; their difference counts
                                                 only beyond what chance makes of it
    expected   level + slope x cold start        a rise goes on until what is ordered now is ready
    owed       backlog / drain                   what waits is to be done away with in that time
    needed     n: P(wait > objective) <= 1 - ratio, of expected + owed; or as many as
               requests fill, caches or sequences, if that is more

Chance. Work that arrives at random makes a mean over the last t seconds vary by sqrt(q / 2t), where
q are squares of requests' work per second: so noise is known, and need not be smoothed away by
waiting. An autoscaler keeps the highest of the last minutes: whatever noise is left, it pays for.

Staffing. The wait for one of n replicas is a delay with probability D(b), b = (n - r) / sqrt(r),
and then exponential at a rate of (n - r) / mean work of a request (Halfin and Whitt 1981). For a
given b this is square-root staffing; b follows from the objective. It is exact for many replicas
and exponential work. Work of wider spread should wait longer, but only first come, first served:
replicas are chosen by predicted wait, so whoever has a large prompt is passed by.

Down. A replica that goes takes its cache along: what it has been saving is work again, for a while.
What is there is kept as long as it would be needed if that had come true.

Invariants. Never negative, never less for more work, zero for none.
"""

from __future__ import annotations

from math import erfc, exp, log, pi, sqrt
from typing import Final

import msgspec

from gateway.vocabulary import Seconds

SURPRISE: Final = 2.0  # standard deviations that are taken for chance
FAST_S: Final = 30.0
SLOW_S: Final = 300.0
"""Over how long the two means of arriving work are taken: later work counts more."""

FULL: Final = 0.9
"""The part of a KV cache, and of the sequences it runs, that a replica may be given: beyond it
requests wait in the engine, or are preempted."""

LOST: Final = 0.5
"""The part of what a replica's cache saves that is paid again while others fill."""

_STEPS: Final = 40  # of bisection


class Objective(msgspec.Struct, frozen=True):
    """What is wanted: `ratio` of requests wait no longer than `wait_s`; what waits already is done
    away with in `drain_s`, and what is ordered is there in `cold_start_s`."""

    wait_s: Seconds
    ratio: float
    cold_start_s: Seconds
    drain_s: Seconds


class Work(msgspec.Struct, frozen=True):
    """What arrives and what is there, all gateways together.

    `fast` and `slow` are arriving work in replica-seconds per second, `requests` how many bring it
    and `lumps` the sum of squares of what each costs, per second. `saved` is work per second that
    caches spare. `backlog_s` is in replica-seconds. `caches` and `slots` are how many replicas' KV
    caches requests fill in the end, and how many replicas' numbers of sequences that run at once.
    """

    fast: float = 0.0
    slow: float = 0.0
    requests: float = 0.0
    lumps: float = 0.0
    saved: float = 0.0
    backlog_s: Seconds = 0.0
    caches: float = 0.0
    slots: float = 0.0


def rise(work: Work) -> float:
    """How much more arrives of late than before, beyond chance; negative where it is less."""
    chance = SURPRISE * sqrt(max(work.lumps, 0.0) / (2.0 * FAST_S))
    change = work.fast - work.slow
    if change > chance:
        return change - chance
    return change + chance if change < -chance else 0.0


def expected(work: Work, ahead_s: Seconds) -> float:
    """Replica-seconds per second that will arrive so long from now. A fall is not carried on."""
    change = rise(work)
    slope = max(change, 0.0) / (SLOW_S - FAST_S)
    return max(work.slow + change + slope * ahead_s, 0.0)


def busy(work: Work, objective: Objective) -> float:
    """Replicas that would have something to do all the time."""
    return expected(work, objective.cold_start_s) + work.backlog_s / objective.drain_s


def needed(work: Work, objective: Objective, present: int = 0) -> float:
    """Replicas, where so many are there or on their way; see above."""
    load = busy(work, objective)
    mean_s = work.slow / work.requests if work.requests > 0.0 else 0.0
    target = max(staffed(load, mean_s, objective), work.caches / FULL, work.slots / FULL)
    if target >= present:
        return target
    lost = LOST * work.saved / present
    return max(target, min(staffed(load + lost, mean_s, objective), float(present)))


def staffed(load: float, mean_s: Seconds, objective: Objective) -> float:
    """The least n at which `objective.ratio` of requests wait no longer than they may, where each
    is so much work in the mean. O(1)."""
    if load <= 0.0:
        return 0.0
    misses = 1.0 - objective.ratio
    low, high = 0.0, 4.0 * sqrt(load) + load
    for _ in range(_STEPS):
        spare = 0.5 * (low + high)
        if _late(spare, load, mean_s, objective.wait_s) > misses:
            low = spare
        else:
            high = spare
    return load + high


def _late(spare: float, load: float, mean_s: Seconds, wait_s: Seconds) -> float:
    """The part of requests that wait longer than `wait_s` with so many replicas to spare."""
    delayed = 1.0 / (1.0 + _hazard_inverse(spare / sqrt(load)))
    if mean_s <= 0.0:
        return 0.0
    return delayed * exp(-min(spare * wait_s / mean_s, 700.0))


def _hazard_inverse(b: float) -> float:
    """b Phi(b) / phi(b), of the normal distribution."""
    if b > 30.0:
        return 1e300
    normal = 0.5 * erfc(-b / sqrt(2.0))
    return exp(log(normal) + 0.5 * (b * b + log(2.0 * pi))) * b
