"""Where Headrace's time goes: its stacks sampled from outside while one workload runs.

py-spy reads the process's memory and pauses it for each sample, so the figures of a profiled run
are shares, not costs. Only samples taken on the CPU count. A native frame (a C function of
uvloop, the parsers or the kernel's doorstep) is told by its library.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Final

from tests.bench.figures import per_request_us
from tests.bench.load import LoadFailed
from tests.bench.measure import Bench
from tests.bench.prompts import Book
from tests.bench.subjects import HEADRACE, install, prepare

WORKLOADS: Final = ("unary", "stream", "large")
_SAMPLES_PER_S: Final = 400
_SAMPLE_S: Final = 8
_TOP: Final = 25
_ASLEEP: Final = "PyThread_acquire_lock_timed"


def profile(bench: Bench, workload: str) -> str:
    """Run one workload against Headrace alone and tell its costliest functions."""
    spy = install("py-spy", bench.surroundings.cache) / "py-spy"
    subject = prepare(HEADRACE, bench.surroundings, peer_policy="")
    runner = bench.start(subject)
    book, concurrency = _workload(bench, workload)
    bench.press(runner, book, concurrency, 1.0)
    folded = bench.surroundings.folder / "stacks.txt"
    command = (
        *(str(spy), "record", "--native", "--format", "raw"),
        *("--rate", str(_SAMPLES_PER_S), "--duration", str(_SAMPLE_S)),
        *("--pid", str(runner.child.process.pid), "--output", str(folded)),
    )
    spying = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        window = bench.press(runner, book, concurrency, _SAMPLE_S + 1.0)
        said, _ = spying.communicate(timeout=20)
    finally:
        spying.kill()
    if spying.returncode:
        raise LoadFailed(f"py-spy failed (it needs the right to trace): {said.strip()[-400:]}")
    cost_us = per_request_us(window.meter, window.finished)
    head = f"{workload}: {window.finished} requests, {window.events} events, "
    head += f"{cost_us:.1f} us CPU a request while sampled"
    return head + "\n\n" + hottest(folded)


def _workload(bench: Bench, workload: str) -> tuple[Book, int]:
    plan, books = bench.plan, bench.books
    return {
        "unary": (books.small, plan.small_concurrency),
        "stream": (books.streamed, plan.streams),
        "large": (books.large, plan.large_concurrency),
    }[workload]


def hottest(folded: Path) -> str:
    """Shares of the samples: by frame, by innermost Python function, and by what contains it.

    Threads asleep on a lock are left out: the tracer cannot tell them from working ones.
    """
    frame_alone, python_alone, within = Counter[str](), Counter[str](), Counter[str]()
    for line in folded.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        if _ASLEEP in stack:
            continue
        frames = [_name(frame) for frame in stack.split(";")]
        in_python = [name for name in frames if _is_python(name)] or ["no Python frame"]
        frame_alone[frames[-1]] += int(count)
        python_alone[in_python[-1]] += int(count)
        for name in set(in_python):
            within[name] += int(count)
    total = frame_alone.total()
    if not total:
        raise LoadFailed("no sample was taken")
    parts = [f"{total} samples"]
    for title, counter in (
        ("where the processor was", frame_alone),
        ("the Python function it was for, C and kernel included", python_alone),
        ("the Python functions that contain it", within),
    ):
        rows = [f"{count / total:6.1%}  {name}" for name, count in counter.most_common(_TOP)]
        parts.append("\n".join([title, *rows]))
    return "\n\n".join(parts)


def _is_python(name: str) -> bool:
    return name.endswith((".py)", "<string>)"))


def _name(frame: str) -> str:
    """A frame without its line number, its file with one folder at most."""
    function, _, place = frame.rpartition(" (")
    path = re.sub(r":\d+$", "", place.removesuffix(")"))
    return f"{function} ({'/'.join(path.split('/')[-2:])})"
