"""What arrives, and what is asked of it. Seeds decide everything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from gateway.vocabulary import ServiceClass, Tenant
from tests.bench.holding.world import Arrival, Fate, held, simulate

OBJECTIVE_S: Final = 2.0
MEAN_OUTPUT: Final = 120
MOST_PROMPT: Final = 16_000
WARM_UP_S: Final = 15.0
BURST_S: Final = 10.0
POOLED: Final = 4  # runs of which a tail is made
LOADS: Final = (0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)

ONE, THREE = Tenant("one"), Tenant("three", weight=3.0)
STEADY, FLOOD = Tenant("steady"), Tenant("flood")
SCREEN = Tenant("screen", ServiceClass.INTERACTIVE)
BATCH = Tenant("batch", ServiceClass.BATCH)
HOPEFUL = Tenant("hopeful", ttft_objective_s=OBJECTIVE_S)

Row = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Set:
    """How much of everything: virtual seconds, lines of a batch, one seed of several."""

    seconds: float
    lines: int
    seed: int
    per_s: float = 0.0
    """Requests a second that the pool answers when it never lacks any."""


def lengths(rng: Random) -> tuple[int, int]:
    """Prompt tokens (log-normal, median 1200, mean about 2000) and output tokens of a request."""
    prompt = min(16 + int(rng.lognormvariate(7.1, 1.0)), MOST_PROMPT)
    return prompt, 1 + int(rng.expovariate(1 / MEAN_OUTPUT))


def poisson(tenant: Tenant, per_s: float, seconds: float, rng: Random) -> Iterator[Arrival]:
    """Strangers, at random instants."""
    now = rng.expovariate(per_s)
    while now < seconds:
        yield Arrival(now, tenant, *lengths(rng))
        now += rng.expovariate(per_s)


def bursts(tenant: Tenant, per_s: float, seconds: float, rng: Random) -> Iterator[Arrival]:
    """The same, thick and thin by turns: 1.8 and 0.2 of the mean, ten seconds each."""
    for arrival in poisson(tenant, 1.8 * per_s, seconds, rng):
        is_thin = arrival.at_s // BURST_S % 2
        if not is_thin or rng.random() < 1 / 9:
            yield arrival


def families(tenant: Tenant, per_s: float, seconds: float, rng: Random) -> Iterator[Arrival]:
    """Groups of some seven that share 3000 tokens nobody had before, all at once."""
    now = 0.0
    while (now := now + rng.expovariate(per_s)) < seconds:
        prefix = rng.randrange(1, 4096)
        for _ in range(1 + int(rng.expovariate(1 / 6))):
            output = 1 + int(rng.expovariate(1 / MEAN_OUTPUT))
            yield Arrival(now, tenant, 3000 + rng.randrange(50, 600), output, prefix, 3000)


def merged(*streams: Iterable[Arrival]) -> list[Arrival]:
    """In order of time."""
    return sorted((each for stream in streams for each in stream), key=lambda each: each.at_s)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share lies."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def ttfts(fates: Sequence[Fate], tenant: Tenant, seconds: float) -> list[float]:
    """Of those of a tenant that came after the warm-up and not at the very end."""
    return [
        fate.ttft_s
        for fate in fates
        if fate.arrival.tenant is tenant and WARM_UP_S <= fate.arrival.at_s < seconds - 5.0
    ]


def capacity(given: Set) -> float:
    """Answers a second, when all is sent at once and there is too much of it."""
    arrivals = list(poisson(HOPEFUL, 40.0, given.seconds, Random(given.seed)))
    fates = simulate(arrivals, held(None), until_s=given.seconds)
    ended = [fate for fate in fates if fate.ended_at_s is not None]
    later = sum((fate.ended_at_s or 0.0) >= WARM_UP_S for fate in ended)
    return later / (given.seconds - WARM_UP_S)


def throughput(given: Set) -> Row:
    """Tokens a second at 130 % load: computed prompt tokens and generated ones."""
    arrivals = list(poisson(Tenant("t"), 1.3 * given.per_s, given.seconds, Random(given.seed)))
    found = {}
    for name, hold in (("uncapped", held(None)), ("capped", held())):
        fates = simulate(arrivals, hold, until_s=given.seconds)
        found[name] = sum(
            fate.arrival.prompt_tokens - fate.cached_tokens + fate.arrival.output_tokens
            for fate in fates
            if fate.ended_at_s is not None and fate.ended_at_s >= WARM_UP_S
        ) / (given.seconds - WARM_UP_S)
    return {**found, "ratio": found["capped"] / found["uncapped"]}


def weights(given: Set) -> Row:
    """Two tenants of weights 1 and 3, both with more than their share, 130 % in all."""
    arrivals = merged(
        poisson(ONE, 0.35 * given.per_s, given.seconds, Random(given.seed)),
        poisson(THREE, 0.95 * given.per_s, given.seconds, Random(given.seed + 100)),
    )
    fates = simulate(arrivals, held(), until_s=given.seconds)
    had = {
        tenant.name: sum(
            fate.charge
            for fate in fates
            if fate.arrival.tenant is tenant and (fate.first_at_s or 0.0) >= WARM_UP_S
        )
        for tenant in (ONE, THREE)
    }
    return {**had, "ratio": had["three"] / had["one"]}


def flood(given: Set) -> Row:
    """One tenant at 30 %; another at 90 %, and at ten times its share of a half."""
    row = {}
    for name, load in (("at 120 %", 0.9), ("flooded", 5.0)):
        arrivals = merged(
            poisson(STEADY, 0.3 * given.per_s, given.seconds, Random(given.seed)),
            poisson(FLOOD, load * given.per_s, given.seconds, Random(given.seed + 100)),
        )
        fates = simulate(arrivals, held(), until_s=given.seconds)
        row[name] = quantile(ttfts(fates, STEADY, given.seconds), 0.9)
    return {**row, "ratio": row["flooded"] / row["at 120 %"]}


def batch(given: Set) -> Row:
    """Interactive requests at 50 %, alone and beside a batch that is there from the beginning.

    A p99 of one run is the luck of ten requests: several runs are put together.
    """
    found: dict[str, list[float]] = {"alone": [], "beside": []}
    answered = 0
    for part in range(POOLED):
        rng = Random(100 * given.seed + part)
        alone = list(poisson(SCREEN, 0.5 * given.per_s, given.seconds, rng))
        lines = [
            Arrival(
                0.0, BATCH, 16 + int(rng.lognormvariate(6.0, 0.7)), 1 + int(rng.expovariate(0.02))
            )
            for _ in range(given.lines)
        ]
        for name, arrivals in (("alone", alone), ("beside", merged(lines, alone))):
            fates = simulate(arrivals, held(), until_s=given.seconds)
            found[name] += ttfts(fates, SCREEN, given.seconds)
            answered += sum(
                fate.ended_at_s is not None for fate in fates if fate.arrival.tenant is BATCH
            )
    row = {
        f"{name} p{round(100 * share)}": quantile(values, share)
        for name, values in found.items()
        for share in (0.95, 0.99)
    }
    ratio = row["beside p99"] / row["alone p99"]
    return {**row, "p99 ratio": ratio, "lines/s": answered / given.seconds / POOLED}


def goodput(given: Set, load: float) -> Row:
    """Requests a second whose first token comes within the objective, in bursts."""
    arrivals = list(bursts(HOPEFUL, load * given.per_s, given.seconds, Random(given.seed)))
    row = {"load": load}
    for name, hold in (("immediate", held(None)), ("held", held())):
        fates = simulate(arrivals, hold, until_s=given.seconds)
        found = ttfts(fates, HOPEFUL, given.seconds)
        met = sum(each <= OBJECTIVE_S for each in found)
        row[name] = met / (given.seconds - 5.0 - WARM_UP_S)
    return row


def grouping(given: Set) -> Row:
    """Mean TTFT of families at about 110 %, with runs of eight and without."""
    arrivals = list(families(Tenant("t"), 0.35 * given.per_s, given.seconds, Random(given.seed)))
    row: dict[str, float] = {}
    for name, run in (("one by one", 1), ("in runs", 8)):
        fates = simulate(arrivals, held(run=run), until_s=given.seconds)
        found = [fate.ttft_s for fate in fates if fate.first_at_s is not None]
        row[name] = sum(found) / len(found)
        row[f"{name}, answered"] = len(found)
    return row
