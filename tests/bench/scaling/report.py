"""What a run came to, the tables, and the dated pair of files that keeps them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from tests.bench.figures import Spread
from tests.bench.machine import new_name
from tests.bench.scaling.world import Run

OBJECTIVE_S = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """`attainment` is the part of requests that had their first token within OBJECTIVE_S beyond
    what their prompt takes alone, uncached; `turns` how often the number of replicas wanted went
    down after up, or up after down."""

    attainment: float
    replica_hours: float
    turns: int
    p99_wait_s: float

    @classmethod
    def of(cls, run: Run, judged_from_s: float) -> Outcome:
        """Of requests from an instant on, and of all replicas."""
        waits = sorted(each.wait_s for each in run.served if each.arrival.at_s >= judged_from_s)
        return cls(
            attainment=sum(wait <= OBJECTIVE_S for wait in waits) / len(waits),
            replica_hours=run.replica_s / 3600.0,
            turns=_turns([count for _, count in run.counts]),
            p99_wait_s=waits[len(waits) * 99 // 100],
        )


def _turns(counts: Sequence[int]) -> int:
    steps = [after - before for before, after in itertools.pairwise(counts)]
    signs = [step > 0 for step in steps if step]
    return sum(one is not other for one, other in itertools.pairwise(signs))


@dataclass(frozen=True, slots=True)
class Row:
    """One rule with one threshold on one workload, seed by seed."""

    workload: str
    rule: str
    target: float
    outcomes: Sequence[Outcome]


@dataclass(frozen=True, slots=True)
class Record:
    """One run of the benchmark."""

    date: str
    machine: Mapping[str, str]
    set_up: Mapping[str, object]
    about: Mapping[str, str]
    tried: Sequence[Row]  # on the seed that thresholds were found on
    rows: Sequence[Row]  # on others


def table(rows: Sequence[Row]) -> str:
    """Of one workload, fewest replica-hours first: medians over the seeds, range in brackets."""
    lines = [
        "| rule | target | attainment | replica-hours | turns | p99 wait s |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(rows, key=_median):
        some = row.outcomes
        cells = [
            row.rule,
            f"{row.target:g}",
            _cell([each.attainment for each in some], 3),
            _cell([each.replica_hours for each in some], 2),
            _cell([float(each.turns) for each in some], 0),
            _cell([each.p99_wait_s for each in some], 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(row: Row) -> float:
    return Spread.of([each.replica_hours for each in row.outcomes]).median


def _cell(values: Sequence[float], digits: int) -> str:
    spread = Spread.of(values)
    if spread.low == spread.high:
        return f"{spread.median:.{digits}f}"
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}-{spread.high:.{digits}f})"


def page(record: Record) -> str:
    """The whole page."""
    facts = {**record.machine, **record.set_up}
    parts = [
        f"# Scaling in a closed loop, in virtual time, {record.date}, commit "
        f"{record.machine['commit']}",
        f"Attainment: first token within {OBJECTIVE_S:g} s beyond what the prompt takes alone on "
        "an idle replica with an empty cache. Medians over the seeds, range in brackets. Each rule "
        "but `n_target` has the threshold that was best for the workload on a seed of its own, "
        "below (tests/bench/scaling/rules.py says how). A model of replicas, KEDA and the "
        "autoscaler: tests/bench/scaling says what it leaves out.",
    ]
    for name, about in record.about.items():
        rows = [row for row in record.rows if row.workload == name]
        parts.append(f"## {name}\n\n{about}\n\n{table(rows)}")
    parts.append("## What thresholds were found on\n\n" + _tried(record.tried))
    parts.append("## Set-up\n\n" + "\n".join(f"- {key}: {value}" for key, value in facts.items()))
    return "\n\n".join(parts) + "\n"


def _tried(rows: Sequence[Row]) -> str:
    """Attainment at replica-hours."""
    names = list(dict.fromkeys(row.workload for row in rows))
    lines = [f"| rule | target | {' | '.join(names)} |", f"|---|--:|{'--:|' * len(names)}"]
    for rule, target in dict.fromkeys((row.rule, row.target) for row in rows):
        found = {
            row.workload: row.outcomes[0]
            for row in rows
            if (row.rule, row.target) == (rule, target)
        }
        cells = [f"{one.attainment:.3f} at {one.replica_hours:.2f}" for one in found.values()]
        lines.append(f"| {rule} | {target:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(record: Record, folder: Path) -> Path:
    """Write the dated pair of files and return the Markdown one."""
    stem = new_name(folder, f"{record.date}-scaling-{record.machine['commit']}")
    raw = orjson.dumps(asdict(record), option=orjson.OPT_INDENT_2)
    (folder / f"{stem}.json").write_bytes(raw + b"\n")
    written = folder / f"{stem}.md"
    written.write_text(page(record))
    return written
