"""What a report's tables hold, whatever they are drawn in: rows of text.

Pure. Runs of one label are repeats: their figures are a median and its range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from loadtest.figures import Distribution, Figures
from loadtest.record import Run
from loadtest.report.said import NONE, Spread, count, ms, number, percent


class Table(msgspec.Struct, frozen=True):
    """Heads, and rows whose first cell names them."""

    heads: list[str]
    rows: list[list[str]]


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Repeats by label, in the order in which they come."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.label, []).append(run)
    return found


Figure = Callable[[Run], float | None]


def of(distribution: Distribution | None, name: str) -> float | None:
    """A figure of a distribution, by its name; None of none."""
    return None if distribution is None else float(getattr(distribution, name))


def _at(name: str, share: str) -> Figure:
    def figure(run: Run) -> float | None:
        value_s = of(getattr(run.figures, name), share)
        return None if value_s is None else value_s * 1e3

    return figure


_RATES: tuple[tuple[str, Figure], ...] = (
    ("offered, requests/s", lambda run: run.figures.offered_per_s),
    ("finished, requests/s", lambda run: run.figures.finished_per_s),
    ("goodput, requests/s", lambda run: run.figures.goodput_per_s),
    ("good, %", lambda run: 100 * run.figures.good_share),
    ("output tokens/s", lambda run: run.figures.output_tokens_per_s),
)
_LATENCIES: tuple[tuple[str, Figure], ...] = tuple(
    (f"{said} {share}, ms", _at(name, share))
    for said, name in (
        ("TTFT", "ttft_s"),
        ("ITL", "itl_s"),
        ("TPOT", "tpot_s"),
        ("end to end", "e2e_s"),
    )
    for share in ("p50", "p99")
)
_REST: tuple[tuple[str, Figure], ...] = (
    ("cache hits, % of prompt tokens", lambda run: _hundred(run.figures.hit_ratio)),
    ("errors", lambda run: run.figures.failed),
)


def comparison(runs: Sequence[Run]) -> Table:
    """Every label a column, every figure a row; beside the first label, how others differ."""
    by_label = groups(runs)
    rows = []
    for said, figure in (*_RATES, *_LATENCIES, *_REST):
        spreads = [Spread.of([figure(run) for run in each]) for each in by_label.values()]
        rows.append([said, *_beside_the_first(spreads)])
    repeats = {len(each) for each in by_label.values()}
    heads = [
        label if repeats == {1} else f"{label} ({len(each)} runs)"
        for label, each in by_label.items()
    ]
    return Table(["", *heads], rows)


def latencies(figures: Figures) -> Table:
    """Percentiles of what was measured, in milliseconds."""
    rows = [
        [said, *(ms(value) for value in msgspec.structs.astuple(each)[1:]), count(each.count)]
        for said, each in (
            ("TTFT", figures.ttft_s),
            ("ITL", figures.itl_s),
            ("TPOT", figures.tpot_s),
            ("End to end", figures.e2e_s),
        )
        if each is not None
    ]
    return Table(["ms", "mean", "p50", "p90", "p95", "p99", "most", "values"], rows)


def kinds(run: Run) -> Table:
    """What was asked, each kind with its own figures."""
    return Table(
        [
            "kind",
            "requests",
            "good",
            "TTFT p50",
            "TTFT p99",
            "TPOT p50",
            "e2e p50",
            "hits",
            "errors",
        ],
        [
            [
                name,
                count(each.requests),
                percent(each.good_share),
                ms(of(each.ttft_s, "p50")),
                ms(of(each.ttft_s, "p99")),
                ms(of(each.tpot_s, "p50")),
                ms(of(each.e2e_s, "p50")),
                percent(each.hit_ratio),
                count(each.failed),
            ]
            for name, each in run.by_label.items()
        ],
    )


def replicas(run: Run) -> Table:
    """Each replica by its own metrics, start to end."""
    total = sum(each.requests for each in run.replicas) or 1
    return Table(
        [
            "replica",
            "requests",
            "share",
            "prompt tokens",
            "output tokens",
            "hits",
            "TTFT mean",
            "preempted",
        ],
        [
            [
                each.name,
                count(each.requests),
                percent(each.requests / total),
                count(each.prompt_tokens),
                count(each.output_tokens),
                percent(each.hit_ratio),
                ms(each.ttft_mean_s),
                count(each.preemptions),
            ]
            for each in run.replicas
        ],
    )


def witnesses(run: Run) -> Table:
    """The same run as its users, the gateway and the engines counted it, warm-up included."""
    ours = run.everything
    rows = [
        [
            "users (this report)",
            count(ours.requests - ours.failed),
            count(ours.prompt_tokens),
            count(ours.output_tokens),
            ms(of(ours.ttft_s, "mean")),
            ms(of(ours.tpot_s, "mean")),
            ms(of(ours.e2e_s, "mean")),
        ]
    ]
    if (gateway := run.gateway) is not None:
        rows.append(
            ["gateway", count(gateway.requests), NONE, NONE,
             ms(gateway.ttft_mean_s), NONE, ms(gateway.duration_mean_s)]
        )  # fmt: skip
    if run.replicas:
        rows.append(
            [
                "engines",
                count(sum(each.requests for each in run.replicas)),
                count(sum(each.prompt_tokens for each in run.replicas)),
                count(sum(each.output_tokens for each in run.replicas)),
                ms(_mean(run, "ttft_mean_s")),
                ms(_mean(run, "tpot_mean_s")),
                ms(_mean(run, "e2e_mean_s")),
            ]
        )
    heads = ["as counted by", "requests", "prompt tokens", "output tokens", "TTFT", "TPOT", "e2e"]
    return Table(heads, rows)


def errors(run: Run) -> Table:
    """What went wrong, by kind."""
    found = sorted(run.figures.errors.items(), key=lambda each: -each[1])
    total = run.figures.requests or 1
    return Table(
        ["error", "requests", "share"], [[k, count(n), percent(n / total)] for k, n in found]
    )


def generator(run: Run) -> Table:
    """What the generator cost, and how wrong its marks may be."""
    own = run.generator
    rows = [
        ["processes", str(own.processes)],
        ["CPU, of one core", percent(own.cpu_share)],
        ["CPU per streamed event, µs", number(own.cpu_us_per_event)],
    ]
    for said, each in (("woke late by", own.late_s), ("sent late by", own.lag_s)):
        if each is not None:
            rows.append([f"{said}, p50 / p99 / most, ms",
                         f"{ms(each.p50)} / {ms(each.p99)} / {ms(each.most)}"])  # fmt: skip
    return Table(["generator", ""], rows)


def _beside_the_first(spreads: list[Spread | None]) -> list[str]:
    first, *others = spreads
    cells = [NONE if first is None else str(first)]
    for each in others:
        if each is None or first is None or not first.median:
            cells.append(NONE if each is None else str(each))
        else:
            cells.append(f"{each}  {each.median / first.median - 1:+.0%}")
    return cells


def _mean(run: Run, name: str) -> float | None:
    """Of all replicas, by their requests."""
    told = [(getattr(each, name), each.requests) for each in run.replicas]
    known = [(mean, n) for mean, n in told if mean is not None and n]
    total = sum(n for _, n in known)
    return sum(mean * n for mean, n in known) / total if total else None


def _hundred(ratio: float | None) -> float | None:
    return None if ratio is None else 100 * ratio
