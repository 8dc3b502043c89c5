"""The machine and the commit a benchmark ran on, in words that do not name the machine itself."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def describe(root: Path) -> dict[str, str]:
    """Processor, cores, memory, kernel, Python and commit; "unknown" where it cannot be learnt."""
    return {
        "processor": _field(Path("/proc/cpuinfo"), "model name"),
        "cores": str(os.cpu_count() or "unknown"),
        "memory": _field(Path("/proc/meminfo"), "MemTotal"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "commit": commit(root),
    }


def commit(root: Path) -> str:
    """The short commit, with "-changed" when the tree differs from it."""
    name = _git(root, "rev-parse", "--short=10", "HEAD")
    if not name:
        return "unknown"
    return name + ("-changed" if _git(root, "status", "--porcelain", "--", "gateway") else "")


def new_name(folder: Path, stem: str) -> str:
    """`stem`, or with -2, -3 ... behind it: a record is added to a folder, never written over."""
    names, number = {each.stem for each in folder.glob(f"{stem}*")}, 1
    while (name := stem if number == 1 else f"{stem}-{number}") in names:
        number += 1
    return name


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ("git", *arguments), cwd=root, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _field(path: Path, name: str) -> str:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return "unknown"
    values = [line.partition(":")[2].strip() for line in lines if line.startswith(name)]
    return values[0] if values else "unknown"
