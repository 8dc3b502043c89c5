"""The harness of the comparison over HTTP, from the trace to the table: Headrace alone, briefly."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.bench.peers.__main__ import main
from tests.bench.routing.workloads import TRACE

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="the gateway under test needs a core of its own"
)


def test_a_short_comparison_measures_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"timestamp": n * 250, "input_length": 1024, "output_length": 32, "hash_ids": [0, n % 8]}
        for n in range(1, 25)
    ]
    (tmp_path / TRACE).write_text("\n".join(map(json.dumps, lines)))
    flags = ["--quick", "--requests", "20", "--replicas", "2", "--traces", str(tmp_path)]
    assert main([*flags, "--subjects", "headrace/cache-aware"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("| headrace/cache-aware"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    mean_s, hit, ideal, cpu_ms = (float(cells[n]) for n in (1, 5, 6, 7))
    assert 0 < mean_s < 10
    assert 0 < hit <= ideal + 0.05
    assert cpu_ms > 0
    assert cells[-1] == "0"
