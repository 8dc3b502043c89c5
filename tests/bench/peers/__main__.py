"""`python -m tests.bench.peers`: the comparison of gateways over HTTP, from the command line.

Ends with 0 when every subject asked for was measured in every seed (whatever the verdicts say), 1
when one was not, 2 when nothing could be measured: without the trace, for example.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import FrameType
from typing import Final, NoReturn

from tests.bench.figures import Spread
from tests.bench.hotpath import ROOT, cache_folder
from tests.bench.load import LoadFailed
from tests.bench.machine import describe
from tests.bench.peers.figures import Figures, ratios, routing_cost_ms
from tests.bench.peers.measure import Site, measure, measure_capacity
from tests.bench.peers.report import Record, sentences, table, write
from tests.bench.peers.subjects import CONTENDERS, KV_AWARE, OURS, Contender, available
from tests.bench.peers.trace import OUTPUT_SCALE, SCALE, arrivals, plan, pressing
from tests.bench.processes import Cores
from tests.bench.routing.workloads import Unavailable
from tests.bench.subjects import PINS, RUST_PEERS

LOAD: Final = 0.80
_PRESSED_PER_REPLICA: Final = 12  # long enough for whole seconds of prefill on each


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(words)
    signal.signal(signal.SIGTERM, _end_on_signal)
    affinity = os.sched_getaffinity(0)
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
            site = Site(
                Path(scratch), cache_folder(), ROOT, Cores.allot(), args.replicas, args.python
            )
            os.sched_setaffinity(0, {site.cores.load})
            return _compare(site, args, words)
    except (LoadFailed, RuntimeError, Unavailable) as error:
        print(f"nothing was measured: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; every process has been stopped", file=sys.stderr)
        return 130
    finally:
        os.sched_setaffinity(0, affinity)


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(each.name for each in CONTENDERS)
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, fewer requests: 4 minutes")
    parser.add_argument("--record", action="store_true", help="keep a copy in docs/benchmarks")
    parser.add_argument("--seeds", type=int, help="how many (default: 3; quick: 1)")
    parser.add_argument("--requests", type=int, help="of each run (default: 4000; quick: 400)")
    parser.add_argument("--replicas", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument(
        "--subjects", default="", metavar="NAMES", help=f"apart by commas (default: all): {names}"
    )
    parser.add_argument(
        "--python",
        type=Path,
        default=Path(sys.executable),
        help="the interpreter that has the Headrace to be measured (.venv-compiled/bin/python)",
    )
    parser.add_argument(
        "--traces",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "traces",
        help="where the trace lies (default: shared/data/traces beside the checkout)",
    )
    return parser


def _compare(site: Site, args: argparse.Namespace, words: Sequence[str]) -> int:
    began_s = time.monotonic()
    comparison = Comparison(site, args)
    comparison.press()
    for seed in range(1, comparison.seeds + 1):
        comparison.run(seed)
    record = comparison.record(words, round(time.monotonic() - began_s))
    print("\n" + table(record) + "\n\n" + "\n".join(sentences(record)))
    if args.record:
        print(f"recorded in {write(record, ROOT / 'docs' / 'benchmarks').relative_to(ROOT)}")
    return 1 if record.skipped else 0


class Comparison:
    """What has been measured so far. A subject that fails once is out from there on.

    Raises Unavailable where a subject is unknown or the trace is missing or too short.
    """

    def __init__(self, site: Site, args: argparse.Namespace) -> None:
        self.seeds: int = args.seeds or (1 if args.quick else 3)
        self._requests: int = args.requests or (400 if args.quick else 4000)
        self._site = site
        self._traces: Path = args.traces
        self._contenders = _chosen(args.subjects)
        for seed in range(1, self.seeds + 1):
            arrivals(self._traces, seed, self._requests)
        missing = available(self._contenders, site.cache)
        self._skipped = {
            each.name: missing[each.gateway] for each in self._contenders if each.gateway in missing
        }
        self._capacity_tokens_s = 0.0
        self._orders: list[list[str]] = []
        self._runs: dict[str, list[Figures]] = {
            each.name: [] for each in self._contenders if each.name not in self._skipped
        }

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self._runs)}, {len(self._orders)} seeds done>"

    def press(self) -> None:
        """Measure what the replicas can do without a gateway."""
        pressed = _PRESSED_PER_REPLICA * self._site.replicas
        asks = pressing(arrivals(self._traces, 1, pressed))
        self._capacity_tokens_s = measure_capacity(self._site, asks)
        print(f"capacity: {self._capacity_tokens_s:.0f} prompt tokens a second", flush=True)

    def run(self, seed: int) -> None:
        """Every subject once, in the seed's order, on the seed's stretch of the trace."""
        drawn = arrivals(self._traces, seed, self._requests)
        asks, ideal = plan(drawn, load=LOAD, capacity_tokens_s=self._capacity_tokens_s)
        order = [each for each in self._contenders if each.name in self._runs]
        Random(seed).shuffle(order)
        self._orders.append([each.name for each in order])
        print(f"seed {seed}: {len(asks)} requests in {asks[-1].at_s:.0f} s", flush=True)
        for contender in order:
            name = contender.name
            try:
                run = measure(self._site, contender, asks, ideal)
            except (LoadFailed, OSError, ValueError) as error:
                self._skipped[name] = str(error)
                del self._runs[name]
                print(f"  {name}: failed: {error}", flush=True)
                continue
            self._runs[name].append(run)
            print(f"  {name}: mean {run.mean_s:.3f} s, {run.errors} errors", flush=True)

    def record(self, words: Sequence[str], took_s: int) -> Record:
        """All of it. Raises LoadFailed when there is nothing."""
        if not self._runs:
            raise LoadFailed("; ".join(f"{name}: {why}" for name, why in self._skipped.items()))
        peers = [each.name for each in self._contenders if not each.is_ours]
        return Record(
            date=time.strftime("%Y-%m-%d"),
            machine=describe(ROOT),
            set_up={
                "command": " ".join(["python -m tests.bench.routing --http", *words]),
                "took_s": took_s,
                "seeds": self.seeds,
                "requests": self._requests,
                "replicas": self._site.replicas,
                "capacity_tokens_per_s": round(self._capacity_tokens_s),
                "load": LOAD,
                "prompt_lengths_divided_by": SCALE,
                "reply_lengths_divided_by": OUTPUT_SCALE,
                **{name: PINS[name] for name in RUST_PEERS},
            },
            orders=self._orders,
            runs=self._runs,
            skipped=self._skipped,
            ratios=ratios(self._runs, ours=OURS.name, peers=peers, kv_aware=KV_AWARE.name),
            routing_cost_ms=self._routing_costs(),
        )

    def _routing_costs(self) -> dict[str, Spread]:
        floors = {each.gateway: each.name for each in self._contenders if each.is_floor}
        return {
            each.name: routing_cost_ms(self._runs[each.name], self._runs[floors[each.gateway]])
            for each in self._contenders
            if each.name in self._runs
            and not each.is_floor
            and floors.get(each.gateway) in self._runs
        }


def _chosen(text: str) -> list[Contender]:
    """The subjects of these names, in our order. Raises Unavailable for an unknown one."""
    names = [name for name in text.split(",") if name] or [each.name for each in CONTENDERS]
    unknown = sorted(set(names) - {each.name for each in CONTENDERS})
    if unknown:
        raise Unavailable(f"no subject {', '.join(unknown)}")
    return [each for each in CONTENDERS if each.name in names]


def _end_on_signal(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
