"""The dated pair of files in docs/benchmarks that keeps what a small benchmark printed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import orjson

from tests.bench.machine import describe, new_name

ROOT: Final = Path(__file__).resolve().parents[2]


def keep(
    name: str, title: str, about: str, text: str, raw: object, set_up: Mapping[str, object]
) -> Path:
    """A page of `text`, and beside it `raw` as JSON; the page, as seen from the checkout.

    `about` is the docstring of the benchmark: all but its first line says what was measured.
    """
    facts = {**set_up, **describe(ROOT)}
    day = time.strftime("%Y-%m-%d")
    folder = ROOT / "docs" / "benchmarks"
    stem = folder / new_name(folder, f"{day}-{name}-{facts['commit']}")
    document = orjson.dumps({"set_up": facts, "rounds": raw}, option=orjson.OPT_INDENT_2)
    stem.with_suffix(".json").write_bytes(document + b"\n")
    parts = [
        f"# {title}, {day}, commit {facts['commit']}",
        about.partition("\n\n")[2].strip(),
        text,
        "## Set-up\n\n" + "\n".join(f"- {key}: {value}" for key, value in facts.items()),
        f"Every round: [{stem.name}.json]({stem.name}.json).",
    ]
    page = stem.with_suffix(".md")
    page.write_text("\n\n".join(parts) + "\n")
    return page.relative_to(ROOT)
