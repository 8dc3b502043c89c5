"""What a report shows, of one run and of several."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import msgspec
import pytest

from loadtest.arrivals import Poisson
from loadtest.record import (
    Found,
    GatewayFigures,
    Record,
    RecordError,
    ReplicaFigures,
    Run,
    read_record,
    write_record,
)
from loadtest.report.charts import Axis, Line, bar_chart, line_chart, nice_ticks
from loadtest.report.markdown import markdown
from loadtest.report.page import page
from loadtest.report.said import NONE, Spread, ms, number, percent
from loadtest.report.tables import comparison, groups
from loadtest.run import Outcome, Target, run_of
from loadtest.samples import Objectives, Sample
from loadtest.scenario import Scenario
from loadtest.stream import Endpoint


def a_run(label: str = "ours", rate: float = 4.0, ttft_s: float = 0.2, *, failing: int = 0) -> Run:
    """Ten seconds of requests that are all alike, but for those that fail."""
    samples = [
        Sample(
            label="chat", tenant="", intended_s=index / rate, lag_s=0.0, e2e_s=1.0, ttft_s=ttft_s,
            last_output_s=0.9, gaps_s=[0.3, 0.4 - ttft_s + 0.2], prompt_tokens=10,
            cached_tokens=5, output_tokens=3, error="status_503" if index < failing else None,
        )
        for index in range(int(10 * rate))
    ]  # fmt: skip
    scenario = Scenario(
        question="Is 1 < 2 & so on?", arrivals=Poisson(rate), duration_s=10, warm_up_s=0,
        objectives=Objectives(ttft_s=0.5),
    )  # fmt: skip
    target = Target(Endpoint.of("127.0.0.1:1"), "m", label, "made-up")
    run = run_of(scenario, target, datetime(2026, 1, 2, tzinfo=UTC), Outcome(samples, []))
    replica = ReplicaFigures(
        "a:1", 40, 400, 120, 0.5, 0, 0.1, 0.2, 0.9, [(0.0, 1.0), (1.0, 3.0)], [(0.0, 0.1)]
    )
    gateway = GatewayFigures(40, 0, 0.15, 0.95, 0.001, 0.5)
    return msgspec.structs.replace(run, replicas=[replica], gateway=gateway)


class Tags(HTMLParser):
    """Checks that elements nest, and keeps their names and the text between."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


RECORDS = {
    "one": Record([a_run()]),
    "failing": Record([a_run(failing=3)]),
    "compared": Record([a_run("a"), a_run("a", ttft_s=0.3), a_run("b", ttft_s=0.1)]),
    "searched": Record([a_run("2/s", 2), a_run("4/s", 4), a_run("8/s", 8, 0.7)], Found(4.0, 8.0)),
    "nothing": Record([a_run(failing=40)]),
}


@pytest.mark.parametrize("name", RECORDS)
def test_the_page_is_whole_and_needs_nothing_from_elsewhere(name: str) -> None:
    text = page(RECORDS[name])
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert "script" not in tags.seen
    assert "link" not in tags.seen
    assert not re.search(r"(src|href)=|url\(|@import", text)
    assert "Is 1 &lt; 2 &amp; so on?" in text
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def test_the_page_of_one_run_shows_all_that_was_asked_for() -> None:
    text = page(RECORDS["failing"])
    for title in (
        "Time to first token", "Inter-token latency", "Requests", "Percentiles", "Errors",
        "Requests by replica", "Prefix-cache hits by replica", "In flight by replica",
        "Witnesses", "The generator", "Configuration", "TTFT objective", "status_503",
    ):  # fmt: skip
        assert title in text, title


def test_a_search_is_drawn_against_the_rate() -> None:
    text = page(RECORDS["searched"])
    assert "Goodput against rate" in text
    assert "<b>4 requests/s</b> meet the objectives" in text
    assert "8 do not" in text


def test_repeats_are_a_median_with_its_range_and_labels_are_compared() -> None:
    table = comparison(RECORDS["compared"].runs)
    assert table.heads == ["", "a (2 runs)", "b (1 runs)"]
    row = next(row for row in table.rows if row[0] == "TTFT p50, ms")
    assert row[1:] == ["250 (200 to 300)", "100  -60%"]
    assert list(groups(RECORDS["compared"].runs)) == ["a", "b"]


@pytest.mark.parametrize("name", RECORDS)
def test_markdown_says_the_same(name: str) -> None:
    text = markdown(RECORDS[name])
    assert text.startswith("# made-up: Is 1 < 2 & so on?")
    widths = [
        {line.count("|") for line in block.splitlines()}
        for block in text.split("\n\n")
        if block.startswith("|")
    ]
    assert widths
    assert all(len(each) == 1 for each in widths)


def test_a_bar_in_a_name_is_no_column() -> None:
    """Labels are whatever somebody types."""
    heads = len(comparison([a_run("a|b"), a_run("c")]).heads)
    lines = markdown(Record([a_run("a|b"), a_run("c")])).splitlines()
    start = lines.index("## Compared") + 2
    row = next(line for line in lines[start:] if "a\\|b" in line)
    assert row.replace("\\|", "").count("|") == heads + 1


@pytest.mark.parametrize(
    ("said", "url"),
    [
        ("127.0.0.1:8000/v1", "http://127.0.0.1:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("https://gateway.example/inference/v1/", "https://gateway.example:443/inference"),
    ],
)
def test_an_endpoint_is_called_as_it_is_reached(said: str, url: str) -> None:
    endpoint = Endpoint.of(said)
    assert endpoint.url == url
    assert Endpoint.of(url) == endpoint


def test_records_are_read_as_they_were_written() -> None:
    for record in RECORDS.values():
        assert read_record(write_record(record)) == record
    for data in (b"", b"{}", b'{"runs": [], "format": "other/1"}'):
        with pytest.raises(RecordError):
            read_record(data)


def test_numbers_have_three_digits() -> None:
    said = [number(value) for value in (0, 0.0123, 0.004, 1.234, 12.34, 123.4, 12345.6, None)]
    assert said == ["0", "0.0123", "0.004", "1.23", "12.3", "123", "12\N{THIN SPACE}346", NONE]
    assert (ms(0.0123), percent(1.0), percent(0.5), percent(None)) == (
        "12.3",
        "100 %",
        "50.0 %",
        NONE,
    )
    assert Spread.of([1.0, None]) is None


@pytest.mark.parametrize("most", [0.003, 0.9, 1, 7, 99, 100, 12345])
def test_ticks_are_few_round_and_reach_past_the_most(most: float) -> None:
    ticks = nice_ticks(most)
    assert 4 <= len(ticks) <= 8
    assert ticks[0] == 0
    assert ticks[-2] < most <= ticks[-1] * 1.000001


def test_charts_of_nothing_are_nothing() -> None:
    axis = Axis("x")
    assert line_chart("t", axis, axis, [Line("a", [(0, None)])]) == ""
    assert bar_chart("t", "u", []) == ""
    assert bar_chart("t", "u", [("a", 0.0, "0")]) == ""


def test_a_line_is_broken_where_nothing_is_known() -> None:
    axis = Axis("x")
    chart = line_chart("t", axis, axis, [Line("a", [(0, 1), (1, 2), (2, None), (3, 1), (4, 0)])])
    assert chart.count('class="c1 line"') == 2
