"""The files of a report: JSON to keep and compare, Markdown to paste, HTML to look at."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from loadtest.record import Record, write_record
from loadtest.report.markdown import markdown
from loadtest.report.page import page


def file_stem(scenario_name: str, label: str, now: datetime) -> str:
    """What a report's files are called."""
    named = scenario_name if label == scenario_name else f"{scenario_name}-{label}"
    plain = "".join(each if each.isalnum() or each in "-_." else "-" for each in named)
    return f"{now.astimezone(UTC):%Y-%m-%d-%H%M%S}-{plain}"


def write_reports(own: Record, shown: Record, stem: Path) -> Path:
    """Write `own` as JSON and `shown`, which may hold earlier runs too, as pages; the HTML's path.

    Raises OSError.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_name(f"{stem.name}.json").write_bytes(write_record(own))
    stem.with_name(f"{stem.name}.md").write_text(markdown(shown), encoding="utf-8")
    path = stem.with_name(f"{stem.name}.html")
    path.write_text(page(shown), encoding="utf-8")
    return path
