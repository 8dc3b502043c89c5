"""`python -m tests.bench.hotpath`: what a request, a chunk and an idle gateway cost, beside peers.

Prints a table of costs, the verdict on each target and what to know about them;
`--record` keeps a dated copy under docs/benchmarks. Ends with 0 when every subject asked for was
measured (whatever the verdicts say), 1 when one failed, 2 when nothing could be measured.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from tests.bench.figures import verdicts
from tests.bench.hotspots import WORKLOADS, profile
from tests.bench.load import LoadFailed
from tests.bench.machine import describe
from tests.bench.measure import FULL, QUICK, Bench, Plan, Runner
from tests.bench.report import Record, notes, table, verdict_lines, write
from tests.bench.subjects import (
    HEADRACE,
    RUST_PEERS,
    SUBJECTS,
    Subject,
    Unavailable,
    prepare,
    prepare_other,
)

ROOT: Final = Path(__file__).resolve().parents[2]


def cache_folder() -> Path:
    """Where peers are installed: the user's cache, never the tree."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "headrace" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    args = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end_on_signal)
    affinity = os.sched_getaffinity(0)
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
            plan = QUICK if args.quick else FULL
            bench = Bench(
                plan, folder=Path(scratch), cache=cache_folder(), root=ROOT, python=args.python
            )
            with bench.stack:
                bench.start_replicas()
                if args.profile:
                    print(profile(bench, args.profile))
                    return 0
                return _compare(bench, args)
    except (LoadFailed, RuntimeError, Unavailable) as error:
        print(f"nothing was measured: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; every process has been stopped", file=sys.stderr)
        return 130
    finally:
        os.sched_setaffinity(0, affinity)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hotpath", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, wider ranges")
    parser.add_argument(
        "--subjects",
        default=",".join(SUBJECTS),
        help="which of them, apart by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--python",
        type=Path,
        default=Path(sys.executable),
        help="the interpreter that has the Headrace to be measured, such as one with the compiled "
        "wheel; headrace-pure is this one's",
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME[@PATH]=COMMAND",
        help="one more gateway; {port}, {replicas} and {replica_flags} in its command are filled "
        "in, and it must answer GET PATH (/health) when it is ready",
    )
    parser.add_argument(
        "--peer-policy", default="cache_aware", help="of the Rust peers (default: %(default)s)"
    )
    parser.add_argument("--record", action="store_true", help="keep a copy in docs/benchmarks")
    parser.add_argument(
        "--profile",
        choices=WORKLOADS,
        help="no comparison: sample Headrace's stacks (with py-spy) under one workload",
    )
    return parser


def _compare(bench: Bench, args: argparse.Namespace) -> int:
    subjects, skipped = _prepare(bench, args)
    began_s = time.monotonic()
    runners, failures = _measure(bench, subjects)
    if not runners:
        raise LoadFailed("; ".join(f"{name}: {why}" for name, why in (skipped | failures).items()))
    records = [runner.record() for runner in runners]
    judged = {
        "when calm": {record.name: record.calm() for record in records},
        "over all": {record.name: record.medians() for record in records},
    }
    record = Record(
        date=time.strftime("%Y-%m-%d"),
        machine=describe(ROOT),
        set_up=_set_up(bench, args, time.monotonic() - began_s),
        subjects=records,
        skipped=skipped | failures,
        verdicts={
            way: verdicts(costs, ours=HEADRACE, peers=RUST_PEERS) for way, costs in judged.items()
        },
    )
    lines = [*verdict_lines(record.verdicts), *notes(record)]
    print("\n" + table(record) + "\n\n" + "\n".join(lines))
    if args.record:
        print(f"recorded in {write(record, ROOT / 'docs' / 'benchmarks').relative_to(ROOT)}")
    return 1 if failures else 0


def _prepare(bench: Bench, args: argparse.Namespace) -> tuple[list[Subject], dict[str, str]]:
    names = [name for name in args.subjects.split(",") if name]
    unknown = sorted(set(names) - set(SUBJECTS))
    if unknown:
        raise Unavailable(f"no subject {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    subjects, skipped = [], {}
    for name in names:
        try:
            subjects.append(prepare(name, bench.surroundings, peer_policy=args.peer_policy))
        except Unavailable as reason:
            skipped[name] = str(reason)
    subjects += [prepare_other(text, bench.surroundings) for text in args.also]
    return subjects, skipped


def _measure(bench: Bench, subjects: Sequence[Subject]) -> tuple[list[Runner], dict[str, str]]:
    """Every round over every subject; one that fails is left out from there on."""
    runners, failures = [], dict[str, str]()
    for subject in subjects:
        try:
            runners.append(bench.start(subject))
            print(f"{subject.name} {subject.version}", flush=True)
        except LoadFailed as error:
            failures[subject.name] = str(error)
    for number in range(bench.plan.rounds):
        print(f"round {number + 1} of {bench.plan.rounds}", flush=True)
        for take in bench.loads():
            for runner in list(runners):
                try:
                    take(runner, number)
                except (LoadFailed, OSError) as error:
                    failures[runner.subject.name] = f"{error}\n{runner.child.log_tail()}"
                    runners.remove(runner)
    return runners, failures


def _set_up(bench: Bench, args: argparse.Namespace, took_s: float) -> dict[str, object]:
    command = "python -m tests.bench.hotpath"
    for flag in ("quick", "record"):
        command += f" --{flag}" if getattr(args, flag) else ""
    command += f" --subjects {args.subjects} --peer-policy {args.peer_policy}"
    command += "".join(f" --also {shlex.quote(text.partition('=')[0])}=..." for text in args.also)
    plan: Plan = bench.plan
    return {"command": command, "took_s": round(took_s), **asdict(plan), **asdict(bench.cores)}


def _end_on_signal(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
