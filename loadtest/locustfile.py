"""A scenario under Locust, with its web UI, its CSV and its workers.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --scenario multi-turn
    locust -f ... --headless --processes 4 -u 4        four generating processes

In an open loop the scenario says when sessions begin, and Locust's users only stand for it; in a
closed one they are its users, as many as Locust is told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gevent
from gevent.event import AsyncResult
from locust import User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.locust_run import ScenarioRun
from loadtest.run import EndpointError
from loadtest.scenario import Plan, ScenarioError, load_scenario, shipped


class ScenarioUser(User):
    """One user of the scenario."""

    scenario_run: ClassVar[AsyncResult[ScenarioRun]] = AsyncResult()
    """Once this process is set up: a worker may be told to spawn users before."""

    @task
    def use(self) -> None:
        """All sessions of this user; then nothing, until Locust stops it."""
        self.scenario_run.get().use()
        gevent.sleep(3600)


def _options(parser: LocustArgumentParser) -> None:
    own = parser.add_argument_group("headrace")
    own.add_argument(
        "--scenario", default="shared-prefix", env_var="HEADRACE_SCENARIO",
        help=f"{', '.join(shipped())}, or a YAML file",
    )  # fmt: skip
    own.add_argument(
        "--model", default="", env_var="HEADRACE_MODEL", help="default: the first at /v1/models"
    )
    own.add_argument(
        "--report-folder", default="loadtest-results", env_var="HEADRACE_REPORT_FOLDER",
        help="for the report: JSON, Markdown, HTML",
    )  # fmt: skip


def _init(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    if options is None:
        raise RuntimeError("this locustfile is run by the locust command")
    name, folder = Path(options.scenario).stem, Path(options.report_folder)
    try:
        plan = Plan(load_scenario(options.scenario))
        ScenarioUser.scenario_run.set(ScenarioRun(environment, plan, name, folder))
    except (EndpointError, ScenarioError) as error:
        raise SystemExit(f"headrace: {error}") from error  # Locust goes on after anything else


events.init_command_line_parser.add_listener(_options)
events.init.add_listener(_init)
