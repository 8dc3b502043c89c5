"""`python -m tests.bench.cores`: what a second gateway on a second core brings.

A *cell* is a core with a gateway, a replica and a client on it, each asking as fast as it is
answered; so two cells on two cores do, at best, twice what one cell does on one. Measured, in turn:

    one         one cell
    strangers   two, whose gateways do not know of each other: what the machine itself costs
    linked      two, whose gateways tell each other
    workers     two, whose gateways are the workers of one (`--workers 2`), its port shared

All gateways have both replicas. Requests are unary, of 2 KB each, none like another. Prints
requests a second and CPU microseconds of gateways per request, medians and ranges over the rounds,
and what share of twice the first was reached; `--record` keeps a dated copy under docs/benchmarks.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing import Barrier, Pipe
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier as SharedBarrier
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import yaml

from tests.bench.figures import Spread
from tests.bench.keep import ROOT, keep
from tests.bench.load import ClosedLoop, Serials, run_closed_loop
from tests.bench.measure import wait_ready
from tests.bench.processes import Child, cpu_s, free_ports, running
from tests.bench.prompts import Book, write_book

SHAPES: Final = ("one", "strangers", "linked", "workers")
PLAN: Final = ClosedLoop(concurrency=32, warm_up_s=0.5, window_s=2.0)


class Cell(NamedTuple):
    """Where a client asks, and on which core."""

    core: int
    port: int


class Measured(NamedTuple):
    """Of one shape in one round."""

    per_s: float
    cpu_us: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cores", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="keep a copy in docs/benchmarks")
    args = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))[:2]
    book = write_book(seed=7, size_bytes=2048, is_stream=False, templates=512)
    found: dict[str, list[Measured]] = {shape: [] for shape in SHAPES}
    began_s = time.monotonic()
    for number in range(args.rounds):
        for shape in SHAPES:
            found[shape].append(measure(shape, cores, book))
        print(f"round {number + 1} of {args.rounds}", flush=True)
    text = table(found)
    print(text)
    if args.record:
        set_up = {
            "command": f"python -m tests.bench.cores --rounds {args.rounds} --record",
            "took_s": round(time.monotonic() - began_s),
        }
        raw = {shape: [each._asdict() for each in rounds] for shape, rounds in found.items()}
        print(keep("cores", "A second core", __doc__ or "", text, raw, set_up))
    return 0


def measure(shape: str, cores: Sequence[int], book: Book) -> Measured:
    """Start everything, ask for a while, and end it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        used = cores[: 1 if shape == "one" else 2]
        ports = free_ports(2)
        for core in used:
            mine = ports if shape == "one" else [ports[used.index(core)]]
            flags = [word for port in mine for word in ("--port", str(port))]
            command = (sys.executable, "-m", "tests.bench.upstream", *flags)
            child = stack.enter_context(
                running(f"replica-{core}", command, core=core, folder=folder, root=ROOT)
            )
            for port in mine:
                wait_ready(child, port, "/health")
        gateways, cells = _gateways(shape, used, ports, folder, stack)
        time.sleep(0.5)  # they have heard each other by then
        pids = [pid for gateway in gateways for pid in gateway.pids()]
        return _ask(cells, book, pids)


def _gateways(
    shape: str, cores: Sequence[int], replicas: Sequence[int], folder: Path, stack: ExitStack
) -> tuple[list[Child], list[Cell]]:
    """Up, ready and each on its core."""
    links = free_ports(len(cores))
    children, cells = [], []
    for at, core in enumerate(cores[:1] if shape == "workers" else cores):
        (port,) = free_ports(1)
        settings: dict[str, object] = {
            "accept": {"port": port},
            "fleet": {"replicas": [f"http://127.0.0.1:{each}" for each in replicas]},
        }
        if shape == "linked":
            others = [f"127.0.0.1:{each}" for each in links if each != links[at]]
            settings["peers"] = {"host": "127.0.0.1", "port": links[at], "addresses": others}
        elif shape == "workers":
            settings["peers"] = {"workers": len(cores)}
        file = folder / f"gateway-{at}.yaml"
        file.write_text(yaml.safe_dump(settings))
        command = (sys.executable, "-m", "gateway", "gateway", "--settings", str(file))
        child = stack.enter_context(
            running(f"gateway-{at}", command, core=core, folder=folder, root=ROOT)
        )
        wait_ready(child, port, "/readyz")
        children.append(child)
        cells.append(Cell(core, port))
    if shape == "workers":
        for pid, core in zip(children[0].pids()[1:], cores, strict=True):
            os.sched_setaffinity(pid, {core})
        cells = [Cell(core, cells[0].port) for core in cores]
    return children, cells


def _ask(cells: Sequence[Cell], book: Book, pids: Sequence[int]) -> Measured:
    """A client for each cell, all at once."""
    start, ends, clients = Barrier(len(cells)), [], []
    for cell in cells:
        ours, theirs = Pipe()
        ends.append(ours)
        client = os.fork()
        if not client:
            _client(cell, book, pids, theirs, start)
        clients.append(client)
    said = [end.recv() for end in ends]
    for client in clients:
        os.waitpid(client, 0)
    return Measured(
        sum(finished / wall_s for finished, wall_s, _ in said),
        1e6 * said[0][2] / sum(finished for finished, *_ in said),
    )


def _client(
    cell: Cell, book: Book, pids: Sequence[int], end: Connection, start: SharedBarrier
) -> NoReturn:
    """In a process of its own; its end of the pipe tells how many, in what time, at what CPU."""
    os.sched_setaffinity(0, {cell.core})
    try:
        start.wait()
        _, window = run_closed_loop(
            cell.port, book, PLAN, serials=Serials(), meter=lambda: cpu_s(pids)
        )
        end.send((window.finished, window.wall_s, window.meter))
    finally:
        os._exit(0)


def table(found: Mapping[str, Sequence[Measured]]) -> str:
    """Medians over the rounds, range in brackets."""
    base = Spread.of([each.per_s for each in found["one"]]).median
    lines = [
        "| gateways | requests / s | of twice one | CPU us / request |",
        "|---|---|---|---|",
    ]
    for shape, rounds in found.items():
        rate = Spread.of([each.per_s for each in rounds])
        cpu = Spread.of([each.cpu_us for each in rounds])
        share = "" if shape == "one" else f"{rate.median / base / 2:.2f}"
        lines.append(
            f"| {shape} | {rate.median:.0f} ({rate.low:.0f}-{rate.high:.0f}) | {share} "
            f"| {cpu.median:.0f} ({cpu.low:.0f}-{cpu.high:.0f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
