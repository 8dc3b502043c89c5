"""What was measured, in words: a table to read, and a dated pair of files to keep.

The JSON file holds every round; the Markdown beside it holds the table, the verdicts and how to
run it again. Records are added, never edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

from tests.bench.figures import Figure, Spread, Verdict, when_calm
from tests.bench.machine import new_name

MIB: Final = 1 << 20
_HEADINGS: Final = (
    "subject",
    "us / request 2 KB",
    "us / chunk",
    "us / request 128 KB",
    "added p50 us",
    "added p99 us",
    "MB idle",
    "MB after",
)
_ORDER: Final = (Figure.UNARY, Figure.CHUNK, Figure.LARGE, Figure.ADDED_P50, Figure.ADDED_P99)


@dataclass(frozen=True, slots=True)
class SubjectRecord:
    """Everything one subject showed; `reads_per_event` below 1 means that chunks arrived merged."""

    name: str
    version: str
    idle_bytes: int
    loaded_bytes: int
    rounds: Sequence[Mapping[Figure, float]]
    slices: Mapping[Figure, Sequence[float]]
    reads_per_event: float
    asides_per_request: float

    def spreads(self) -> dict[Figure, Spread]:
        """Each figure over the rounds."""
        return {figure: Spread.of([each[figure] for each in self.rounds]) for figure in Figure}

    def medians(self) -> dict[Figure, float]:
        """Each figure, the median over the rounds."""
        return {figure: spread.median for figure, spread in self.spreads().items()}

    def calm(self) -> dict[Figure, float]:
        """Each cost when calm; latencies have none."""
        return {figure: when_calm(slices) for figure, slices in self.slices.items()}


@dataclass(frozen=True, slots=True)
class Record:
    """One run of the benchmark."""

    date: str
    machine: Mapping[str, str]
    set_up: Mapping[str, object]
    subjects: Sequence[SubjectRecord]
    skipped: Mapping[str, str]
    verdicts: Mapping[str, Sequence[Verdict]]  # by what they judge: when calm, over all


def table(record: Record) -> str:
    """A Markdown table that also reads well in a terminal: costs when calm, medians, ranges."""
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for subject in record.subjects:
        spreads, calm = subject.spreads(), subject.calm()
        cells = [_cell(calm.get(figure), spreads[figure]) for figure in _ORDER]
        memory = (f"{subject.idle_bytes / MIB:.0f}", f"{subject.loaded_bytes / MIB:.0f}")
        rows.append((subject.name, *cells, *memory))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [_line(row, widths) for row in rows]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(calm: float | None, spread: Spread) -> str:
    digits = 0 if spread.median >= 100 else 1
    over_all = f"{spread.median:.{digits}f} ({spread.low:.{digits}f}-{spread.high:.{digits}f})"
    return over_all if calm is None else f"{calm:.{0 if calm >= 100 else 1}f}; {over_all}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first = row[0].ljust(widths[0])
    rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return "| " + " | ".join([first, *rest]) + " |"


def verdict_lines(verdicts: Mapping[str, Sequence[Verdict]]) -> list[str]:
    """One sentence for each target and each way to judge it."""
    return [
        f"{way}, {'met' if verdict.is_met else 'MISSED'}: {_verdict_line(verdict)}"
        for way, judged in verdicts.items()
        for verdict in judged
    ]


def _verdict_line(verdict: Verdict) -> str:
    label, ours_us = verdict.target.label, verdict.ours_us
    if verdict.peer is None or verdict.target.peer_ratio is None:
        return f"{label}: {ours_us:.1f} us, limit {verdict.allowed_us:.0f} us"
    ratio = ours_us * verdict.target.peer_ratio / verdict.allowed_us
    allowed = f"target {verdict.target.peer_ratio}"
    return f"{label}: {ratio:.2f} of {verdict.peer} ({ours_us:.1f} us), {allowed}"


def notes(record: Record) -> list[str]:
    """What a reader must know to believe the table."""
    lines = [f"{name}: skipped: {why}" for name, why in record.skipped.items()]
    for subject in record.subjects:
        if subject.reads_per_event < 0.98:
            lines.append(
                f"{subject.name}: chunks arrived merged "
                f"({subject.reads_per_event:.3f} reads an event)"
            )
        if subject.asides_per_request >= 0.01:
            lines.append(
                f"{subject.name}: made {subject.asides_per_request:.1f} further calls on the "
                "replicas for each request"
            )
    return lines


def write(record: Record, folder: Path) -> Path:
    """Write the dated pair of files and return the Markdown one."""
    stem = new_name(folder, f"{record.date}-hotpath-{record.machine['commit']}")
    folder.mkdir(parents=True, exist_ok=True)
    raw = orjson.dumps(asdict(record), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
    (folder / f"{stem}.json").write_bytes(raw + b"\n")
    page = folder / f"{stem}.md"
    page.write_text(_page(record, stem))
    return page


def _page(record: Record, stem: str) -> str:
    facts = [f"- {name}: {value}" for name, value in record.machine.items()]
    set_up = [f"- {name}: {value}" for name, value in record.set_up.items()]
    versions = [f"- {subject.name}: {subject.version}" for subject in record.subjects]
    parts = [
        f"# Hot path, {record.date}, commit {record.machine['commit']}",
        "Costs: when calm; median over the rounds (their range). CPU is whole-process time on one "
        "core; README.md in this folder says how it is measured.",
        table(record),
        "\n".join(f"- {line}" for line in verdict_lines(record.verdicts) + notes(record)),
        "## Subjects\n\n" + "\n".join(versions),
        "## Machine\n\n" + "\n".join(facts),
        "## Set-up\n\n" + "\n".join(set_up),
        f"Every round: [{stem}.json]({stem}.json).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
