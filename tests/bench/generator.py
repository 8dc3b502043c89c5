"""What one core of `headrace bench` can generate, and how wrong its marks are there.

Streams from a replica that costs next to nothing and writes each event alone, at a known pace. The
rate goes up until the generator refuses its own figures; each rate is a run of its own. The error
is what is measured beyond the pace: the generator's, the replica's and the kernel's together, so
the generator's own is at most that.

    python -m tests.bench.generator --record

On a machine that has other work, `chrt -f 10` before it keeps that out of the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from loadtest.arrivals import Poisson
from loadtest.record import Run
from loadtest.run import Target, run
from loadtest.samples import Objectives
from loadtest.scenario import Plan, Scenario
from loadtest.stream import Endpoint
from loadtest.workloads import SharedPrefix
from tests.bench.machine import describe
from tests.bench.processes import Cores, free_ports, running

ROOT: Final = Path(__file__).resolve().parents[2]
RECORDS: Final = ROOT / "docs" / "benchmarks"
STEP_S: Final = 0.010
CHUNKS: Final = 128
RATES: Final = (25, 50, 75, 100, 125, 150, 175, 200, 250, 300, 350, 400)


def main() -> int:
    """Print a table; with --record keep it under docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration-s", type=float, default=12.0, help="of each rate")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    cores = Cores.allot()
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.bench.upstream", "--port", str(port)]
    command += ["--chunks", str(CHUNKS), "--step-s", str(STEP_S)]
    with (
        tempfile.TemporaryDirectory() as folder,
        running("replica", command, core=cores.subject, folder=Path(folder), root=ROOT),
    ):
        os.sched_setaffinity(0, {cores.load})
        _wait_until_up(port)
        rows = [_row(done) for done in _runs(port, args.duration_s)]
    text = _page(rows)
    print(text)
    if args.record:
        stem = f"{datetime.now(UTC):%Y-%m-%d}-generator-{describe(ROOT)['commit']}"
        (RECORDS / f"{stem}.md").write_text(text, encoding="utf-8")
        document = {"machine": describe(ROOT), "rows": rows}
        (RECORDS / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _runs(port: int, duration_s: float) -> list[Run]:
    """A run for each rate, up to the first that is refused."""
    target = Target(Endpoint.of(f"http://127.0.0.1:{port}"), "bench", "generator", "generator")
    found = []
    for rate in RATES:
        scenario = Scenario(
            question="How much can one core generate?",
            arrivals=Poisson(float(rate)),
            workload=SharedPrefix(prefix_tokens=200, prompt_tokens=300, output_tokens=CHUNKS),
            objectives=Objectives(),
            duration_s=duration_s,
            warm_up_s=duration_s / 4,
            patience_s=10.0,
        )
        found.append(run(Plan(scenario), target))
        if found[-1].generator.bottleneck is not None:
            break
        time.sleep(1.0)
    return found


def _row(done: Run) -> dict[str, float | str | None]:
    figures, own = done.figures, done.generator
    itl, tpot, late = figures.itl_s, figures.tpot_s, own.late_s
    return {
        "streams_per_s": figures.offered_per_s,
        "events_per_s": figures.output_tokens_per_s,
        "open_streams": figures.offered_per_s
        * (0.0 if figures.e2e_s is None else figures.e2e_s.mean),
        "cpu_share": own.cpu_share,
        "cpu_us_per_event": own.cpu_us_per_event,
        "ttft_p50_ms": None if figures.ttft_s is None else 1e3 * figures.ttft_s.p50,
        "ttft_p99_ms": None if figures.ttft_s is None else 1e3 * figures.ttft_s.p99,
        "tpot_error_mean_ms": None if tpot is None else 1e3 * (tpot.mean - STEP_S),
        "itl_p50_ms": None if itl is None else 1e3 * itl.p50,
        "itl_p99_ms": None if itl is None else 1e3 * itl.p99,
        "late_p99_ms": None if late is None else 1e3 * late.p99,
        "sent_late_p99_ms": None if own.lag_s is None else 1e3 * own.lag_s.p99,
        "refused": own.bottleneck,
    }


def _page(rows: list[dict[str, float | str | None]]) -> str:
    machine = describe(ROOT)
    heads = [name for name in rows[0] if name != "refused"]
    lines = [
        "# What one core generates",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine['processor']}, {machine['cores']} cores, Python "
        f"{machine['python']}, commit {machine['commit']}. Streams of {CHUNKS} events, one every "
        f"{STEP_S * 1e3:g} ms, each written alone; generator and replica on a core each"
        f"{', ahead of all else there (SCHED_FIFO)' if _is_realtime() else ''}. "
        "`python -m tests.bench.generator --record`.",
        "",
        f"| {' | '.join(name.replace('_', ' ') for name in heads)} |",
        f"|{' --: |' * len(heads)}",
    ]
    for row in rows:
        cells = [f"{value:.3g}" if isinstance(value := row[name], float) else "" for name in heads]
        lines.append(f"| {' | '.join(cells)} |")
    refused = rows[-1]["refused"]
    lines += ["", f"The last row was refused: {refused}." if refused else "None was refused."]
    return "\n".join(lines) + "\n"


def _is_realtime() -> bool:
    return os.sched_getscheduler(0) == os.SCHED_FIFO


def _wait_until_up(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
