"""The roofline against what was measured on an H200, and balance by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.traces import Replayed
from serving.planner.hardware import Link, kind
from serving.planner.legal import Split
from serving.planner.memory import Budget
from serving.planner.model import PlanError
from serving.planner.predict import Demand, Lane, Links, Objectives, Roofline, paced
from serving.planner.predict import demand_of_trace as of_trace
from serving.planner.sources import read_model
from serving.sim.timing import StepTiming, StepWork

RECORD = Path(__file__).parents[4] / "docs/benchmarks/2026-11-26-h200-layers-65ee469.json"
NAMES = {
    "llama-3.1-8b": "Llama-3.1-8B-Instruct",
    "qwen3-32b": "Qwen3-32B",
    "llama-3.3-70b": "Llama-3.3-70B-Instruct",
}
ALONE = Links(Link.NVSWITCH, Link.NVSWITCH)
CALM = Objectives(10.0, 1.0)
APART = replace(kind("h200"), link_bandwidth=1e18)
"""What was measured were shards, each on its own: nothing passed between them."""


def measured() -> list[tuple[str, int, StepWork, float]]:
    """Model, TP, what the step computes and how long all its layers took."""
    found = []
    for result in json.loads(RECORD.read_text())["results"]:
        shape: dict[str, Any] = result["shape"]
        if shape["name"] in NAMES:
            outputs = {
                row["sequences"]: row["median_s"]
                for row in result["rows"]
                if row["kind"] == "output"
            }
            found += [
                (NAMES[shape["name"]], shape["tensor_parallel"], *step)
                for step in _steps(result["rows"], shape["layers"], outputs)
            ]
    return found


def _steps(
    rows: list[dict[str, Any]], layers: int, outputs: dict[int, float]
) -> Iterator[tuple[StepWork, float]]:
    for row in rows:
        if row["kind"] == "decode" and row["context"] == 2048 and row["sequences"] in outputs:
            sequences = row["sequences"]
            work = StepWork(decode_sequences=sequences, decode_context_tokens=2048 * sequences)
            yield work, row["median_s"] * layers + outputs[sequences]
        if row["kind"] == "prefill" and row["tokens"] in (2048, 8192):
            tokens, cached = row["tokens"], row["context"]
            yield StepWork(tokens, tokens * (cached + tokens / 2)), row["median_s"] * layers


def test_the_roofline_is_near_what_was_measured_on_an_h200() -> None:
    steps = measured()
    assert len(steps) > 40
    ratios = []
    for name, tensor, work, seconds in steps:
        links = Links(Link.NONE, Link.NONE)
        predicted = Roofline(read_model(name), Split(tensor), APART, links).seconds(work)
        ratios.append(predicted / seconds)
    ratios.sort()
    assert 0.95 < ratios[len(ratios) // 2] < 1.05
    assert ratios[0] > 0.8
    assert ratios[-1] < 1.3


def lane(timing: StepTiming, most: float = 100.0) -> Lane:
    return Lane(timing, 1, most, Budget(max_num_batched_tokens=1000))


def test_balance_by_hand() -> None:
    # Steps of 10 ms whatever is in them: 20 sequences make 2000 tokens a second, 20 requests.
    flat = StepTiming(0.01, 0, 0, 0, 0, 0)
    demand = Demand(None, 500, 100, CALM, 500, 600)
    seen = lane(flat).at(20, demand)
    assert seen.tpot_s == pytest.approx(0.01)
    assert seen.rate == pytest.approx(20)
    # Nothing waits, since prompts cost nothing: half a step, then one of its own.
    assert seen.ttft_s == pytest.approx(0.015)


def test_prompts_wait_for_one_another() -> None:
    # 10 sequences: steps of 10 + 10 ms, 5 requests a second, each 100 ms of prefill: half busy.
    timing = StepTiming(0.01, 0.001, 0, 0, 0, 0)
    seen = lane(timing).at(10, Demand(None, 100, 100, CALM, 100, 200))
    assert seen.rate == pytest.approx(5)
    waits, residue, own = 0.5 * 0.11 / (2 * 0.5), 0.02 / 2, 0.11
    assert seen.ttft_s == pytest.approx(waits + residue + own)


def test_a_long_prompt_takes_a_step_for_each_chunk() -> None:
    flat = StepTiming(0.01, 0, 0, 0, 0, 0)
    demand = Demand(None, 500, 100, CALM, 3500, 3600)
    assert lane(flat).at(1e-6, demand).ttft_s == pytest.approx(0.005 + 0.04, rel=1e-3)


def test_capacity_is_where_an_objective_or_the_cache_ends_it() -> None:
    slope = StepTiming(0.01, 0, 0, 0, 0.001, 0)
    demand = Demand(None, 100, 100, Objectives(10.0, 0.05), 100, 200)
    best = lane(slope).capacity(demand)
    assert best is not None
    assert best.sequences == pytest.approx(40, rel=1e-3)
    full = lane(slope, most=10).capacity(demand)
    assert full is not None
    assert full.sequences == pytest.approx(10)
    strict = Demand(None, 100, 100, Objectives(10.0, 0.005), 100, 200)
    assert lane(slope).capacity(strict) is None


def test_a_rate_below_capacity_is_met_exactly() -> None:
    slope = StepTiming(0.01, 1e-5, 0, 0, 0.001, 0)
    demand = Demand(None, 100, 100, CALM, 100, 200)
    assert lane(slope).at_rate(3.0, demand).rate == pytest.approx(3.0, rel=1e-3)


def test_prefill_that_cannot_keep_up_serves_nobody() -> None:
    dear = StepTiming(0.001, 0.01, 0, 0, 0, 0)
    demand = Demand(None, 100, 1, Objectives(1e9, 1e9), 100, 101)
    best = lane(dear).capacity(demand)
    assert best is not None
    assert best.rate * 1.0 < 1.0


def test_a_trace_is_its_mean_and_its_long_prompts() -> None:
    arrivals = [Replayed(float(n), 100 if n < 95 else 1000, 10) for n in range(101)]
    demand = of_trace(arrivals, CALM)
    assert demand.rate == pytest.approx(1.0)
    assert demand.long_prompt == 1000
    assert demand.longest == 1010
    with pytest.raises(PlanError, match="no rate"):
        of_trace([Replayed(1.0, 1, 1), Replayed(1.0, 1, 1)], CALM)


def test_pipeline_stages_and_ranks_are_lanes() -> None:
    model = read_model("Llama-3.1-8B-Instruct")
    one = Roofline(model, Split(), kind("h200"), ALONE).seconds(StepWork(decode_sequences=1))
    two = Roofline(model, Split(1, 2), kind("h200"), ALONE).seconds(StepWork(decode_sequences=1))
    assert two > one


def test_a_known_prefill_rate_brings_all_steps_to_it() -> None:
    model, demand = read_model("Llama-3.1-8B-Instruct"), Demand(None, 2000, 100, CALM, 2000, 2100)
    guessed = Roofline(model, Split(), kind("h200"), ALONE)
    known = paced(guessed, 20_000, demand)
    assert known.seconds(StepWork(2000, 2000**2 / 2)) == pytest.approx(0.1)
    decode = StepWork(decode_sequences=8, decode_context_tokens=8000)
    assert known.seconds(decode) == pytest.approx(known.factor * guessed.seconds(decode))
