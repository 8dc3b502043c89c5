"""`python -m tests.bench.routing`: every policy on every workload, in virtual time.

With `--http` it is the comparison of real gateways in real time instead: see `tests.bench.peers`.

Prints a table for each workload; `--record` keeps a dated copy under docs/benchmarks. The figures
depend on the seeds alone. Ends with 0 when every workload ran, 1 when one could not be had, 2 when
none could.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Final

import tests.bench.peers.__main__ as peers
from tests.bench.machine import describe
from tests.bench.routing.adapters import ABLATIONS, GATEWAY, HELD, OURS
from tests.bench.routing.comparators import COMPARATORS
from tests.bench.routing.figures import Figure, figures, ideal_hit_ratio
from tests.bench.routing.held import Held
from tests.bench.routing.report import Record, WorkloadRecord, table, write
from tests.bench.routing.several import GATEWAYS, HELD_GATEWAYS
from tests.bench.routing.workloads import WORKLOADS, Source, Unavailable, Workload
from tests.bench.routing.world import RouterFactory, World

ROOT: Final = Path(__file__).resolve().parents[3]
EVERYTHING: Final[Mapping[str, RouterFactory]] = {**GATEWAY, **COMPARATORS, **ABLATIONS, **GATEWAYS}
POLICIES: Final[Mapping[str, RouterFactory]] = {
    name: factory
    for name, factory in {**GATEWAY, **COMPARATORS}.items()
    if name.removeprefix(OURS) not in COMPARATORS or name in COMPARATORS
}
"""What is run unless asked otherwise: of our own, those that are not among the others too."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--http" in words:
        return peers.main([word for word in words if word != "--http"])
    args = _parser().parse_args(words)
    args.requests = args.requests or (1000 if args.quick else 3000)
    args.seeds = args.seeds or (1 if args.quick else 3)
    began_s = time.monotonic()
    names = args.workloads or [
        name for name, each in WORKLOADS.items() if each.quick or not args.quick
    ]
    policies = {name: EVERYTHING[name] for name in args.policies or POLICIES}
    if args.ablation:
        policies = {OURS + "cache-aware": POLICIES[OURS + "cache-aware"], **ABLATIONS}
    if args.gateways:
        policies = dict(GATEWAYS)
    records, skipped = [], dict[str, str]()
    for name in names:
        try:
            records.append(_measure(name, WORKLOADS[name], policies, _sources(args)))
        except Unavailable as error:
            skipped[name] = str(error)
            print(f"## {name}: skipped: {error}\n", flush=True)
            continue
        print(f"## {name}: {records[-1].about}\n\n{table(records[-1])}\n", flush=True)
    took_s = round(time.monotonic() - began_s)
    print(f"took {took_s} s")
    if args.record and records:
        set_up = {
            "command": " ".join(["python -m tests.bench.routing", *words]),
            "took_s": took_s,
            "requests": args.requests,
            "seeds": args.seeds,
        }
        record = Record(time.strftime("%Y-%m-%d"), describe(ROOT), set_up, records, skipped)
        print(write(record, ROOT / "docs" / "benchmarks").relative_to(ROOT))
    if not records:
        return 2
    return 1 if skipped else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.routing", description=__doc__)
    parser.add_argument(
        "--http",
        action="store_true",
        help="real gateways over HTTP in real time; `--http --help` lists its own options",
    )
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer of everything")
    parser.add_argument(
        "--workloads", type=_Names(WORKLOADS), help=f"apart by commas: {', '.join(WORKLOADS)}"
    )
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--policies", type=_Names(EVERYTHING), help=f"apart by commas: {', '.join(POLICIES)}"
    )
    asked.add_argument(
        "--ablation", action="store_true", help="our price alone, with its terms changed"
    )
    asked.add_argument(
        "--gateways", action="store_true", help="our default policy alone, at several gateways"
    )
    parser.add_argument(
        "--requests", type=int, help="of each workload (default: 3000; quick: 1000)"
    )
    parser.add_argument("--seeds", type=int, help="how many (default: 3; quick: 1)")
    parser.add_argument(
        "--traces",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "traces",
        help="where the traces lie (default: shared/data/traces beside the checkout)",
    )
    parser.add_argument("--record", action="store_true", help="keep a copy in docs/benchmarks")
    return parser


class _Names:
    """Parses names apart by commas, each one of those known."""

    def __init__(self, known: Mapping[str, object]) -> None:
        self._known = known

    def __call__(self, text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in self._known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no such name: {', '.join(unknown)}")
        return names


def _sources(args: argparse.Namespace) -> list[Source]:
    return [Source(args.requests, seed, args.traces) for seed in range(1, args.seeds + 1)]


def _measure(
    name: str,
    workload: Workload,
    policies: Mapping[str, RouterFactory],
    sources: Sequence[Source],
) -> WorkloadRecord:
    """Every policy on the same arrivals, seed by seed."""
    found: dict[str, list[dict[Figure, float]]] = {policy: [] for policy in policies}
    for source in sources:
        arrivals = workload.draw(source)
        ideal = ideal_hit_ratio(arrivals)
        for policy, factory in policies.items():
            world = World(workload.specs)
            if policy == HELD or policy in HELD_GATEWAYS:
                world = Held(workload.specs, HELD_GATEWAYS.get(policy, 1))
            router = factory(workload.specs, world, Random(f"{source.seed}/{policy}"))
            run = world.run(arrivals, router)
            found[policy].append({**figures(run), Figure.IDEAL: ideal})
    return WorkloadRecord(name, workload.about, found)


if __name__ == "__main__":
    sys.exit(main())
