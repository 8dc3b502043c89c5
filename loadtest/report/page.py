"""A record as one HTML page: nothing is fetched, nothing runs; light and dark, wide and narrow.

Pure but for its style sheet, which lies beside it.
"""

from __future__ import annotations

from html import escape
from importlib import resources

import msgspec
import yaml

from loadtest.record import Record, Run
from loadtest.report import drawn, tables
from loadtest.report.markdown import verdict
from loadtest.report.said import ms, number, percent
from loadtest.report.tables import Table, groups, of

_WITNESSES = (
    "The same run as its users, the gateway and the engines counted it, warm-up included; means in "
    "ms. What users see includes the network and the gateway; engines count from when a request "
    "reached them."
)
_GENERATOR = (
    "What generating the load cost. Marks may be wrong by as much as the generator woke late; a "
    "run in which that mattered is refused."
)


def page(record: Record) -> str:
    """The whole record; several runs are compared, and the last is shown in full."""
    runs = record.runs
    last = runs[-1]
    parts = [_header(last, len(runs))]
    if record.found is not None:
        said = escape(verdict(record)).replace("**", "<b>", 1).replace("**", "</b>", 1)
        parts.append(f'<p class="verdict">{said}</p>')
    if len(runs) == 1:
        parts.append(_tiles(last))
    parts += _across(record) if len(runs) > 1 else []
    parts += _one(last, is_alone=len(runs) == 1)
    style = (resources.files("loadtest.report") / "page.css").read_text(encoding="utf-8")
    title = escape(f"{last.scenario_name}: {last.scenario.question}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body><main>"
        f"{''.join(parts)}{_footer(last)}</main></body></html>\n"
    )


def _header(run: Run, count: int) -> str:
    scenario = run.scenario
    facts = [
        run.started_at.replace("T", " ").replace("+00:00", " UTC"),
        f"model {run.model}",
        run.target,
        f"{scenario.duration_s:g} s, of which {scenario.warm_up_s:g} s warm-up",
        f"objectives: {scenario.objectives}",
        f"{count} runs" if count > 1 else f"seed {scenario.seed}",
    ]
    shown = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return (
        f'<header><div class="name">{escape(run.scenario_name)}</div>'
        f'<h1>{escape(scenario.question)}</h1><div class="facts">{shown}</div></header>'
    )


def _tiles(run: Run) -> str:
    figures, objectives = run.figures, run.scenario.objectives
    is_good = figures.good_share >= objectives.share
    ttft, itl, tpot = figures.ttft_s, figures.itl_s, figures.tpot_s
    tiles = [
        ("Goodput", number(figures.goodput_per_s), "requests/s",
         f'<span class="{"good" if is_good else "bad"}">{percent(figures.good_share)} good</span>'),
        ("Offered", number(figures.offered_per_s), "requests/s",
         f"{number(figures.finished_per_s)} finished"),
        ("TTFT p50", ms(of(ttft, "p50")), "ms", f"p99 {ms(of(ttft, 'p99'))} ms"),
        ("TPOT p50", ms(of(tpot, "p50")), "ms", f"p99 {ms(of(tpot, 'p99'))} ms"),
        ("ITL p50", ms(of(itl, "p50")), "ms", f"p99 {ms(of(itl, 'p99'))} ms"),
        ("Output", number(figures.output_tokens_per_s), "tokens/s",
         f"{number(figures.prompt_tokens_per_s)} prompt tokens/s"),
        ("Cache hits", percent(figures.hit_ratio), "", "of prompt tokens"),
        ("Failed", number(figures.failed), f"of {number(figures.requests)}",
         escape(", ".join(sorted(figures.errors))) or "no errors"),
    ]  # fmt: skip
    drawn_tiles = "".join(
        f'<div class="tile"><div class="what">{what}</div><div class="figure">{figure}'
        f'<small>{unit}</small></div><div class="more">{more}</div></div>'
        for what, figure, unit, more in tiles
    )
    return f'<div class="tiles">{drawn_tiles}</div>'


def _across(record: Record) -> list[str]:
    """What several runs show together."""
    runs = record.runs
    note = (
        "Median of each label's runs, and their range; beside it the change from the first label."
    )
    return [
        *_charts("Against rate", drawn.against_rate(runs)),
        _section("Compared", tables.comparison(runs), note),
        *_charts("Compared, as curves", drawn.curves(runs) if len(groups(runs)) <= 6 else []),
        f"<h2>The last run: {escape(runs[-1].label)}</h2>",
        _tiles(runs[-1]),
    ]


def _one(run: Run, *, is_alone: bool) -> list[str]:
    """All about one run."""
    return [
        *_charts("Over time", drawn.over_time(run)),
        _section("Percentiles", tables.latencies(run.figures)),
        *_charts("Distributions", drawn.curves([run]) if is_alone else []),
        _section("By kind of request", tables.kinds(run)) if len(run.by_label) > 1 else "",
        _section("Errors", tables.errors(run)),
        *_charts("Replicas", drawn.replicas(run)),
        _section("", tables.replicas(run)),
        _section("Witnesses", tables.witnesses(run), _WITNESSES),
        _section("The generator", tables.generator(run), _GENERATOR),
        _configuration(run),
    ]


def _charts(title: str, charts: list[str]) -> list[str]:
    shown = [chart for chart in charts if chart]
    if not shown:
        return []
    return [f'<h2>{escape(title)}</h2><div class="charts">{"".join(shown)}</div>']


def _section(title: str, table: Table, note: str = "") -> str:
    if not table.rows:
        return ""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.heads)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    opening = f"<h2>{escape(title)}</h2>" if title else '<div style="height:14px"></div>'
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'{opening}{said}<div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _configuration(run: Run) -> str:
    scenario = yaml.safe_dump(msgspec.to_builtins(run.scenario), sort_keys=False)
    machine = yaml.safe_dump(run.machine, sort_keys=False)
    return (
        f"<h2>Configuration</h2><pre>{escape(scenario)}</pre>"
        "<details><summary>Where the load came from</summary>"
        f"<pre>{escape(machine)}</pre></details>"
    )


def _footer(run: Run) -> str:
    return (
        "<footer>Latencies count from the instant each request was intended to be sent. Made by "
        f"headrace {escape(run.machine.get('headrace', ''))} bench.</footer>"
    )
