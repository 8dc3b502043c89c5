"""A scenario: the question it answers, the load, how long, and what users were promised.

Pure but for the files it names. `Plan` is what drives a run: instants and sessions by number.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import msgspec
import yaml

from loadtest.arrivals import Arrivals, OwnTimes, Poisson, Users
from loadtest.samples import Objectives
from loadtest.traces import Replayed, TraceError, read_trace
from loadtest.workloads import AtLeastOne, Replay, Session, SharedPrefix, Workload


class ScenarioError(ValueError):
    """A scenario cannot be run; the message is for whoever wrote it."""


class Fleet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is started where no URL is given: simulated replicas behind a gateway, on loopback."""

    replicas: AtLeastOne = 2
    profile: str = "fast"
    policy: str | None = None


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of one run but its target."""

    question: str
    arrivals: Arrivals = Poisson(4.0)
    workload: Workload = SharedPrefix()
    objectives: Objectives = Objectives()
    seed: int = 1
    duration_s: float = 30.0
    warm_up_s: float = 5.0
    """Of the duration; what was intended in it is in no figure."""
    patience_s: float = 30.0
    """How long after the last arrival replies may still come; then they count as unfinished."""
    force_length: bool = True
    """Send `ignore_eos`, so that every reply is as long as it may be. Not all endpoints take it."""
    allowed_late_s: float = 0.010
    """How late (p99) the generator may be before its figures are refused; a twentieth of the median
    TTFT is forgiven in any case."""
    fleet: Fleet = Fleet()

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up_s < self.duration_s:
            raise ValueError("the warm-up is shorter than the run")
        if isinstance(self.arrivals, OwnTimes) and not isinstance(self.workload, Replay):
            raise ValueError("arrivals of kind own-times need a workload of kind replay")  # noqa: TRY004

    @property
    def is_open_loop(self) -> bool:
        """Whether requests come whatever the replies do."""
        return not isinstance(self.arrivals, Users)


class Plan:
    """Who asks what, and when: a scenario with its trace in memory."""

    def __init__(self, scenario: Scenario) -> None:
        """Raises ScenarioError where its trace is missing or is none."""
        self.scenario = scenario
        self._trace: list[Replayed] = []
        if isinstance(scenario.workload, Replay):
            self._trace = _trace_of(scenario.workload)

    def __repr__(self) -> str:
        return f"<Plan {self.scenario.question!r}>"

    def instants(self) -> Iterator[float]:
        """When sessions begin, in an open loop."""
        arrivals, duration_s = self.scenario.arrivals, self.scenario.duration_s
        if isinstance(arrivals, Users):
            raise TypeError("users of a closed loop begin when they please")
        if isinstance(arrivals, OwnTimes):
            return arrivals.replay([request.at_s for request in self._trace], duration_s)
        return arrivals.instants(self.scenario.seed, duration_s)

    def session(self, number: int) -> Session:
        """What session `number` asks; a trace that is too short starts again."""
        workload = self.scenario.workload
        if isinstance(workload, Replay):
            return workload.session_of(self._trace[number % len(self._trace)])
        return workload.session(self.scenario.seed, number)


def _trace_of(workload: Replay) -> list[Replayed]:
    try:
        with Path(workload.trace).open(encoding="utf-8") as lines:
            return read_trace(lines)
    except (OSError, TraceError) as error:
        raise ScenarioError(f"{workload.trace}: {error}") from error


def read_scenario(text: str) -> Scenario:
    """A scenario from YAML. Raises ScenarioError, which says what is wrong where."""
    try:
        return msgspec.convert(yaml.safe_load(text), Scenario)
    except (msgspec.ValidationError, yaml.YAMLError, ValueError) as error:
        raise ScenarioError(str(error)) from error


def shipped() -> list[str]:
    """The names of the scenarios that come with the package."""
    folder = resources.files("loadtest") / "scenarios"
    return sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_scenario(name_or_path: str) -> Scenario:
    """A shipped scenario by its name, or a file. Raises ScenarioError."""
    if name_or_path in shipped():
        text = (resources.files("loadtest") / "scenarios" / f"{name_or_path}.yaml").read_text()
    elif Path(name_or_path).is_file():
        text = Path(name_or_path).read_text(encoding="utf-8")
    else:
        raise ScenarioError(f"no scenario {name_or_path!r}: {', '.join(shipped())}, or a file")
    try:
        return read_scenario(text)
    except ScenarioError as error:
        raise ScenarioError(f"{name_or_path}: {error}") from error
