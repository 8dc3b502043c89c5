"""`python -m tests.bench.telling`: what it costs that gateways tell each other, and how late it is.

Two processes with a real link between them on loopback, one pinned to each of two cores. One has so
many replicas, changes one of them now and then and wakes its link; the other takes in what it
hears. Figures of a replica's row are the instant of the change, so lateness is seen there. Prints
a line for each rate of changes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import Pipe
from random import Random
from socket import socket
from statistics import quantiles
from typing import Final, TypeVar

from gateway.clock import monotonic
from gateway.kv_cache import Placement
from gateway.peers.book import Address
from gateway.peers.link import Link, listen
from gateway.peers.rows import Key, Row, Rows, Topic
from gateway.peers.share import Change
from gateway.settings import PeersSettings
from tests.bench.keep import keep

FIGURES: Final = 12
MARKS: Final = bytes(80)
"""Of a prompt of 2 KB."""

T = TypeVar("T")


@dataclass(slots=True)
class Rooms:
    """As much of a gateway as a link sees. A `link.Rooms`."""

    replicas: int
    changed: dict[Key, Row] = field(default_factory=dict)
    sent: list[Placement] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    others: int = 0

    def rows(self) -> Rows:
        """All of them; unchanged ones are of no instant."""
        self.changed.clear()
        return {key_of(at): (0.0,) * FIGURES for at in range(self.replicas)}

    def news(self) -> Rows:
        """Those that have changed."""
        changed, self.changed = self.changed, {}
        return changed

    def heard(self, changes: Sequence[Change]) -> None:
        """How late is it?"""
        now = monotonic()
        self.late_s += [now - each.now[0] for each in changes if each.now and each.now[0]]

    def placements(self) -> Sequence[Placement]:
        """One for each change."""
        sent, self.sent = self.sent, []
        return sent

    def placed(self, placements: Sequence[Placement]) -> None:
        """What rooms make of them is not the link's."""

    def beside(self, gateways: Sequence[str], ours: int) -> None:
        """Has the other one been heard?"""
        self.others = len(gateways) - 1


def key_of(replica: int) -> Key:
    """Its row's."""
    return Topic.REPLICA, f"10.0.0.{replica}:8000"


async def tell(rooms: Rooms, sock: socket, to: Address, every_s: float, lasting_s: float) -> float:
    """Change something every so often, on the average; the CPU seconds that took, whole."""
    link, rng = Link(PeersSettings(), rooms, (monotonic, time.time), sock, (to,)), Random(1)
    speaking = asyncio.create_task(link.run())
    while not rooms.others:
        await asyncio.sleep(0.01)
    began, used = monotonic(), time.process_time()
    while monotonic() - began < lasting_s:
        await asyncio.sleep(rng.expovariate(1.0 / every_s))
        key = key_of(rng.randrange(rooms.replicas))
        rooms.changed[key] = (monotonic(),) * FIGURES
        rooms.sent.append(Placement(key[1], 0.25, MARKS))
        link.wake()
    used = time.process_time() - used
    speaking.cancel()
    await asyncio.gather(speaking, return_exceptions=True)
    return used


async def hear(rooms: Rooms, sock: socket, to: Address) -> tuple[float, int]:
    """Listen until the other one has said goodbye: CPU seconds, and how many datagrams."""
    link = Link(PeersSettings(), rooms, (monotonic, time.time), sock, (to,))
    speaking = asyncio.create_task(link.run())
    while not rooms.others:
        await asyncio.sleep(0.01)
    used = time.process_time()
    while rooms.others:
        await asyncio.sleep(0.05)
    used = time.process_time() - used
    speaking.cancel()
    await asyncio.gather(speaking, return_exceptions=True)
    return used, link.datagrams["heard"]


@dataclass(frozen=True, slots=True)
class Told:
    """One line of the table: rates a second, lateness and CPU a second in milliseconds."""

    changes: float
    datagrams: float
    late_p50_ms: float
    late_p99_ms: float
    tell_ms: float
    hear_ms: float


def measure(replicas: int, every_s: float, lasting_s: float) -> Told:
    """At one rate of changes."""
    settings = PeersSettings()
    ends = [listen(settings), listen(settings)]
    addresses: list[Address] = [end.getsockname() for end in ends]
    ours, theirs = Pipe()
    listener = os.fork()
    if not listener:
        rooms = Rooms(replicas)
        used_s, datagrams = asyncio.run(_on_core(1, hear(rooms, ends[1], addresses[0])))
        late_ms = [1e3 * each for each in rooms.late_s] or [0.0, 0.0]
        cuts = quantiles(late_ms, n=100)
        theirs.send((used_s, datagrams, cuts[49], cuts[98]))
        os._exit(0)
    told_s = asyncio.run(
        _on_core(0, tell(Rooms(replicas), ends[0], addresses[1], every_s, lasting_s))
    )
    heard_s, datagrams, median, most = ours.recv()
    os.waitpid(listener, 0)
    for end in ends:
        end.close()
    tell_ms, hear_ms = (1e3 * used_s / lasting_s for used_s in (told_s, heard_s))
    return Told(1 / every_s, datagrams / lasting_s, median, most, tell_ms, hear_ms)


async def _on_core(core: int, what: Awaitable[T]) -> T:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    try:
        return await what
    finally:
        os.sched_setaffinity(0, cores)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.telling", description=__doc__)
    parser.add_argument("--replicas", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each rate")
    parser.add_argument("--rates", default="5,50,500,2000", help="changes a second, by commas")
    parser.add_argument("--record", action="store_true", help="keep a copy in docs/benchmarks")
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(words)
    lines = [
        "| changes/s | datagrams/s | late ms, p50 | p99 | CPU ms/s to tell | to hear |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines))
    found = []
    for rate in args.rates.split(","):
        found.append(measure(args.replicas, 1.0 / float(rate), args.seconds))
        lines.append(_line(found[-1]))
        print(lines[-1], flush=True)
    if args.record:
        set_up = {"command": " ".join(["python -m tests.bench.telling", *words])}
        raw, text = [asdict(each) for each in found], "\n".join(lines)
        print(keep("telling", "What telling costs", __doc__ or "", text, raw, set_up))
    return 0


def _line(told: Told) -> str:
    return (
        f"| {told.changes:.0f} | {told.datagrams:.0f} | {told.late_p50_ms:.2f} "
        f"| {told.late_p99_ms:.2f} | {told.tell_ms:.2f} | {told.hear_ms:.2f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
