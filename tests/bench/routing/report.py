"""The tables of a run of the benchmark, and the dated pair of files that keeps one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

from tests.bench.figures import Spread
from tests.bench.machine import new_name
from tests.bench.routing.figures import Figure

_COLUMNS: Final = {
    Figure.MEAN: ("mean s", 2),
    Figure.P50: ("p50 s", 2),
    Figure.P90: ("p90 s", 2),
    Figure.P99: ("p99 s", 2),
    Figure.DURATION: ("whole s", 2),
    Figure.HIT: ("hit ratio", 3),
    Figure.IDEAL: ("ideal", 3),
    Figure.LOAD_CV: ("load CV", 3),
}


@dataclass(frozen=True, slots=True)
class WorkloadRecord:
    """One workload: for each policy, the figures of every seed."""

    name: str
    about: str
    policies: Mapping[str, Sequence[Mapping[Figure, float]]]


@dataclass(frozen=True, slots=True)
class Record:
    """One run of the benchmark."""

    date: str
    machine: Mapping[str, str]
    set_up: Mapping[str, object]
    workloads: Sequence[WorkloadRecord]
    skipped: Mapping[str, str]


def table(record: WorkloadRecord) -> str:
    """A Markdown table, least mean first: medians over the seeds, range in brackets."""
    spreads = {
        name: {figure: Spread.of([each[figure] for each in seeds]) for figure in _COLUMNS}
        for name, seeds in record.policies.items()
    }
    order = sorted(spreads, key=lambda name: (spreads[name][Figure.MEAN].median, name))
    rows = [["policy", *(heading for heading, _ in _COLUMNS.values())]]
    rows += [
        [name, *(_cell(spreads[name][each], digits) for each, (_, digits) in _COLUMNS.items())]
        for name in order
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:]), ""])
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(spread: Spread, digits: int) -> str:
    if spread.low == spread.high:
        return f"{spread.median:.{digits}f}"
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}-{spread.high:.{digits}f})"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return "| " + " | ".join(cells) + " |"


def write(record: Record, folder: Path) -> Path:
    """Write the dated pair of files and return the Markdown one."""
    stem = new_name(folder, f"{record.date}-routing-{record.machine['commit']}")
    folder.mkdir(parents=True, exist_ok=True)
    raw = orjson.dumps(asdict(record), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
    (folder / f"{stem}.json").write_bytes(raw + b"\n")
    page = folder / f"{stem}.md"
    page.write_text(_page(record, stem))
    return page


def _page(record: Record, stem: str) -> str:
    facts = {**record.machine, **record.set_up}
    parts = [
        f"# Routing in virtual time, {record.date}, commit {record.machine['commit']}",
        "Medians over the seeds, range in brackets; TTFT in seconds. A model of replicas, not an "
        "engine: tests/bench/routing says what it leaves out.",
        *(f"## {each.name}: {each.about}\n\n{table(each)}" for each in record.workloads),
        "\n".join(f"- {name}: skipped: {why}" for name, why in record.skipped.items()),
        "## Set-up\n\n" + "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        f"Every seed: [{stem}.json]({stem}.json).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
