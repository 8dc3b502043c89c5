"""Charts as SVG text: lines over time, curves of shares, bars; drawn by hand, without a library.

Pure. Colours are the page's CSS variables, so one drawing serves light and dark. Every point has a
title of its own that a pointer shows; every chart has a description for those who do not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor, log10
from typing import Final

import msgspec

from loadtest.report.said import number

WIDTH: Final = 640
HEIGHT: Final = 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 26, 36

Point = tuple[float, float | None]


class Line(msgspec.Struct, frozen=True):
    """One series. `colour` is one of the page's, 1 to 6."""

    name: str
    points: Sequence[Point]
    colour: int = 1
    is_dashed: bool = False
    is_filled: bool = False
    has_dots: bool = False


class Axis(msgspec.Struct, frozen=True):
    """What an axis measures; its range is that of the data, from 0 unless it is logarithmic."""

    title: str
    is_log: bool = False
    most: float | None = None
    warm_up: float = 0.0
    """What lies before this is shaded: it is in no figure."""


class Limit(msgspec.Struct, frozen=True):
    """A level to be kept."""

    name: str
    at: float


def line_chart(
    title: str, across: Axis, up: Axis, lines: Sequence[Line], limit: Limit | None = None
) -> str:
    """One figure: axes, lines, a limit if there is one, and a legend."""
    lines = [line for line in lines if any(value is not None for _, value in line.points)]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if y is not None]
    most = max([*ys, *([limit.at] if limit is not None and limit.at < 4 * max(ys) else [])])
    horizontal = _scale(xs, across, _LEFT, WIDTH - _RIGHT)
    vertical = _scale([*ys, most], up, HEIGHT - _BOTTOM, _TOP)
    parts = [_shade(horizontal, across.warm_up), _grid(horizontal, vertical, across, up)]
    parts += [_line(line, horizontal, vertical) for line in lines]
    if limit is not None and limit.at <= vertical.high:
        parts.append(_limit(limit, vertical))
    return _figure(title, "".join(parts), HEIGHT, _legend(lines))


def bar_chart(title: str, unit: str, bars: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars: a name, a value, and how it is said."""
    most = max((value for _, value, _ in bars), default=0.0)
    if not bars or most <= 0:
        return ""
    row = 26 if len(bars) <= 10 else 20
    room = WIDTH - 150 - 90
    drawn = []
    for index, (name, value, said) in enumerate(bars):
        y = 6 + index * row
        width = max(1.0, room * value / most)
        drawn.append(
            f'<text class="name" x="142" y="{y + row / 2 + 1:.1f}">{escape(name)}</text>'
            f'<rect class="c1 bar" x="150" y="{y:.1f}" width="{width:.1f}" height="{row - 7}"'
            f' rx="3"><title>{escape(name)}: {escape(said)} {escape(unit)}</title></rect>'
            f'<text class="value" x="{156 + width:.1f}" y="{y + row / 2 + 1:.1f}">'
            f"{escape(said)}</text>"
        )
    return _figure(title, "".join(drawn), 12 + len(bars) * row, "")


class _Scale:
    """Values to places, and the ticks between."""

    def __init__(self, low: float, high: float, ticks: list[float], place: _Place) -> None:
        self.low = low
        self.high = high
        self.ticks = ticks
        self.at = place


_Place = Callable[[float], float]


def _scale(values: Sequence[float], axis: Axis, begin: float, end: float) -> _Scale:
    if axis.is_log:
        return _log_scale([value for value in values if value > 0] or [1.0], begin, end)
    most = max(values) if axis.most is None else axis.most
    ticks = nice_ticks(most or 1.0)
    high = ticks[-1] if axis.most is None and begin > end else max(most, 1e-12)
    return _Scale(
        0.0, high, [each for each in ticks if each <= high * 1.001],
        lambda value: begin + (end - begin) * min(value, high) / high,
    )  # fmt: skip


def _log_scale(values: Sequence[float], begin: float, end: float) -> _Scale:
    low, high = floor(log10(min(values)) * 2) / 2, ceil(log10(max(values)) * 2) / 2
    high = max(high, low + 0.5)
    steps = [
        10.0**power * lead for power in range(floor(low), ceil(high) + 1) for lead in (1, 2, 5)
    ]
    ticks = [each for each in steps if low - 1e-9 <= log10(each) <= high + 1e-9]
    if len(ticks) > 8:
        ticks = [each for each in ticks if abs(log10(each) - round(log10(each))) < 1e-6]

    def place(value: float) -> float:
        share = (log10(max(value, 10.0**low)) - low) / (high - low)
        return begin + (end - begin) * min(1.0, share)

    return _Scale(10.0**low, 10.0**high, ticks, place)


def nice_ticks(most: float, count: int = 5) -> list[float]:
    """From 0 past `most` in steps of 1, 2 or 5 times a power of ten: about `count` of them."""
    raw = most / count
    power: float = 10.0 ** floor(log10(raw))
    step = next(lead * power for lead in (1, 2, 5, 10) if lead * power >= raw * 0.999)
    return [index * step for index in range(ceil(most / step - 1e-9) + 1)]


def _grid(horizontal: _Scale, vertical: _Scale, across: Axis, up: Axis) -> str:
    bottom = HEIGHT - _BOTTOM
    parts = []
    for tick in vertical.ticks:
        y = vertical.at(tick)
        parts.append(
            f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick y" x="{_LEFT - 7}" y="{y + 3.5:.1f}">{number(tick)}</text>'
        )
    for tick in horizontal.ticks:
        x = horizontal.at(tick)
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text class="tick x" x="{x:.1f}" y="{bottom + 16}">{number(tick)}</text>'
        )
    parts.append(
        f'<text class="axis" x="{WIDTH - _RIGHT}" y="{HEIGHT - 4}">{escape(across.title)}</text>'
        f'<text class="axis up" x="4" y="10">{escape(up.title)}</text>'
    )
    return "".join(parts)


def _shade(horizontal: _Scale, warm_up: float) -> str:
    width = horizontal.at(warm_up) - _LEFT
    if warm_up <= 0 or width < 1:
        return ""
    return (
        f'<rect class="shade" x="{_LEFT}" y="{_TOP}" width="{width:.1f}" '
        f'height="{HEIGHT - _BOTTOM - _TOP}"><title>warm-up</title></rect>'
    )


def _line(line: Line, horizontal: _Scale, vertical: _Scale) -> str:
    """A path, broken where nothing is known; a lone point is a dot."""
    stretches: list[list[tuple[float, float, float, float]]] = [[]]
    for x, y in line.points:
        if y is None:
            stretches.append([])
        else:
            stretches[-1].append((horizontal.at(x), vertical.at(y), x, y))
    kind = f"c{line.colour}" + (" dashed" if line.is_dashed else "")
    parts = []
    for stretch in stretches:
        if not stretch:
            continue
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _, _ in stretch)
        if line.is_filled:
            bottom = vertical.at(vertical.low)
            parts.append(
                f'<path class="{kind} area" d="M{stretch[0][0]:.1f} {bottom:.1f}L{path}'
                f'L{stretch[-1][0]:.1f} {bottom:.1f}Z"/>'
            )
        parts.append(f'<path class="{kind} line" d="M{path}"/>')
        shown = "dot" if line.has_dots or len(stretch) == 1 else "dot hidden"
        parts += [
            f'<circle class="{kind} {shown}" cx="{x:.1f}" cy="{y:.1f}" r="3.2">'
            f"<title>{escape(line.name)}: {number(value)} at {number(at)}</title></circle>"
            for x, y, at, value in stretch
        ]
    return "".join(parts)


def _limit(limit: Limit, vertical: _Scale) -> str:
    y = vertical.at(limit.at)
    return (
        f'<line class="limit" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="limit" x="{WIDTH - _RIGHT}" y="{y - 5:.1f}">{escape(limit.name)}</text>'
    )


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    keys = "".join(
        f'<span><i class="c{line.colour}{" dashed" if line.is_dashed else ""}"></i>'
        f"{escape(line.name)}</span>"
        for line in lines
    )
    return f'<div class="legend">{keys}</div>'


def _figure(title: str, drawn: str, height: float, legend: str) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{legend}"
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f"{drawn}</svg></figure>"
    )
