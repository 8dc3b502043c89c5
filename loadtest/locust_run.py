"""A scenario under Locust, on one process or many: the shares, the statistics, the report.

The master's word to spawn users bears what each worker is to send, as one of Locust's options: to
Locust a worker is ready before it has called the locustfile's listeners, and a message of our own
could come too early and be lost. In an open loop every worker begins its sessions at their
instants, however many Locust users there are; in a closed one each Locust user is one of the
scenario's. Samples travel to the master with Locust's own reports, every three seconds, and so does
what each generator cost. When all shares are done the test is over, and the master writes the
report.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import gevent
import msgspec
from locust.env import Environment
from locust.runners import STATE_INIT, STATE_MISSING, LocalRunner, MasterRunner, WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC

from loadtest.drive import Driver
from loadtest.overhead import Overhead, Watch
from loadtest.record import Record
from loadtest.run import KEY_VARIABLE, EndpointError, Outcome, Target, models_of, run_of
from loadtest.samples import Sample
from loadtest.scenario import Plan
from loadtest.servers import Servers
from loadtest.stream import Client, Endpoint
from loadtest.users import log_sample
from loadtest.written import file_stem, write_reports

_KEY = "headrace"
_LOOK_S = 1.0
_log = logging.getLogger(__name__)


class _Report(msgspec.Struct):
    """What a worker has to tell its master since the last time."""

    samples: list[Sample]
    overhead: Overhead | None = None
    """Once its share is done."""


class _Orders(msgspec.Struct):
    """What the master tells its workers of the run that begins."""

    model: str
    shares: dict[str, tuple[int, int]]
    """By worker, which share of how many: who joins a run later has none of it."""


class Generator:
    """One process's share of a scenario, and what has been gathered of it."""

    def __init__(self, environment: Environment, plan: Plan, target: Target) -> None:
        self.overhead: Overhead | None = None
        self.samples: list[Sample] = []
        self._environment = environment
        self._client = Client(target.endpoint)
        self._watch = Watch()
        self._plan = plan
        self._events = 0
        self.driver = Driver(plan, self._client, target.model, self._take)

    def __repr__(self) -> str:
        return f"<Generator, {len(self.samples)} samples>"

    def run(self, share: int, of: int) -> None:
        """The whole share."""
        self._watch.start()
        try:
            if self._plan.scenario.is_open_loop:
                self.driver.run(share, of)
            else:
                self.driver.host()
        finally:
            self.overhead = self._watch.stop(self._events)
            self._client.close()

    def handed_over(self) -> _Report:
        """What has been gathered since this was last asked."""
        samples, self.samples = self.samples, []
        return _Report(samples, self.overhead)

    def _take(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._events += len(sample.gaps_s) + 1
        good = self._plan.scenario.objectives.met_by(sample)
        log_sample(self._environment, sample, good)


class ScenarioRun:
    """The run of one Locust process: local, worker or master."""

    def __init__(self, environment: Environment, plan: Plan, name: str, folder: Path) -> None:
        """Raises EndpointError where there is none, or it does not say what it serves."""
        try:
            endpoint = Endpoint.of(environment.host or "", api_key=os.environ.get(KEY_VARIABLE))
        except ValueError as error:
            raise EndpointError(f"{error}: say --host") from error
        model = getattr(environment.parsed_options, "model", None) or ""
        if not model and not isinstance(environment.runner, WorkerRunner):
            model = models_of(endpoint)[0]
        self._environment = environment
        self._plan = plan
        self._target = Target(endpoint, model, name, name)
        self._folder = folder
        self._generator: Generator | None = None
        self._numbers = count()
        self._gathered: list[Sample] = []
        self._overheads: dict[str, Overhead] = {}
        self._shares = 1
        self._watcher: gevent.Greenlet[[], None] | None = None
        self._servers: Servers | None = None
        self._started_at = datetime.now(UTC)
        self._is_written = False
        self._listen()

    def _listen(self) -> None:
        events = self._environment.events
        events.test_start.add_listener(self._begin)
        events.test_stop.add_listener(self._write)
        events.report_to_master.add_listener(self._tell)
        events.worker_report.add_listener(self._hear)
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner) and runner.worker_state != STATE_INIT:
            self._begin()  # the word to spawn was there before this listened

    def use(self) -> None:
        """One Locust user of a closed loop, until the time is up."""
        if self._generator is not None and not self._plan.scenario.is_open_loop:
            self._generator.driver.use(self._numbers)

    def _begin(self, **_: Any) -> None:
        runner = self._environment.runner
        self._gathered, self._overheads, self._is_written = [], {}, False
        self._started_at = datetime.now(UTC)
        if not isinstance(runner, WorkerRunner):
            self._servers = Servers(self._target.endpoint)
            self._servers.start()
        if isinstance(runner, MasterRunner):
            workers = sorted(client.id for client in runner.clients.ready)
            self._shares = len(workers)
            shares = {worker: (number, len(workers)) for number, worker in enumerate(workers)}
            orders = _Orders(self._target.model, shares)
            setattr(self._environment.parsed_options, _KEY, msgspec.to_builtins(orders))
            self._watcher = gevent.spawn(self._watch_over, runner, workers)
            return
        share = self._ordered(runner) if isinstance(runner, WorkerRunner) else (0, 1)
        if share is None:
            _log.warning("this run began without this worker: it waits for the next")
            return
        self._generator = Generator(self._environment, self._plan, self._target)
        self._numbers = count(*share)
        gevent.spawn(self._generate, self._generator, share)

    def _watch_over(self, runner: MasterRunner, workers: list[str]) -> None:
        """Ends the run when a worker goes before it has told all: its share would be missing."""
        while True:
            gevent.sleep(_LOOK_S)
            for worker in workers:
                node = runner.clients.get(worker)
                if worker not in self._overheads and (node is None or node.state == STATE_MISSING):
                    _log.error("no report: %s has gone with its share of the load", worker)
                    self._environment.process_exit_code = 1
                    gevent.spawn(self._end)
                    return

    def _ordered(self, worker: WorkerRunner) -> tuple[int, int] | None:
        """This worker's share, if it has one, after the master has said which model to ask."""
        orders = msgspec.convert(getattr(self._environment.parsed_options, _KEY), _Orders)
        self._target = replace(self._target, model=orders.model)
        return orders.shares.get(worker.client_id)

    def _generate(self, generator: Generator, share: tuple[int, int]) -> None:
        generator.run(*share)
        if isinstance(self._environment.runner, LocalRunner):
            self._add("local", generator.handed_over())

    def _tell(self, data: dict[str, Any], **_: Any) -> None:
        if self._generator is not None:
            data[_KEY] = msgspec.msgpack.encode(self._generator.handed_over())

    def _hear(self, client_id: str, data: dict[str, Any], **_: Any) -> None:
        if _KEY in data:
            self._add(client_id, msgspec.msgpack.decode(data.pop(_KEY), type=_Report))

    def _add(self, generator_id: str, report: _Report) -> None:
        """Take what a generator tells; once all are done, end the test."""
        self._gathered += report.samples
        if report.overhead is not None and generator_id not in self._overheads:
            self._overheads[generator_id] = report.overhead
            if len(self._overheads) == self._shares:
                gevent.spawn(self._end)

    def _end(self) -> None:
        runner = self._environment.runner
        if runner is None:
            return
        # Locust writes its CSV at intervals, and not once more at the end
        gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.5)
        if getattr(self._environment.parsed_options, "headless", False):
            runner.quit()
        else:
            runner.stop()

    def _write(self, **_: Any) -> None:
        """The report, where all shares came to their end; the test may have been stopped before."""
        if self._watcher is not None:
            self._watcher.kill(block=False)
        if self._servers is None or self._is_written or len(self._overheads) < self._shares:
            return
        self._is_written = True
        self._servers.stop()
        outcome = Outcome(self._gathered, list(self._overheads.values()))
        done = run_of(self._plan.scenario, self._target, self._started_at, outcome, self._servers)
        if done.generator.bottleneck is not None:
            _log.error("no report: %s", done.generator.bottleneck)
            self._environment.process_exit_code = 3
            return
        name = self._target.scenario_name
        stem = self._folder / file_stem(name, name, self._started_at)
        _log.info("report: %s", write_reports(Record([done]), Record([done]), stem))
