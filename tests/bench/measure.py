"""One run: replicas and subjects up together, every figure taken from each in turn, counts checked.

In every round all subjects take one load, one after the other, then the next load: whatever else
the machine does, for seconds at a time, falls on all of them alike. After each load the replicas'
counts must have grown by exactly what the client saw: a lost, doubled or invented request or event
ends the subject's part in the run.
"""

from __future__ import annotations

import http.client
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from tests.bench.figures import Figure, per_chunk_us, per_request_us, percentile, when_calm
from tests.bench.load import (
    ClosedLoop,
    LoadFailed,
    OpenLoop,
    Serials,
    Tally,
    Window,
    run_closed_loop,
    run_open_loop,
)
from tests.bench.processes import Child, Cores, cpu_s, free_ports, running
from tests.bench.prompts import Book, write_book
from tests.bench.report import SubjectRecord
from tests.bench.subjects import Subject, Surroundings

SMALL_BYTES: Final = 2048
LARGE_BYTES: Final = 128 * 1024
_READY_S: Final = 40.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How hard and how long; the same for every subject."""

    rounds: int = 10
    warm_up_s: float = 0.4
    window_s: float = 1.0
    small_concurrency: int = 32
    large_concurrency: int = 8
    streams: int = 64
    chunks: int = 256
    step_s: float = 0.005
    rate_per_s: float = 800.0
    seed: int = 7


FULL: Final = Plan()
QUICK: Final = Plan(rounds=3, warm_up_s=0.2, window_s=0.6, chunks=128)


@dataclass(frozen=True, slots=True)
class Books:
    """What the clients say, written before anything is measured."""

    small: Book
    streamed: Book
    large: Book

    @classmethod
    def write(cls, seed: int) -> Books:
        """Write all three from one seed."""
        return cls(
            write_book(seed=seed, size_bytes=SMALL_BYTES, is_stream=False, templates=512),
            write_book(seed=seed + 1, size_bytes=SMALL_BYTES, is_stream=True, templates=512),
            write_book(seed=seed + 2, size_bytes=LARGE_BYTES, is_stream=False, templates=32),
        )


@dataclass(slots=True)
class Runner:
    """A subject that is up, and what it has shown so far."""

    subject: Subject
    child: Child
    idle_bytes: int
    rounds: list[dict[Figure, float]] = field(default_factory=list)
    unary: list[Window] = field(default_factory=list)  # slices, of all rounds
    large: list[Window] = field(default_factory=list)
    streamed: list[Window] = field(default_factory=list)
    streamed_events: int = 0
    streamed_reads: int = 0
    requests: int = 0
    asides: int = 0

    def record(self) -> SubjectRecord:
        """What there is to report; the child must still be running."""
        return SubjectRecord(
            name=self.subject.name,
            version=self.subject.version,
            idle_bytes=self.idle_bytes,
            loaded_bytes=self.child.resident_bytes(),
            rounds=self.rounds,
            slices=self._slices(),
            reads_per_event=self.streamed_reads / max(1, self.streamed_events),
            asides_per_request=self.asides / max(1, self.requests),
        )

    def _slices(self) -> dict[Figure, list[float]]:
        unary = [per_request_us(each.meter, each.finished) for each in self.unary if each.finished]
        large = [per_request_us(each.meter, each.finished) for each in self.large if each.finished]
        unary_us = when_calm(unary)
        chunk = [
            per_chunk_us(each.meter, streams=each.finished, events=each.events, unary_us=unary_us)
            for each in self.streamed
            if each.events > each.finished
        ]
        return {Figure.UNARY: unary, Figure.LARGE: large, Figure.CHUNK: chunk}


class Bench:
    """Everything that is up during a run; used as the body of `with bench.stack`."""

    def __init__(
        self,
        plan: Plan,
        *,
        folder: Path,
        cache: Path,
        root: Path,
        python: Path = Path(sys.executable),
    ) -> None:
        """`python` is the interpreter that has the Headrace to be measured."""
        self.plan = plan
        self.stack = ExitStack()
        self.cores = Cores.allot()
        self.books = Books.write(plan.seed)
        self.surroundings = Surroundings(tuple(free_ports(2)), folder, cache, root, python)
        self._serials = Serials()

    def start_replicas(self) -> None:
        """Start both replicas and move this process to its own core."""
        flags = [part for port in self.surroundings.replicas for part in ("--port", str(port))]
        flags += ["--chunks", str(self.plan.chunks), "--step-s", str(self.plan.step_s)]
        command = (sys.executable, "-m", "tests.bench.upstream", *flags)
        child = self._run("replicas", command, self.cores.upstream)
        os.sched_setaffinity(0, {self.cores.load})
        wait_ready(child, self._direct, "/health")

    def start(self, subject: Subject) -> Runner:
        """Start a subject and wait for it; its memory at rest is read a moment later."""
        child = self._run(subject.name, subject.command, self.cores.subject)
        wait_ready(child, subject.port, subject.ready_path)
        time.sleep(1.0)  # whatever it still does after its first "ready" is part of being at rest
        return Runner(subject, child, child.resident_bytes())

    def loads(self) -> tuple[Callable[[Runner, int], None], ...]:
        """What is taken from every subject in every round, in this order."""
        return self._small, self._large, self._streamed, self._added

    def _small(self, runner: Runner, _number: int) -> None:
        _, window = self._load(runner, self.books.small, self.plan.small_concurrency)
        runner.rounds.append({Figure.UNARY: per_request_us(window.meter, window.finished)})
        runner.unary += window.slices

    def _large(self, runner: Runner, _number: int) -> None:
        _, window = self._load(runner, self.books.large, self.plan.large_concurrency)
        runner.rounds[-1][Figure.LARGE] = per_request_us(window.meter, window.finished)
        runner.large += window.slices

    def _streamed(self, runner: Runner, _number: int) -> None:
        tally, window = self._load(runner, self.books.streamed, self.plan.streams)
        figures = runner.rounds[-1]
        figures[Figure.CHUNK] = per_chunk_us(
            window.meter,
            streams=window.finished,
            events=window.events,
            unary_us=figures[Figure.UNARY],
        )
        runner.streamed += window.slices
        runner.streamed_events += tally.events
        runner.streamed_reads += tally.reads

    def _added(self, runner: Runner, number: int) -> None:
        direct = self.latency(None, number)
        latency = self.latency(runner.subject.port, number)
        runner.rounds[-1][Figure.ADDED_P50] = latency[0.5] - direct[0.5]
        runner.rounds[-1][Figure.ADDED_P99] = latency[0.99] - direct[0.99]

    def latency(self, port: int | None, number: int) -> dict[float, float]:
        """p50 and p99 in microseconds at the moderate rate; None asks a replica directly."""
        plan = self.plan
        arrivals = OpenLoop(plan.rate_per_s, plan.window_s, seed=plan.seed + number)
        port = self._direct if port is None else port
        tally = run_open_loop(port, self.books.small, arrivals, serials=self._serials)
        return {share: percentile(tally.latencies_s, share) * 1e6 for share in (0.5, 0.99)}

    def press(self, runner: Runner, book: Book, concurrency: int, window_s: float) -> Window:
        """Load a subject for a while; for profiles."""
        plan = ClosedLoop(concurrency, self.plan.warm_up_s, window_s)
        pids = runner.child.pids()
        port, serials = runner.subject.port, self._serials
        return run_closed_loop(port, book, plan, serials=serials, meter=lambda: cpu_s(pids))[1]

    @property
    def _direct(self) -> int:
        return self.surroundings.replicas[0]

    def _run(self, name: str, command: Sequence[str], core: int) -> Child:
        around = self.surroundings
        return self.stack.enter_context(
            running(name, command, core=core, folder=around.folder, root=around.root)
        )

    def _load(self, runner: Runner, book: Book, concurrency: int) -> tuple[Tally, Window]:
        plan = ClosedLoop(concurrency, self.plan.warm_up_s, self.plan.window_s)
        pids = runner.child.pids()
        before = replica_counts(self._direct)
        tally, window = run_closed_loop(
            runner.subject.port, book, plan, serials=self._serials, meter=lambda: cpu_s(pids)
        )
        after = replica_counts(self._direct)
        grown = {name: after[name] - before[name] for name in after}
        check_counts(tally, grown)
        runner.requests += grown["requests"]
        runner.asides += grown["asides"]
        return tally, window


def check_counts(tally: Tally, grown: Mapping[str, int]) -> None:
    """Compare what clients saw with how the replicas' counts have grown. Raises LoadFailed."""
    seen = {"requests": tally.sent, "events": tally.events, "broken_streams": 0}
    wrong = [
        f"{name}: {grown[name]} at the replicas, {count} at the client"
        for name, count in seen.items()
        if grown[name] != count
    ]
    if wrong or tally.finished != tally.sent:
        raise LoadFailed("miscounted: " + "; ".join(wrong or ["replies are missing"]))


def replica_counts(port: int) -> dict[str, int]:
    """The replicas' own counts so far."""
    counts: dict[str, object] = orjson.loads(_get(port, "/counts")[1])
    return {name: count for name, count in counts.items() if isinstance(count, int)}


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def wait_ready(child: Child, port: int, path: str) -> None:
    deadline_s = time.monotonic() + _READY_S
    while time.monotonic() < deadline_s:
        if child.process.poll() is not None:
            raise LoadFailed(f"{child.name} ended at once:\n{child.log_tail()}")
        try:
            if _get(port, path)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise LoadFailed(f"{child.name} is not ready after {_READY_S:.0f} s:\n{child.log_tail()}")
