"""Every legal split on every kind of GPU there is, scored; and the cheapest fleet that serves.

Each kind of GPU gets at most one split, in as many replicas as are needed: that is one Deployment,
and the gateway sees to it that replicas of different kinds share the load. A fleet's rate is the
sum of its replicas' greatest rates within the objectives. The cheapest fleet that serves the demand
wins; at equal cost, that of fewer GPUs, then of the greater rate. Without a rate the fleet that
serves most wins.

Only fleets that are on the frontier of cost and rate are kept while kinds are combined, which
loses none that could win: exhaustive search agrees (tests).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from typing import NamedTuple

from serving.planner.hardware import GIB, Gpu, Inventory, Kind
from serving.planner.legal import Refusal, Split, refusals
from serving.planner.memory import Budget, Footprint, footprint, sequences
from serving.planner.model import Model, PlanError
from serving.planner.place import Placement, place
from serving.planner.predict import Demand, Lane, Links, Prediction, Roofline, Timing, paced
from serving.sim.timing import StepTiming

PIPELINES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
DATAS = (1, 2, 4, 8, 16, 32, 64)

Measured = Mapping[tuple[str, str], StepTiming]
"""Measured step times by kind of GPU and split, as they are written: ("h200", "TP2")."""


@dataclass(frozen=True)
class Request:
    """What is to be planned: `only` this split, where one is given."""

    demand: Demand
    budget: Budget
    measured: Measured = field(default_factory=dict)
    prefill_rates: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Prompt tokens a second, known as `measured` is."""
    only: Split | None = None


@dataclass(frozen=True)
class Candidate:
    """One split on one kind of GPU, and what became of it.

    `placements` are all that find room, the fastest first, `lanes` how fast each is and `rates`
    what each serves within the objectives. `verdict` is why it is out; empty: it can serve.
    """

    kind: Kind
    split: Split
    verdict: str = ""
    refused: tuple[Refusal, ...] = ()
    footprint: Footprint | None = None
    lanes: tuple[Lane, ...] = ()
    placements: tuple[Placement, ...] = ()
    rates: tuple[float, ...] = ()
    basis: str = "roofline"
    """What the step times are from: it, a profile, or it brought to a known prefill rate."""

    @property
    def price(self) -> float:
        """Of one replica, per hour."""
        return self.split.gpus * self.kind.price

    @property
    def rate_per_gpu(self) -> float:
        """Requests a second within the objectives: its goodput."""
        return max(self.rates, default=0.0) / self.split.gpus


@dataclass(frozen=True)
class Pool:
    """So many replicas of one candidate."""

    candidate: Candidate
    replicas: int

    @property
    def rate(self) -> float:
        """All that it serves within the objectives."""
        return sum(self.candidate.rates[: self.replicas])

    @property
    def price(self) -> float:
        """Per hour."""
        return self.candidate.price * self.replicas

    @property
    def gpus(self) -> int:
        """How many it takes."""
        return self.candidate.split.gpus * self.replicas

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Where its replicas are."""
        return self.candidate.placements[: self.replicas]


@dataclass(frozen=True)
class Plan:
    """What to run, what it is expected to do, and all that was considered."""

    model: Model
    demand: Demand
    budget: Budget
    pools: tuple[Pool, ...]
    candidates: tuple[Candidate, ...]

    @property
    def rate(self) -> float:
        """All that it serves within the objectives."""
        return sum(pool.rate for pool in self.pools)

    @property
    def price(self) -> float:
        """Per hour."""
        return sum(pool.price for pool in self.pools)

    @property
    def gpus(self) -> int:
        """How many it takes."""
        return sum(pool.gpus for pool in self.pools)

    def prediction(self, pool: Pool) -> Prediction:
        """The first replica of a pool at its share of the demand."""
        full = pool.candidate.rates[0]
        wanted = self.rate if self.demand.rate is None else self.demand.rate
        share = min(full, full * wanted / self.rate)
        return pool.candidate.lanes[0].at_rate(share, self.demand)


def splits(model: Model, gpus: int, gpus_per_node: int) -> Iterator[Split]:
    """Every split of up to so many GPUs, legal or not, that is worth a line."""
    for tensor in range(1, gpus_per_node + 1):
        for pipeline in PIPELINES:
            for data in DATAS if model.experts else (1,):
                if tensor * pipeline * data > gpus:
                    break
                yield Split(tensor, pipeline, data)
                if model.experts and tensor * data > 1:
                    yield Split(tensor, pipeline, data, experts=True)


def search(model: Model, inventory: Inventory, request: Request) -> Plan:
    """The cheapest fleet that serves the demand. Raises PlanError where there is none."""
    demand = request.demand
    if demand.longest > model.max_len:
        raise PlanError(
            f"{model.name} takes {model.max_len} tokens, and {demand.longest} are asked for"
        )
    here = {kind.name for kind in inventory.kinds}
    for name, split in (*request.measured, *request.prefill_rates):
        if name not in here:
            raise PlanError(f"{name}/{split} was measured, but no GPU is a {name}")
    found: list[Candidate] = []
    for kind in inventory.kinds:
        found += _candidates(model, inventory.of_kind(kind), request)
    pools = _cheapest(found, demand.rate)
    if pools is None:
        raise PlanError(_impossible(model, found, demand))
    return Plan(model, demand, request.budget, pools, tuple(found))


def _candidates(model: Model, gpus: Sequence[Gpu], request: Request) -> Iterator[Candidate]:
    kind = gpus[0].kind
    per_node = max(Counter(gpu.node for gpu in gpus).values())

    @cache
    def placed(tensor: int, groups: int) -> list[Placement]:
        return place(gpus, tensor, groups)

    every = splits(model, 1 if kind.is_slice else len(gpus), per_node)
    for split in every if request.only is None else (request.only,):
        broken = refusals(model, split, kind, per_node)
        if broken:
            yield Candidate(kind, split, str(broken[0]), tuple(broken))
            continue
        used = footprint(model, split, kind, request.budget)
        if not used.fits:
            yield Candidate(kind, split, _no_room(used, request.budget), footprint=used)
            continue
        able = Candidate(kind, split, footprint=used)
        yield _rated(model, able, placed(split.tensor, split.pipeline * split.data), request)


def _no_room(used: Footprint, budget: Budget) -> str:
    if used.cache <= 0:
        over = (used.weights + used.activations + used.overhead) / GIB
        return f"needs {over:.1f} GiB a GPU before any KV cache"
    return (
        f"{used.cache / GIB:.1f} GiB are left for the KV cache, and a sequence of "
        f"{budget.max_model_len} tokens takes {used.longest / GIB:.1f}"
    )


def _rated(
    model: Model,
    candidate: Candidate,
    placements: Sequence[Placement],
    request: Request,
) -> Candidate:
    demand = request.demand
    kind, split = candidate.kind, candidate.split
    if not placements:
        return replace(candidate, verdict=f"there is no room for {split.gpus} GPUs so split")
    rates: dict[Links, float] = {}
    lanes: dict[Links, Lane] = {}
    for each in {placement.links for placement in placements}:
        lanes[each] = _lane(model, candidate, request, each)
        best = lanes[each].capacity(demand)
        rates[each] = best.rate if best else 0.0
    ranked = sorted(placements, key=lambda each: -rates[each.links])
    ranked = [each for each in ranked if rates[each.links] > 0]
    if not ranked:
        return replace(candidate, verdict=_too_slow(lanes[placements[0].links], demand))
    return replace(
        candidate,
        lanes=tuple(lanes[each.links] for each in ranked),
        placements=tuple(ranked),
        rates=tuple(rates[each.links] for each in ranked),
        basis=_basis(kind, split, request),
    )


def _lane(model: Model, candidate: Candidate, request: Request, links: Links) -> Lane:
    demand, budget = request.demand, request.budget
    kind, split = candidate.kind, candidate.split
    name = (kind.name, str(split))
    measured = request.measured.get(name)
    timing: Timing = measured or Roofline(model, split, kind, links, budget.kv_bits)
    if measured is None and name in request.prefill_rates:
        timing = paced(timing, request.prefill_rates[name], demand)
    held = sequences(model, split, kind, budget, demand.prompt + demand.output / 2)
    most = min(held, float(budget.max_num_seqs)) / split.pipeline
    arrival_s = measured.arrival_s if measured else 0.0
    return Lane(timing, split.pipeline * split.data, most, budget, arrival_s)


def _basis(kind: Kind, split: Split, request: Request) -> str:
    name = (kind.name, str(split))
    if name in request.measured:
        return "profile"
    return "prefill rate" if name in request.prefill_rates else "roofline"


def _too_slow(lane: Lane, demand: Demand) -> str:
    alone = lane.at_rate(0.0, demand)
    if alone.tpot_s > demand.objectives.tpot_s:
        return f"TPOT is {alone.tpot_s * 1000:.0f} ms with nothing else running"
    if alone.ttft_s > demand.objectives.ttft_s:
        return f"TTFT is {alone.ttft_s:.2f} s with nothing else running"
    return "the KV cache holds not one request of this demand"


class _Fleet(NamedTuple):
    """Ordered by what is better: cheaper, fewer GPUs, greater rate."""

    price: float
    gpus: int
    lost_rate: float
    pools: tuple[tuple[int, int], ...]
    """By the candidate's place in the list, and replicas."""


def _cheapest(found: Sequence[Candidate], rate: float | None) -> tuple[Pool, ...] | None:
    enough_rate = math.inf if rate is None else rate
    fleets = [_Fleet(0.0, 0, 0.0, ())]
    for kind in dict.fromkeys(candidate.kind.name for candidate in found):
        options = [
            _Fleet(candidate.price * n, candidate.split.gpus * n, -total, ((place, n),))
            for place, candidate in enumerate(found)
            if candidate.kind.name == kind
            for n, total in enumerate(accumulate(candidate.rates), 1)
        ]
        options = _frontier(options, enough_rate)
        if rate is None:  # all that can be had: the most of each kind, and no choice between
            options = options[-1:]
        fleets = _frontier([*fleets, *_with_each(fleets, options, enough_rate)], enough_rate)
    best = fleets[-1]
    if not best.pools or (rate is not None and -best.lost_rate < rate):
        return None
    return tuple(Pool(found[place], n) for place, n in best.pools)


def _with_each(fleets: list[_Fleet], options: list[_Fleet], enough: float) -> Iterator[_Fleet]:
    """Each fleet with each option, up to the first that serves enough: dearer ones need not be."""
    for fleet in fleets:
        for option in options:
            joined = _both(fleet, option)
            yield joined
            if -joined.lost_rate >= enough:
                break


def _both(a: _Fleet, b: _Fleet) -> _Fleet:
    return _Fleet(a.price + b.price, a.gpus + b.gpus, a.lost_rate + b.lost_rate, a.pools + b.pools)


def _frontier(fleets: list[_Fleet], enough: float) -> list[_Fleet]:
    """Those that nothing cheaper out-serves, up to the first that serves enough."""
    kept: list[_Fleet] = []
    for each in sorted(fleets):
        if not kept or each.lost_rate < kept[-1].lost_rate:
            kept.append(each)
            if -each.lost_rate >= enough:
                break
    return kept


def _impossible(model: Model, found: Sequence[Candidate], demand: Demand) -> str:
    able = [candidate for candidate in found if candidate.rates]
    if able:
        pools = _cheapest(found, None) or ()
        most = sum(pool.rate for pool in pools)
        return (
            f"{model.name}: {demand.rate:g} requests/s within the objectives are more than these "
            f"GPUs serve, which is {most:.2f}"
        )
    legal = [candidate for candidate in found if not candidate.refused]
    nearest = max(legal, key=_hope) if legal else found[0]
    return (
        f"{model.name} cannot be served on these GPUs; nearest is {nearest.split} on "
        f"{nearest.kind.name}: {nearest.verdict}"
    )


def _hope(candidate: Candidate) -> tuple[bool, int]:
    """How near it came: it fitted, or it lacked least."""
    used = candidate.footprint
    return (used is not None and used.fits, used.cache if used else 0)
