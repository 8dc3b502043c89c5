"""The table that people read: the fleet chosen, what it is expected to do, and why others lost."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from serving.planner.hardware import GIB, Kind
from serving.planner.legal import is_known
from serving.planner.model import Model
from serving.planner.search import Candidate, Plan, Pool
from serving.planner.write import where

SHOWN = 12


def show(plan: Plan, console: Console) -> None:
    """Print it."""
    console.print(_title(plan), soft_wrap=True, highlight=False)
    console.print(_chosen(plan))
    for pool in plan.pools:
        for number, placement in enumerate(pool.placements[:SHOWN]):
            joined = placement.links
            console.print(
                f"  {pool.candidate.kind.name} replica {number}: {where(placement)}"
                + (f" ({joined.inner.label})" if pool.candidate.split.tensor > 1 else ""),
                soft_wrap=True,
                highlight=False,
            )
        if pool.replicas > SHOWN:
            console.print(f"  ... and {pool.replicas - SHOWN} more (--write json FILE has all)")
    others = _others(plan)
    if others.row_count:
        console.print(others)


def _title(plan: Plan) -> str:
    model, demand = plan.model, plan.demand
    rate = "all they can serve" if demand.rate is None else f"{demand.rate:g} requests/s"
    return (
        f"{model.name}: {model.parameters / 1e9:.1f}B parameters, "
        f"{model.active_parameters / 1e9:.1f}B active, {_weights(model)}, "
        f"context {plan.budget.max_model_len}\n"
        f"demand: {rate} of {demand.prompt:.0f} + {demand.output:.0f} tokens, "
        f"TTFT <= {demand.objectives.ttft_s:g} s, TPOT <= {demand.objectives.tpot_s * 1000:g} ms\n"
        f"plan: {plan.gpus} GPUs, {plan.rate:.2f} requests/s within the objectives, "
        f"{plan.price:.2f} an hour"
    )


def _weights(model: Model) -> str:
    """How they are written; and what keeps us from knowing more of the model."""
    bits = f"{model.quantisation.bits:.3g}-bit weights"
    if not is_known(model):
        bits += f", {model.architecture} not known to vLLM 0.32 (so PP 1)"
    return bits


def _chosen(plan: Plan) -> Table:
    table = Table(title="Chosen", title_justify="left")
    for name in ("GPU", "split", "replicas", "GPUs"):
        table.add_column(name, no_wrap=True)
    for name in (
        "weights GiB", "KV tokens", "TTFT s", "TPOT ms", "req/s each", "req/s/GPU", "price/M out",
        "basis",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for pool in plan.pools:
        table.add_row(*_row(plan, pool))
    return table


def _row(plan: Plan, pool: Pool) -> list[str]:
    it, expected = pool.candidate, plan.prediction(pool)
    used = it.footprint
    split = it.split
    tokens = 0.0
    if used is not None:
        tokens = used.cache / max(used.longest, 1) * plan.budget.max_model_len * split.data
    return [
        it.kind.name, str(split), str(pool.replicas), str(pool.gpus),
        f"{used.weights / GIB:.1f}" if used else "", f"{tokens:,.0f}",
        f"{expected.ttft_s:.2f}", f"{expected.tpot_s * 1000:.1f}", f"{it.rates[0]:.2f}",
        f"{it.rate_per_gpu:.3f}", f"{price_per_million(it, plan):.2f}",
        it.basis,
    ]  # fmt: skip


def price_per_million(candidate: Candidate, plan: Plan) -> float:
    """Of output tokens, at the greatest rate within the objectives."""
    tokens_an_hour = candidate.rates[0] * plan.demand.output * 3600
    return candidate.price / tokens_an_hour * 1e6


def _others(plan: Plan) -> Table:
    table = Table(title="Why not", title_justify="left")
    table.add_column("GPU", no_wrap=True)
    table.add_column("split")
    table.add_column("because")
    for kind in dict.fromkeys(candidate.kind for candidate in plan.candidates):
        for row in reasons(plan, kind):
            table.add_row(kind.name, *row)
    return table


def reasons(plan: Plan, kind: Kind) -> list[tuple[str, str]]:
    """Splits of one kind that were not chosen, and why: like reasons together."""
    chosen = {(pool.candidate.kind, pool.candidate.split) for pool in plan.pools}
    mine = [it for it in plan.candidates if it.kind == kind and (kind, it.split) not in chosen]
    able = sorted((it for it in mine if it.rates), key=lambda it: -it.rate_per_gpu / kind.price)
    rows = [(str(it.split), _lost(plan, it)) for it in able[:SHOWN]]
    if len(able) > SHOWN:
        rows.append((f"{len(able) - SHOWN} more", "serve still less for the price"))
    grouped: dict[str, list[str]] = {}
    for it in mine:
        if not it.rates:
            grouped.setdefault(it.verdict, []).append(str(it.split))
    rows += [(_some(splits), verdict) for verdict, splits in list(grouped.items())[:SHOWN]]
    if len(grouped) > SHOWN:
        rows.append((f"{sum(map(len, list(grouped.values())[SHOWN:]))} more", "see --write json"))
    return rows


def _some(splits: list[str]) -> str:
    return ", ".join(splits[:4]) + (f" and {len(splits) - 4} more" if len(splits) > 4 else "")


def _lost(plan: Plan, it: Candidate) -> str:
    """Why a split that can serve was not chosen."""
    each = f"{it.rate_per_gpu:.3f} requests/s a GPU"
    rate = plan.demand.rate
    if rate is None:
        return f"{each}: {sum(it.rates):.2f} in all, against {plan.rate:.2f}"
    if sum(it.rates) < rate:
        return f"{each}: {sum(it.rates):.2f} in all, which is not enough"
    needed = math.ceil(rate / it.rates[0])
    price = needed * it.price
    if math.isclose(price, plan.price):
        return f"{each}: costs the same, and is no better"
    return f"{each}: {needed * it.split.gpus} GPUs, {price / plan.price:.2f} times the price"
