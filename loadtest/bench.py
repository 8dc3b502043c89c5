"""What `headrace bench` does: runs or a search, what the terminal shows of them, and the files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table as Grid

from loadtest.command import at_rate, file_stem
from loadtest.progress import Progress
from loadtest.record import Found, Record, Run, write_record
from loadtest.report import tables
from loadtest.report.markdown import markdown, rates, verdict
from loadtest.report.page import page
from loadtest.report.said import number, percent
from loadtest.run import EndpointError, Target, models_of, run
from loadtest.samples import Objectives
from loadtest.scenario import Plan, Scenario, ScenarioError
from loadtest.search import Search
from loadtest.stream import Endpoint

_NO_PROMISES = Objectives()


class Refused(Exception):
    """The figures would be the generator's own; the message says why."""


def bench(
    scenario: Scenario, endpoint: Endpoint, args: argparse.Namespace, earlier: Sequence[Run]
) -> int:
    """Run, say how it was, and write the report. Raises Refused, EndpointError, ScenarioError."""
    models = [args.model] if args.model else models_of(endpoint)
    if not models:
        raise EndpointError(f"{endpoint.url} serves no model")
    name = Path(args.scenario).stem
    target = Target(endpoint, models[0], args.label or name, name)
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold]{name}[/]: {scenario.question}", soft_wrap=True)
    try_it = _runner(target, console)
    if args.search:
        record = _search(scenario, try_it, console)
    else:
        seeds = range(scenario.seed, scenario.seed + args.repeat)
        record = Record([try_it(msgspec.structs.replace(scenario, seed=seed)) for seed in seeds])
    _say(record, console)
    _write(record, earlier, args.out / file_stem(name, target.label, datetime.now(UTC)), console)
    return 0


def _runner(target: Target, console: Console) -> Callable[[Scenario], Run]:
    def try_it(scenario: Scenario) -> Run:
        plan = Plan(scenario)
        with Progress(console, scenario, target.label) as progress:
            done = run(plan, target, progress.tick)
        if not done.everything.requests:
            raise ScenarioError("not one request was made: the run is too short for its rate")
        if done.generator.bottleneck is not None:
            raise Refused(done.generator.bottleneck)
        return done

    return try_it


def _search(scenario: Scenario, try_it: Callable[[Scenario], Run], console: Console) -> Record:
    """Each rate is a run of its own, labelled with it; the endpoint is idle in between."""
    objectives = scenario.objectives
    if msgspec.structs.replace(objectives, share=_NO_PROMISES.share) == _NO_PROMISES:
        raise ScenarioError("a search needs objectives: --ttft-ms, --tpot-ms, --e2e-ms")
    runs: list[Run] = []
    first = getattr(scenario.arrivals, "rate_per_s", 1.0)
    search = Search(first)
    while (rate := search.next_rate()) is not None:
        arrivals = at_rate(scenario, rate)
        done = try_it(msgspec.structs.replace(scenario, arrivals=arrivals))
        is_met = done.figures.good_share >= objectives.share
        console.print(
            f"  {number(rate)} requests/s: {percent(done.figures.good_share)} good, "
            + ("[green]met[/]" if is_met else "[red]missed[/]")
        )
        search.tell(rate, is_met)
        runs.append(msgspec.structs.replace(done, label=f"{number(rate)}/s"))
    runs.sort(key=lambda each: getattr(each.scenario.arrivals, "rate_per_s", 0.0))
    return Record(runs, Found(search.highest_met, search.lowest_missed))


def _say(record: Record, console: Console) -> None:
    last = record.runs[-1]
    if record.found is not None:
        console.print(verdict(record).replace("**", ""), soft_wrap=True)
        return
    several = len(record.runs) > 1
    table = tables.comparison(record.runs) if several else tables.latencies(last.figures)
    grid = Grid(box=None, padding=(0, 2))
    for index, head in enumerate(table.heads):
        grid.add_column(head, justify="right" if index else "left")
    for row in table.rows:
        grid.add_row(*row)
    console.print(grid)
    console.print(rates(last), soft_wrap=True)
    for kind, count in last.figures.errors.items():
        console.print(f"[red]{count} x {kind}[/]")


def _write(record: Record, earlier: Sequence[Run], stem: Path, console: Console) -> None:
    """JSON of this command's runs; pages of these beside the earlier ones."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    shown = msgspec.structs.replace(record, runs=[*earlier, *record.runs])
    for suffix, content in (
        (".json", write_record(record)),
        (".md", markdown(shown).encode()),
        (".html", page(shown).encode()),
    ):
        stem.with_name(stem.name + suffix).write_bytes(content)
    console.print(f"report: {stem}.html", soft_wrap=True)
