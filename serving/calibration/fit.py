"""From measured seconds to the parameters of the timing model.

Pure. Asked: rows of work, each with the seconds it took; answers the non-negative parameters with
the least sum of squared relative errors (an error of 1 ms matters in a step of 10 ms and not in one
of 1 s), found by cyclic coordinate descent, which for this convex problem ends at the optimum.

Invariants: no parameter is negative; at the end no small step along any one of them helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import msgspec

from serving.sim.timing import StepTiming, StepWork

SWEEPS: Final = 20_000
STILL: Final = 1e-12  # relative change in a sweep below which nothing moves any more


@dataclass(frozen=True, slots=True)
class Row:
    """Some work, and how long it took."""

    seconds: float
    work: StepWork
    steps: int = 1
    """The engine steps it took: a long prompt is computed in chunks."""
    with_arrival: bool = False
    """The seconds are those from a request to its first token, and not those of a step."""
    what: str = ""
    """For people."""


def fit(rows: Sequence[Row]) -> StepTiming:
    """The parameters. Raises ValueError without a row."""
    if not rows:
        raise ValueError("nothing was measured")
    matrix = [[each / row.seconds for each in _columns(row)] for row in rows]
    found = least_squares(matrix, [1.0] * len(rows))
    return StepTiming(**dict(zip(StepTiming.__struct_fields__, found, strict=True)))


def predicted_s(timing: StepTiming, row: Row) -> float:
    """What the model says of a row."""
    return _dot(_columns(row), msgspec.structs.astuple(timing))


def errors(timing: StepTiming, rows: Sequence[Row]) -> tuple[float, float]:
    """Median and largest relative error, of 1."""
    off = [abs(predicted_s(timing, row) / row.seconds - 1.0) for row in rows]
    return median(off), max(off)


def _columns(row: Row) -> list[float]:
    """What multiplies each parameter, in the order of StepTiming's fields."""
    work = row.work
    decodes = float(work.decode_sequences > 0)
    return [
        float(row.steps), float(work.prefill_tokens), work.prefill_token_pairs,
        decodes, float(work.decode_sequences), float(work.decode_context_tokens),
        float(row.with_arrival),
    ]  # fmt: skip


def least_squares(matrix: Sequence[Sequence[float]], target: Sequence[float]) -> list[float]:
    """The non-negative x with the least |matrix x - target|; columns of zeros get 0."""
    columns = list(zip(*matrix, strict=True))
    scale = [sum(value * value for value in column) ** 0.5 for column in columns]
    unit = [[v / s if s else 0.0 for v in column] for column, s in zip(columns, scale, strict=True)]
    gram = [[_dot(a, b) for b in unit] for a in unit]
    aim = [_dot(a, target) for a in unit]
    x = [0.0] * len(unit)
    for _ in range(SWEEPS):
        moved = 0.0
        for j, row in enumerate(gram):
            if row[j] > 0.0:
                better = max(0.0, x[j] + (aim[j] - _dot(row, x)) / row[j])
                moved, x[j] = max(moved, abs(better - x[j])), better
        if moved <= STILL * max(x):
            break
    return [value / s if s else 0.0 for value, s in zip(x, scale, strict=True)]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
