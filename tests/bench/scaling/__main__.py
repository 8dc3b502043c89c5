"""`python -m tests.bench.scaling`: rules of scaling in a closed loop, in virtual time.

Finds every rule's thresholds on one seed and compares the rules on others; `--record` keeps a dated
copy under docs/benchmarks. The figures depend on the seeds alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from gateway.settings import ScaleSettings
from tests.bench.machine import describe
from tests.bench.routing.engine import ReplicaSpec
from tests.bench.routing.workloads import TRACE, Unavailable
from tests.bench.scaling.autoscaler import Behaviour
from tests.bench.scaling.journal import Journal, Trial
from tests.bench.scaling.report import Outcome, Record, Row, table, write
from tests.bench.scaling.rules import OURS, RULES, TARGETS, best
from tests.bench.scaling.workloads import WORKLOADS
from tests.bench.scaling.world import COLD_START_S, World

ROOT: Final = Path(__file__).resolve().parents[3]
SPEC: Final = ReplicaSpec(prefill_tokens_per_s=16_000.0, cache_blocks=2000)
TUNED_ON: Final = 1


def attempt(trial: Trial, traces: Path) -> tuple[Outcome, float]:
    """Run it: the outcome, the same whenever it is run, and the CPU seconds that took."""
    began_s = time.process_time()
    workload, rule = WORKLOADS[trial.workload], RULES[trial.rule]
    arrivals = workload.arrivals(traces, trial.seed)
    world = World(
        SPEC,
        lambda signals: rule(signals, trial.target),
        f"{trial.workload}/{trial.seed}",
        Behaviour(),
        ScaleSettings(),
    )
    run = world.run(arrivals, workload.until_s, workload.first)
    return Outcome.of(run, workload.judged_from_s), time.process_time() - began_s


class Bench:
    """Trials, several at a time, none twice."""

    def __init__(self, traces: Path, pool: ProcessPoolExecutor, journal: Journal) -> None:
        self._attempt = partial(attempt, traces=traces)
        self._pool = pool
        self._journal = journal

    def run(self, trials: Sequence[Trial]) -> None:
        """All of them."""
        new = [each for each in dict.fromkeys(trials) if each not in self._journal.outcomes]
        ended = self._pool.map(self._attempt, new)
        for trial, (outcome, cpu_s) in zip(new, ended, strict=True):
            self._journal.add(trial, outcome, cpu_s)
            print(f"{trial} {outcome}", file=sys.stderr, flush=True)

    def outcome(self, workload: str, rule: str, target: float, seed: int) -> Outcome:
        """Of one that was run."""
        return self._journal.outcomes[Trial(workload, rule, target, seed)]

    def search(self, rules: Sequence[str], workloads: Sequence[str]) -> list[Row]:
        """Every threshold, on the seed that is for that."""
        tried = [
            (workload, rule, target)
            for rule in rules
            for target in TARGETS[rule]
            for workload in workloads
        ]
        self.run([Trial(*each, TUNED_ON) for each in tried])
        return [
            Row(workload, rule, target, (self.outcome(workload, rule, target, TUNED_ON),))
            for workload, rule, target in tried
        ]

    def compare(self, tried: Sequence[Row], seeds: Sequence[int]) -> list[Row]:
        """The thresholds that were found, on other seeds."""
        results: dict[tuple[str, str], dict[float, tuple[float, float]]] = {}
        for row in tried:
            one = row.outcomes[0]
            by_target = results.setdefault((row.workload, row.rule), {})
            by_target[row.target] = one.attainment, one.replica_hours
        found = [
            (workload, rule, best(by_target, results[workload, OURS][1.0][0]))
            for (workload, rule), by_target in results.items()
        ]
        self.run([Trial(*each, seed) for each in found for seed in seeds])
        return [Row(*each, [self.outcome(*each, seed) for seed in seeds]) for each in found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line. 2: the trace is not there."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(words)
    began_s = time.monotonic()
    seeds = range(TUNED_ON + 1, TUNED_ON + 1 + (1 if args.quick else args.seeds))
    workloads = args.workloads.split(",") if args.workloads else list(WORKLOADS)
    if args.quick:
        workloads = ["flash"]
    if not (args.traces / TRACE).exists():
        print(Unavailable(f"no {TRACE} in the traces folder"), file=sys.stderr)
        return 2
    machine = describe(ROOT)
    journal = Journal(args.journal, machine["commit"])
    with ProcessPoolExecutor(args.jobs) as pool:
        bench = Bench(args.traces, pool, journal)
        tried = bench.search(list(RULES), workloads)
        rows = bench.compare(tried, seeds)
    for name in workloads:
        print(f"## {name}: {WORKLOADS[name].about}\n")
        print(table([row for row in rows if row.workload == name]), end="\n\n")
    if args.record:
        set_up = {
            "command": " ".join(["python -m tests.bench.scaling", *words]),
            "took_s": round(time.monotonic() - began_s),
            "cpu_s of all runs": round(journal.cpu_s),
            "seeds": f"thresholds on {TUNED_ON}, figures on {', '.join(map(str, seeds))}",
            "replica": str(SPEC),
            "cold start": f"{COLD_START_S:g} s, spread by a tenth either way",
            "autoscaler": str(Behaviour()),
            "settings": str(ScaleSettings().document()),
        }
        about = {name: WORKLOADS[name].about for name in workloads}
        date = time.strftime("%Y-%m-%d")
        record = Record(date, machine, set_up, about, tried, rows)
        print(write(record, ROOT / "docs" / "benchmarks").relative_to(ROOT))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute: the flash crowd, one seed")
    parser.add_argument("--workloads", help=f"apart by commas: {', '.join(WORKLOADS)}")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument(
        "--traces",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "traces",
        help="where the traces lie (default: shared/data/traces beside the checkout)",
    )
    parser.add_argument(
        "--journal",
        type=Path,
        help="a file that keeps what runs have come to: begun again at the same commit, the whole "
        "it goes on where it was",
    )
    parser.add_argument("--record", action="store_true", help="keep a copy in docs/benchmarks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
