"""Points, the fit, and what an engine says of itself: as values."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.calibration.engine import CalibratedEngine, EngineError
from serving.calibration.fit import Row, errors, fit, least_squares, predicted_s
from serving.calibration.points import ROOM, Limits, Point, plan
from serving.sim.timing import StepTiming, StepWork
from serving.vllm_facts import Facts, read_facts

TRUE = StepTiming(
    base_s=0.01,
    prefill_token_s=2e-4,
    prefill_token_pair_s=1e-7,
    decode_s=0.005,
    decode_sequence_s=1e-3,
    decode_context_token_s=1e-6,
    arrival_s=0.004,
)

limits = st.builds(
    Limits,
    max_model_len=st.integers(2, 200_000),
    block_size=st.sampled_from([1, 16, 32, 128]),
    capacity_tokens=st.integers(1, 2_000_000),
    max_num_seqs=st.integers(1, 1024),
    max_num_batched_tokens=st.integers(1, 16_384),
)


def _row(point: Point, timing: StepTiming) -> Row:
    """What a perfect measurement of an engine that is as `timing` says would give."""
    prompt, cached = point.uncached, point.cached
    work = StepWork(
        prompt, prompt * (cached + prompt / 2), point.batch, point.batch * point.context
    )
    alone = prompt > 0 and not point.batch and not point.behind
    blank = Row(1.0, work, with_arrival=alone, what=str(point))
    return Row(predicted_s(timing, blank), work, with_arrival=alone, what=str(point))


def test_the_points_pin_every_parameter_down() -> None:
    rows = [_row(point, TRUE) for point in plan(Limits(2048, 32, 46_592, 128, 2048))]
    found = fit(rows)
    for name, value in msgspec.structs.asdict(TRUE).items():
        assert getattr(found, name) == pytest.approx(value, rel=0.02), name
    assert errors(found, rows)[1] < 1e-3


@given(limits)
def test_every_point_fits_and_none_comes_twice(limits: Limits) -> None:
    points = plan(limits)
    assert len(points) == len(set(points))
    for point in points:
        assert point.uncached >= 0
        assert point.cached + point.uncached <= limits.max_model_len
        assert point.batch + bool(point.batch and point.uncached) <= limits.max_num_seqs
        assert point.behind <= limits.max_num_batched_tokens
        if point.batch:
            assert point.batch + point.uncached <= limits.max_num_batched_tokens
        if point.batch:
            assert point.context + ROOM <= limits.max_model_len
            assert point.batch * point.context + point.uncached <= limits.capacity_tokens
        assert str(point)


nonnegative = st.floats(0.0, 10.0)


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 12))
def test_no_step_along_any_parameter_makes_the_fit_better(
    seed: int, columns: int, rows: int
) -> None:
    rng = Random(seed)
    matrix = [[rng.uniform(-1, 1) for _ in range(columns)] for _ in range(rows)]
    target = [rng.uniform(-1, 1) for _ in range(rows)]
    found = least_squares(matrix, target)

    def loss(x: list[float]) -> float:
        return sum(
            (sum(a * b for a, b in zip(row, x, strict=True)) - t) ** 2
            for row, t in zip(matrix, target, strict=True)
        )

    assert min(found) >= 0.0
    for index in range(columns):
        for step in (-1e-3, 1e-3):
            moved = [*found]
            moved[index] = max(0.0, moved[index] + step)
            assert loss(found) <= loss(moved) + 1e-9


def test_what_was_never_measured_costs_nothing() -> None:
    assert fit([Row(0.1, StepWork(10, 50.0))]).decode_sequence_s == 0.0
    with pytest.raises(ValueError, match="nothing was measured"):
        fit([])


LISTING = b'{"data": [{"id": "m", "max_model_len": 2048}]}'
METRICS = b"""\
vllm:cache_config_info{block_size="32",enable="x",num_gpu_blocks="1456"} 1.0
vllm:num_requests_running{engine="0"} 4.0
"""


def test_an_engines_limits_are_read() -> None:
    assert read_facts(LISTING, METRICS) == Facts("m", 2048, 32, 1456)


@given(st.binary(), st.binary())
def test_anything_else_is_refused(listing: bytes, metrics: bytes) -> None:
    for each in (listing, LISTING):
        with pytest.raises(ValueError, match=r"."):
            read_facts(each, metrics)


@pytest.mark.parametrize("url", ["https://a:1", "http://", "ftp://a"])
def test_what_is_no_url_of_an_engine_is_said(url: str) -> None:
    with pytest.raises(EngineError, match="expected http"):
        CalibratedEngine(url)
