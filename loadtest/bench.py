"""What `headrace bench` does: runs or a search, what the terminal shows of them, and the files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table as Grid

from loadtest.command import at_rate
from loadtest.progress import Progress
from loadtest.record import Found, Record, Run
from loadtest.report import tables
from loadtest.report.markdown import rates, verdict
from loadtest.report.said import number, percent
from loadtest.run import EndpointError, Target, models_of, run
from loadtest.samples import Objectives
from loadtest.scenario import Plan, Scenario, ScenarioError
from loadtest.search import Search
from loadtest.stream import Endpoint
from loadtest.written import file_stem, write_reports

_NO_PROMISES = Objectives()
_FEWEST = 20
"""Sessions in a window, in the mean, below which a search does not go."""
_AGAIN = 2
"""So often a try of a search that was refused is made again."""


class Refused(Exception):
    """The figures would be the generator's own; the message says why."""


def bench(
    scenario: Scenario, endpoint: Endpoint, args: argparse.Namespace, earlier: Sequence[Run]
) -> int:
    """Run, say how it was, and write the report. Raises Refused, EndpointError, ScenarioError."""
    name = Path(args.scenario).stem
    target = Target(endpoint, args.model or models_of(endpoint)[0], args.label or name, name)
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold]{name}[/]: {scenario.question}", soft_wrap=True)
    try_it = _runner(target, console)
    if args.search:
        record = _search(scenario, try_it, console)
    else:
        seeds = range(scenario.seed, scenario.seed + args.repeat)
        record = Record([try_it(msgspec.structs.replace(scenario, seed=seed)) for seed in seeds])
    _say(record, console)
    shown = msgspec.structs.replace(record, runs=[*earlier, *record.runs])
    stem = args.out / file_stem(name, target.label, datetime.now(UTC))
    console.print(f"report: {write_reports(record, shown, stem)}", soft_wrap=True)
    return 0


def _runner(target: Target, console: Console) -> Callable[[Scenario], Run]:
    def try_it(scenario: Scenario) -> Run:
        plan = Plan(scenario)
        with Progress(console, scenario, target.label) as progress:
            done = run(plan, target, progress.tick)
        if not done.everything.requests:
            raise ScenarioError("not one request was made: the run is too short for its rate")
        if done.everything.failed == done.everything.requests:
            raise EndpointError(_nothing(done))
        if done.generator.bottleneck is not None:
            raise Refused(done.generator.bottleneck)
        return done

    return try_it


def _nothing(done: Run) -> str:
    errors = ", ".join(f"{count} x {kind}" for kind, count in done.everything.errors.items())
    hint = ""
    if "status_400" in done.everything.errors and done.scenario.force_length:
        hint = "; an endpoint that does not take `ignore_eos` needs --no-force-length"
    return f"not one of {done.everything.requests} requests was answered: {errors}{hint}"


def _search(scenario: Scenario, try_it: Callable[[Scenario], Run], console: Console) -> Record:
    """Each rate is a run of its own, labelled with it; the endpoint is idle in between."""
    objectives = scenario.objectives
    if msgspec.structs.replace(objectives, share=_NO_PROMISES.share) == _NO_PROMISES:
        raise ScenarioError("a search needs objectives: --ttft-ms, --tpot-ms, --e2e-ms")
    runs: list[Run] = []
    window_s = scenario.duration_s - scenario.warm_up_s
    least = _FEWEST / window_s
    first = max(least, getattr(scenario.arrivals, "rate_per_s", 1.0))
    search = Search(first, least_per_s=least)
    while (rate := search.next_rate()) is not None:
        arrivals = at_rate(scenario, rate)
        done = _patiently(try_it, msgspec.structs.replace(scenario, arrivals=arrivals))
        is_met = done.figures.good_share >= objectives.share
        console.print(
            f"  {number(rate)} requests/s: {percent(done.figures.good_share)} good, "
            + ("[green]met[/]" if is_met else "[red]missed[/]")
        )
        search.tell(rate, is_met)
        runs.append(msgspec.structs.replace(done, label=f"{number(rate)}/s"))
    runs.sort(key=lambda each: getattr(each.scenario.arrivals, "rate_per_s", 0.0))
    return Record(runs, Found(search.highest_met, search.lowest_missed))


def _patiently(try_it: Callable[[Scenario], Run], scenario: Scenario) -> Run:
    """A try of a search again where it was refused: a moment's hitch need not cost all others."""
    for _ in range(_AGAIN):
        with suppress(Refused):
            return try_it(scenario)
    return try_it(scenario)


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
