"""What trials of one commit have come to, line by line in a file: a run that was stopped goes on
where it was.

Invariant. A line is of a commit and counts for that one only; what was changed beside it, for none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from tests.bench.scaling.report import Outcome


@dataclass(frozen=True, slots=True)
class Trial:
    """One run."""

    workload: str
    rule: str
    target: float
    seed: int


class Line(msgspec.Struct, frozen=True):
    """One that has ended, and the CPU seconds it took."""

    commit: str
    trial: Trial
    outcome: Outcome
    cpu_s: float


class Journal:
    """Of one commit, kept in `path`, or nowhere."""

    def __init__(self, path: Path | None, commit: str) -> None:
        self._path = path
        self._commit: Final = commit
        self.cpu_s = 0.0
        self.outcomes: Final[dict[Trial, Outcome]] = {}
        for line in self._read():
            self.outcomes[line.trial] = line.outcome
            self.cpu_s += line.cpu_s

    def __repr__(self) -> str:
        return f"<Journal of {len(self.outcomes)} at {self._commit}>"

    def _read(self) -> Iterator[Line]:
        if self._path is None or not self._path.exists() or self._commit.endswith("-changed"):
            return
        for raw in self._path.read_bytes().splitlines():
            line = msgspec.json.decode(raw, type=Line)
            if line.commit == self._commit:
                yield line

    def add(self, trial: Trial, outcome: Outcome, cpu_s: float) -> None:
        """It has ended."""
        self.outcomes[trial] = outcome
        self.cpu_s += cpu_s
        if self._path is not None:
            line = msgspec.json.encode(Line(self._commit, trial, outcome, cpu_s))
            with self._path.open("ab") as file:
                file.write(line + b"\n")
