"""Which engine can this machine run? Facts in, a choice and its reason out.

`look` gathers the facts; `choose_engine` decides and is pure. The reason is a sentence for the
user: it is printed whether the choice was theirs or ours.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

from serving.engine_args import EngineKind

GIB: Final = 1024**3

MEMORY_FOR_CPU_ENGINES_BYTES: Final = 10 * GIB
"""Two replicas of the default model (3 GB each as measured), one of embeddings, the rest."""

_GPU: Final = re.compile(r"GPU [0-9]+: (?P<name>.+?) \(UUID")
_SLICE: Final = re.compile(r"\s+MIG (?P<profile>[0-9]+[gc]\.(?P<gib>[0-9]{1,4})gb\S*) ")

ENGINE_PYTHONS: Final = ((3, 11), (3, 12), (3, 13))
"""The Pythons our engine pins have wheels for."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU, or one MIG slice of it, as the driver lists it."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What bears on the choice of an engine."""

    system: str
    """As platform.system() says it: Linux, Darwin, Windows."""
    architecture: str
    """As platform.machine() says it: x86_64, aarch64, arm64."""
    memory_bytes: int | None
    """All of the machine's (or the container's) memory; None where it cannot be read."""
    cores: tuple[int, ...]
    """The cores we may run on."""
    gpus: tuple[Gpu, ...]
    python: tuple[int, int]


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine, and the sentence that says why."""

    kind: EngineKind
    reason: str


def choose_engine(machine: Machine, asked: EngineKind | None) -> EngineChoice:
    """The engine asked for, or (None: auto) the best one this machine can run."""
    if asked is not None:
        return EngineChoice(asked, f"{asked}, as asked")
    if machine.python not in ENGINE_PYTHONS:
        major, minor = machine.python
        return _simulator(f"the engines are not packaged for Python {major}.{minor}")
    if machine.system != "Linux" or machine.architecture != "x86_64":
        return _simulator(
            f"vLLM needs Linux on x86-64, this is {machine.system} on {machine.architecture}"
        )
    if machine.gpus:
        return EngineChoice(
            EngineKind.VLLM, f"vllm: found {len(machine.gpus)} x {machine.gpus[0].name}"
        )
    if machine.memory_bytes is not None and machine.memory_bytes < MEMORY_FOR_CPU_ENGINES_BYTES:
        have, need = machine.memory_bytes / GIB, MEMORY_FOR_CPU_ENGINES_BYTES // GIB
        return _simulator(f"vLLM on CPU needs {need} GB of memory, this machine has {have:.1f}")
    return EngineChoice(EngineKind.VLLM_CPU, "vllm-cpu: Linux on x86-64, no NVIDIA GPU found")


def share_cores(cores: tuple[int, ...], replicas: int) -> list[tuple[int, ...]]:
    """Give each replica cores of its own, as evenly as they go; with too few, replicas share.

    >>> share_cores((0, 1, 2, 3, 4), 2)
    [(0, 1), (2, 3)]
    >>> share_cores((0, 1), 3)
    [(0,), (1,), (0,)]
    """
    each = max(1, len(cores) // replicas)
    starts = [(index * each) % max(1, len(cores)) for index in range(replicas)]
    return [cores[start : start + each] for start in starts]


def _simulator(why: str) -> EngineChoice:
    return EngineChoice(EngineKind.SIM, f"the simulator instead of a real model: {why}")


def look() -> Machine:
    """Gather the facts about the machine we run on."""
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        memory_bytes=_memory_bytes(),
        cores=_cores(),
        gpus=_gpus(),
        python=sys.version_info[:2],
    )


def _cores() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):  # not on macOS, not on Windows
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _memory_bytes() -> int | None:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        with open("/sys/fs/cgroup/memory.max") as limit:
            return min(total, int(limit.read()))
    except (OSError, ValueError):  # no cgroup, or the word "max"
        return total


def _gpus() -> tuple[Gpu, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    asked = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    return read_slices(_said([tool, "-L"])) or read_gpus(_said(asked))


def _said(command: list[str]) -> str:
    """What a tool prints; nothing if it fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout


def read_slices(listing: str) -> tuple[Gpu, ...]:
    """The MIG slices that `nvidia-smi -L` lists below their GPUs; where GPUs are cut, only those
    compute.
    """
    found, whole = [], ""
    for line in listing.splitlines():
        if (gpu := _GPU.match(line)) is not None:
            whole = gpu["name"]
        elif (mig := _SLICE.match(line)) is not None:
            found.append(Gpu(f"{whole} MIG {mig['profile']}", int(mig["gib"]) * GIB))
    return tuple(found)


def read_gpus(listing: str) -> tuple[Gpu, ...]:
    """The lines `NAME, MIB`; a line without a number (memory that the CPU shares) counts as 0."""
    found = []
    for line in listing.splitlines():
        name, _, mib = (part.strip() for part in line.rpartition(","))
        if name:
            found.append(Gpu(name, int(mib) * 1024**2 if mib.isascii() and mib.isdecimal() else 0))
    return tuple(found)
