"""`python -m tests.bench.holding`: what late binding and the order of the queue are worth.

Prints medians over the seeds with their range; `--record` keeps a dated copy under docs/benchmarks.
The figures depend on the seeds alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Final

import orjson

from tests.bench.holding import scenarios
from tests.bench.holding.scenarios import LOADS, Row, Set
from tests.bench.machine import describe, new_name

ROOT: Final = Path(__file__).resolve().parents[3]
QUICK: Final = Set(seconds=60.0, lines=2_000, seed=1)
FULL: Final = Set(seconds=150.0, lines=10_000, seed=1)

SCENARIOS: Final[Mapping[str, Callable[[Set], Row]]] = MappingProxyType(
    {
        "throughput": scenarios.throughput,
        "weights": scenarios.weights,
        "flood": scenarios.flood,
        "batch": scenarios.batch,
        **{f"goodput-{round(100 * load)}": partial(scenarios.goodput, load=load) for load in LOADS},
        "grouping": scenarios.grouping,
    }
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.holding", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter runs, a smaller batch")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="keep a copy in docs/benchmarks")
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="one; may be repeated")
    args = parser.parse_args(arguments)
    began_s = time.monotonic()
    given = QUICK if args.quick else FULL
    given = replace(given, per_s=scenarios.capacity(given))
    print(f"capacity: {given.per_s:.2f} answers/s", flush=True)
    lines, found = [], {}
    for name in args.only or SCENARIOS:
        rows = [SCENARIOS[name](replace(given, seed=seed)) for seed in range(1, args.seeds + 1)]
        found[name] = rows
        lines.append(f"- {name}: " + ", ".join(f"{key} {_spread(key, rows)}" for key in rows[0]))
        print(lines[-1], flush=True)
    took_s = round(time.monotonic() - began_s)
    print(f"took {took_s} s")
    if args.record:
        _write(lines, found, {"took_s": took_s, "seeds": args.seeds, "set": repr(given)})
    return 0


def _spread(key: str, rows: Sequence[Row]) -> str:
    values = [row[key] for row in rows]
    if len(set(values)) == 1:
        return f"{values[0]:.4g}"
    return f"{median(values):.4g} ({min(values):.4g}-{max(values):.4g})"


def _write(
    lines: Sequence[str], found: Mapping[str, Sequence[Row]], set_up: Mapping[str, object]
) -> None:
    machine = describe(ROOT)
    folder = ROOT / "docs" / "benchmarks"
    stem = new_name(folder, f"{time.strftime('%Y-%m-%d')}-holding-{machine['commit']}")
    facts = {**machine, "command": "python -m tests.bench.holding", **set_up}
    (folder / f"{stem}.json").write_bytes(
        orjson.dumps({"facts": facts, "scenarios": found}, option=orjson.OPT_INDENT_2) + b"\n"
    )
    page = [
        f"# Holding in virtual time, commit {machine['commit']}",
        "Medians over the seeds, range in brackets; TTFT in seconds. tests/bench/holding says what "
        "is simulated and what each scenario asks.",
        "\n".join(lines),
        "## Set-up\n\n" + "\n".join(f"- {name}: {value}" for name, value in facts.items()),
    ]
    (folder / f"{stem}.md").write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    sys.exit(main())
