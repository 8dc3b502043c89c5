"""What is kept of runs: JSON files, from which reports are made and compared.

Pure. A record is a file; it holds one run, or several of one command (repeats, the steps of a
search). Nothing in it is text that was sent or came back.
"""

from __future__ import annotations

from typing import Final

import msgspec

from loadtest.figures import Distribution, Figures, Instant
from loadtest.scenario import Scenario

FORMAT: Final = "headrace-run/1"


class ReplicaFigures(msgspec.Struct, frozen=True):
    """What a replica's own metrics say of the run, start to end; None where they are silent."""

    name: str
    requests: int
    prompt_tokens: int
    output_tokens: int
    hit_ratio: float | None
    preemptions: int
    ttft_mean_s: float | None
    tpot_mean_s: float | None
    e2e_mean_s: float | None
    inflight: list[tuple[float, float]] = []
    """Running and waiting requests at instants since the start."""
    kv_usage: list[tuple[float, float]] = []


class GatewayFigures(msgspec.Struct, frozen=True):
    """What the gateway's own metrics say of the run, start to end."""

    requests: int
    retries: int
    ttft_mean_s: float | None
    duration_mean_s: float | None
    queue_mean_s: float | None
    hit_ratio: float | None


class GeneratorFigures(msgspec.Struct, frozen=True):
    """What generating the load cost, and how far off its marks may be."""

    processes: int
    cpu_share: float
    """Of one core, the busiest process, over the run."""
    cpu_us_per_event: float
    late_s: Distribution | None
    """How late it woke from short naps: the error of a mark."""
    lag_s: Distribution | None
    """How late requests were sent."""
    bottleneck: str | None
    """Why the run says nothing of the endpoint; None where it does."""


class Curves(msgspec.Struct, frozen=True):
    """The percentiles 0, 1, ... 100 of what was measured, in seconds; empty where nothing was."""

    ttft_s: list[float]
    itl_s: list[float]
    tpot_s: list[float]
    e2e_s: list[float]


class Run(msgspec.Struct, frozen=True):
    """One run."""

    label: str
    """Runs of one label are repeats of each other; of several, they are compared."""
    scenario_name: str
    scenario: Scenario
    target: str
    model: str
    started_at: str
    figures: Figures
    """Of the window."""
    everything: Figures
    """Of all requests, warm-up included: what the servers' own counts are compared with."""
    by_label: dict[str, Figures]
    curves: Curves
    over_time: list[Instant]
    replicas: list[ReplicaFigures]
    gateway: GatewayFigures | None
    generator: GeneratorFigures
    machine: dict[str, str]


class Found(msgspec.Struct, frozen=True):
    """What a saturation search came to."""

    highest_met_per_s: float | None
    lowest_missed_per_s: float | None


class Record(msgspec.Struct, frozen=True):
    """One file."""

    runs: list[Run]
    found: Found | None = None
    format: str = FORMAT


class RecordError(ValueError):
    """A file is no record of ours."""


def read_record(data: bytes) -> Record:
    """Raises RecordError."""
    try:
        record = msgspec.json.decode(data, type=Record)
    except msgspec.MsgspecError as error:
        raise RecordError(str(error)) from error
    if record.format != FORMAT:
        raise RecordError(f"format {record.format!r}, where {FORMAT!r} is known")
    return record


def write_record(record: Record) -> bytes:
    """JSON to be read by people too."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"
