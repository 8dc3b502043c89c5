"""The charts of a report: which series of which runs, and what they are called.

Pure. Times are drawn in milliseconds, rates per second, shares in per cent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from loadtest.record import Curves, ReplicaFigures, Run
from loadtest.report.charts import Axis, Limit, Line, bar_chart, line_chart
from loadtest.report.said import count, percent
from loadtest.report.tables import groups

_COLOURS = 6


def over_time(run: Run) -> list[str]:
    """TTFT, ITL, rates and tokens, stretch by stretch."""
    stretches = run.over_time
    objectives = run.scenario.objectives
    seconds = _seconds(run)

    def points(name: str, factor: float = 1.0) -> list[tuple[float, float | None]]:
        values = ((each.at_s, getattr(each, name)) for each in stretches)
        return [(at_s, None if value is None else value * factor) for at_s, value in values]

    return [
        line_chart(
            "Time to first token", seconds, Axis("ms"),
            [Line("p95", points("ttft_p95_s", 1e3), 2), Line("p50", points("ttft_p50_s", 1e3), 1)],
            _limit("TTFT objective", objectives.ttft_s),
        ),
        line_chart(
            "Inter-token latency", seconds, Axis("ms"),
            [Line("p99", points("itl_p99_s", 1e3), 2), Line("p50", points("itl_p50_s", 1e3), 1)],
            _limit("TPOT objective", objectives.tpot_s),
        ),
        line_chart(
            "Requests", seconds, Axis("per second"),
            [
                Line("offered", points("offered_per_s"), 6, is_dashed=True),
                Line("finished", points("finished_per_s"), 1),
                Line("good", points("goodput_per_s"), 3),
                *([Line("failed", points("errors_per_s"), 5)] if run.everything.failed else []),
            ],
        ),
        line_chart(
            "Output tokens", seconds, Axis("per second"),
            [Line("output tokens", points("output_tokens_per_s"), 4, is_filled=True)],
        ),
    ]  # fmt: skip


def curves(runs: Sequence[Run]) -> list[str]:
    """What share of requests (or gaps) was at or below what time; a line for each label."""
    chosen = list(islice(groups(runs).items(), _COLOURS))

    def lines(name: str) -> list[Line]:
        return [
            Line(label, _shares(own[-1].curves, name), colour)
            for colour, (label, own) in enumerate(chosen, start=1)
        ]

    share = Axis("% at or below", most=100)
    return [
        line_chart(title, Axis("ms", is_log=True), share, lines(name))
        for title, name in (
            ("Time to first token: all requests", "ttft_s"),
            ("Inter-token latency: all gaps", "itl_s"),
            ("Time per output token: all requests", "tpot_s"),
            ("End to end: all requests", "e2e_s"),
        )
    ]


def against_rate(runs: Sequence[Run]) -> list[str]:
    """Goodput and latencies against the rate that was offered, where several were."""
    ordered = sorted(runs, key=lambda run: run.figures.offered_per_s)
    rates = [run.figures.offered_per_s for run in ordered]
    if len(rates) < 3 or rates[-1] < 1.2 * rates[0]:
        return []
    offered = Axis("offered, requests per second")
    objectives = ordered[-1].scenario.objectives

    def line(
        name: str, colour: int, values: Sequence[float | None], *, dashed: bool = False
    ) -> Line:
        points = list(zip(rates, values, strict=True))
        return Line(name, points, colour, is_dashed=dashed, has_dots=not dashed)

    def latency(name: str, share: str) -> list[float | None]:
        found = [getattr(run.figures, name) for run in ordered]
        return [None if each is None else 1e3 * getattr(each, share) for each in found]

    return [
        line_chart(
            "Goodput against rate", offered, Axis("per second"),
            [
                line("offered", 6, list(rates), dashed=True),
                line("finished", 1, [run.figures.finished_per_s for run in ordered]),
                line("good", 3, [run.figures.goodput_per_s for run in ordered]),
            ],
        ),
        line_chart(
            "Requests that met the objectives", offered, Axis("%", most=100),
            [line("good", 3, [100 * run.figures.good_share for run in ordered])],
            Limit("share wanted", 100 * objectives.share),
        ),
        line_chart(
            "Time to first token against rate", offered, Axis("ms", is_log=True),
            [line("p95", 2, latency("ttft_s", "p95")), line("p50", 1, latency("ttft_s", "p50"))],
            _limit("TTFT objective", objectives.ttft_s),
        ),
        line_chart(
            "Time per output token against rate", offered, Axis("ms", is_log=True),
            [line("p95", 2, latency("tpot_s", "p95")), line("p50", 1, latency("tpot_s", "p50"))],
            _limit("TPOT objective", objectives.tpot_s),
        ),
    ]  # fmt: skip


def replicas(run: Run) -> list[str]:
    """Who had how much, who hit how often, and what was in flight where."""
    told, seconds = run.replicas, _seconds(run)
    return [
        bar_chart(
            "Requests by replica", "requests",
            [(each.name, float(each.requests), count(each.requests)) for each in told],
        ),
        bar_chart(
            "Prefix-cache hits by replica", "of prompt tokens",
            [(each.name, each.hit_ratio or 0.0, percent(each.hit_ratio)) for each in told],
        ),
        line_chart(
            "In flight by replica", seconds, Axis("requests"), _lines(told, "inflight", 1)
        ),
        line_chart(
            "KV cache in use by replica", seconds, Axis("%"), _lines(told, "kv_usage", 100)
        ),
    ]  # fmt: skip


def _lines(told: Sequence[ReplicaFigures], name: str, factor: float) -> list[Line]:
    """Six replicas each in a colour of its own; of more, the busiest, the middle, the idlest."""
    found = [
        Line(each.name, [(at_s, value * factor) for at_s, value in getattr(each, name)])
        for each in told
    ]
    if len(found) > _COLOURS:
        found.sort(key=lambda line: -sum(value or 0.0 for _, value in line.points))
        found = [found[0], found[len(found) // 2], found[-1]]
        names = ("busiest", "middle", "idlest")
        found = [
            Line(f"{said}: {line.name}", line.points)
            for said, line in zip(names, found, strict=True)
        ]
    return [Line(line.name, line.points, index) for index, line in enumerate(found, start=1)]


def _shares(curves: Curves, name: str) -> list[tuple[float, float | None]]:
    found: list[float] = getattr(curves, name)
    return [(value * 1e3, float(share)) for share, value in enumerate(found) if value > 0 < share]


def _seconds(run: Run) -> Axis:
    return Axis("seconds since the start", warm_up=run.scenario.warm_up_s)


def _limit(name: str, at_s: float | None) -> Limit | None:
    return None if at_s is None else Limit(name, at_s * 1e3)
