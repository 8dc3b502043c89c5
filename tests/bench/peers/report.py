"""The tables of a comparison over HTTP, and the dated pair of files that keeps one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

from tests.bench.figures import Spread
from tests.bench.machine import new_name
from tests.bench.peers.figures import Figures, Ratio, Runs

_COLUMNS: Final[tuple[tuple[str, Callable[[Figures], float], int], ...]] = (
    ("mean s", lambda run: run.mean_s, 3),
    ("p50 s", lambda run: run.p50_s, 3),
    ("p90 s", lambda run: run.p90_s, 3),
    ("p99 s", lambda run: run.p99_s, 3),
    ("hit ratio", lambda run: run.hit_ratio, 3),
    ("ideal", lambda run: run.ideal_hit_ratio, 3),
    ("CPU ms / request", lambda run: run.cpu_ms_per_request, 2),
    ("CPU s / run", lambda run: run.cpu_s, 2),
    ("errors", lambda run: run.errors, 0),
)


@dataclass(frozen=True, slots=True)
class Record:
    """One comparison; `routing_cost_ms` is CPU beyond the same gateway's round robin."""

    date: str
    machine: Mapping[str, str]
    set_up: Mapping[str, object]
    orders: Sequence[Sequence[str]]
    """The subjects in the order they ran, seed by seed."""
    runs: Runs
    skipped: Mapping[str, str]
    ratios: Sequence[Ratio]
    routing_cost_ms: Mapping[str, Spread]


def table(record: Record) -> str:
    """A Markdown table, least mean first: medians over the seeds, range in brackets."""
    spreads = {
        name: [Spread.of([read(each) for each in seeds]) for _, read, _ in _COLUMNS]
        for name, seeds in record.runs.items()
    }
    order = sorted(spreads, key=lambda name: (spreads[name][0].median, name))
    rows = [["subject", *(heading for heading, _, _ in _COLUMNS)]]
    for name in order:
        digits = [digits for _, _, digits in _COLUMNS]
        rows.append([name, *map(cell, spreads[name], digits)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:]), ""])
    return "\n".join([lines[0], rule, *lines[1:]])


def cell(spread: Spread, digits: int) -> str:
    """A median, and the range where there is one."""
    if spread.low == spread.high:
        return f"{spread.median:.{digits}f}"
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}-{spread.high:.{digits}f})"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0])]
    cells += [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
    return "| " + " | ".join(cells) + " |"


def sentences(record: Record) -> list[str]:
    """Ratios with their verdicts, the cost of routing alone, and what to know to believe it all."""
    lines = []
    for ratio in record.ratios:
        said = f"{ratio.label}, headrace / {ratio.against}: {cell(ratio.spread, 3)}"
        if ratio.limit is not None:
            said = f"{'met' if ratio.is_met else 'MISSED'}: {said}, target {ratio.limit:.3f}"
        lines.append(said)
    lines += [
        f"CPU of routing alone, {name} less the same gateway's round robin: {cell(cost, 2)} ms "
        "a request"
        for name, cost in record.routing_cost_ms.items()
    ]
    for name, seeds in record.runs.items():
        faults = sorted({fault for each in seeds for fault in each.faults})
        lines += [f"{name}: errors: {'; '.join(faults)}"] if faults else []
        late_s = max(each.late_p99_s for each in seeds)
        if late_s > 0.02:
            lines.append(f"{name}: the load generator was late by {late_s:.3f} s at its p99")
    return lines + [f"{name}: skipped: {why}" for name, why in record.skipped.items()]


def write(record: Record, folder: Path) -> Path:
    """Write the dated pair of files and return the Markdown one."""
    stem = new_name(folder, f"{record.date}-routing-http-{record.machine['commit']}")
    folder.mkdir(parents=True, exist_ok=True)
    raw = orjson.dumps(asdict(record), option=orjson.OPT_INDENT_2)
    (folder / f"{stem}.json").write_bytes(raw + b"\n")
    page = folder / f"{stem}.md"
    page.write_text(_page(record, stem))
    return page


def _page(record: Record, stem: str) -> str:
    facts = {**record.machine, **record.set_up}
    parts = [
        f"# Routing over HTTP, {record.date}, commit {record.machine['commit']}",
        "Real gateways before the same simulated replicas, in real time. Medians over the seeds, "
        "range in brackets; time to first token at the client, in seconds; CPU of the gateway's "
        "whole process tree. README.md in this folder says how it is measured.",
        table(record),
        "\n".join(f"- {line}" for line in sentences(record)),
        "## Set-up\n\n" + "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        f"Every run: [{stem}.json]({stem}.json).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
