"""A record as Markdown: to paste, and to keep beside its JSON."""

from __future__ import annotations

from loadtest.record import Record, Run
from loadtest.report import tables
from loadtest.report.said import number
from loadtest.report.tables import Table


def markdown(record: Record) -> str:
    """The whole record; of several runs a comparison first, then the last run alone."""
    runs = record.runs
    last = runs[-1]
    parts = [f"# {last.scenario_name}: {last.scenario.question}", head_of(last)]
    if record.found is not None:
        parts.append(verdict(record))
    if len(runs) > 1:
        parts += ["## Compared", _table(tables.comparison(runs))]
        parts.append(f"## The last run: {last.label}")
    parts += [_table(tables.latencies(last.figures)), rates(last)]
    for title, table in (
        ("Kinds", tables.kinds(last)),
        ("Errors", tables.errors(last)),
        ("Replicas", tables.replicas(last)),
        ("Witnesses", tables.witnesses(last)),
        ("Generator", tables.generator(last)),
    ):
        if table.rows:
            parts += [f"## {title}", _table(table)]
    return "\n\n".join(parts) + "\n"


def head_of(run: Run) -> str:
    """Where, when, what."""
    machine = run.machine
    return (
        f"{run.started_at}, model `{run.model}`, seed {run.scenario.seed}, "
        f"{run.scenario.duration_s:g} s of which {run.scenario.warm_up_s:g} s warm-up; "
        f"{machine['processor']}, {machine['cores']} cores; "
        f"headrace {machine.get('headrace', '?')}."
    )


def rates(run: Run) -> str:
    """What was offered and what became of it, in a sentence."""
    figures = run.figures
    return (
        f"Offered {number(figures.offered_per_s)} requests/s, finished "
        f"{number(figures.finished_per_s)}, good {number(figures.goodput_per_s)} "
        f"({run.scenario.objectives}); {number(figures.output_tokens_per_s)} output tokens/s."
    )


def verdict(record: Record) -> str:
    """What a search came to, in a sentence."""
    found, objectives = record.found, record.runs[-1].scenario.objectives
    if found is None or found.highest_met_per_s is None:
        return "No rate that was tried meets the objectives."
    text = (
        f"**{number(found.highest_met_per_s)} requests/s** meet the objectives "
        f"({objectives}, for {objectives.share:.0%} of requests)"
    )
    if found.lowest_missed_per_s is None:
        return f"{text}; more was not tried."
    return f"{text}, {number(found.lowest_missed_per_s)} do not."


def _table(table: Table) -> str:
    lines = [table.heads, ["---", *("--:" for _ in table.heads[1:])], *table.rows]
    return "\n".join(f"| {' | '.join(_cell(each) for each in cells)} |" for cells in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
