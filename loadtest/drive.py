"""Runs sessions: in an open loop at their instants, in a closed one user by user.

In the open loop nothing waits for anything: a session is begun at its instant by a greenlet of its
own, however many are under way, and its first requests are timed from that instant. Later steps are
intended when the one before has been answered and thought about.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from time import perf_counter
from typing import Final

import gevent
from gevent.pool import Group

from loadtest.arrivals import Users
from loadtest.replies import Reply
from loadtest.samples import Marks, Sample, sample_of
from loadtest.scenario import Plan
from loadtest.stream import Client
from loadtest.workloads import EMBEDDINGS, Call, Session

_HOPELESS_S: Final = 2.0
"""So late, the run will be refused, and need not be gone through."""
_UNFINISHED: Final = "unfinished"


class Driver:
    """One generating process's share of a run: every `of`th session, from its `share` on."""

    def __init__(
        self, plan: Plan, client: Client, model: str, on_sample: Callable[[Sample], None]
    ) -> None:
        self.open_requests = 0
        self.sent = 0
        self.started_s = 0.0
        self._plan = plan
        self._client = client
        self._model = model
        self._on_sample = on_sample
        self._sessions = Group()

    def __repr__(self) -> str:
        return f"<Driver, {self.open_requests} open>"

    def run(self, share: int = 0, of: int = 1) -> None:
        """From the first instant until every reply has come, or patience has ended."""
        scenario, numbers = self._plan.scenario, count(share, of)
        self.started_s = perf_counter()
        try:
            if isinstance(scenario.arrivals, Users):
                for _ in range(share, scenario.arrivals.users, of):
                    self._sessions.spawn(self.use, numbers)
                gevent.sleep(scenario.duration_s)
            else:
                self._begin_sessions(share, of)
            self._sessions.join(timeout=scenario.patience_s)
        finally:
            self._sessions.kill()

    def host(self) -> None:
        """A closed loop whose users somebody else brings: there until their time is up."""
        scenario = self._plan.scenario
        self.started_s = perf_counter()
        gevent.sleep(scenario.duration_s)
        while self.open_requests and self.now_s() < scenario.duration_s + scenario.patience_s:
            gevent.sleep(0.05)

    def use(self, numbers: Iterator[int]) -> None:
        """One user of a closed loop: a session of each number until the time is up."""
        while self.now_s() < self._plan.scenario.duration_s:
            self._run(self._plan.session(next(numbers)), self.now_s())

    def now_s(self) -> float:
        """Since the start of the run."""
        return perf_counter() - self.started_s

    def _begin_sessions(self, share: int, of: int) -> None:
        for number, at_s in enumerate(self._plan.instants()):
            if number % of != share:
                continue
            session = self._plan.session(number)  # made up before its instant, not at it
            early_s = at_s - self.now_s()
            if early_s > 0:
                gevent.sleep(early_s)
            elif early_s < -_HOPELESS_S:
                return
            self._sessions.spawn(self._run, session, at_s)
        if (left_s := self._plan.scenario.duration_s - self.now_s()) > 0:
            gevent.sleep(left_s)

    def _run(self, session: Session, intended_s: float) -> None:
        """A session to its end; the first failure ends it, as it would a conversation."""
        step = next(session)
        while True:
            if step.think_s:
                gevent.sleep(step.think_s)
                intended_s += step.think_s
            if intended_s > self._plan.scenario.duration_s:
                return
            replies = self._ask_all(step.calls, intended_s)
            if any(reply.error for reply in replies):
                return
            intended_s = self.now_s()
            try:
                step = session.send([reply.text for reply in replies])
            except StopIteration:
                return

    def _ask_all(self, calls: tuple[Call, ...], intended_s: float) -> list[Reply]:
        others = [gevent.spawn(self._ask, call, intended_s) for call in calls[1:]]
        try:
            first = self._ask(calls[0], intended_s)
            gevent.joinall(others)
        finally:
            gevent.killall(others)
        return [first, *(each.value for each in others)]

    def _ask(self, call: Call, intended_s: float) -> Reply:
        body = {"model": self._model, **call.body}
        if self._plan.scenario.force_length and call.path != EMBEDDINGS:
            body["ignore_eos"] = True
        headers = call.headers
        if call.key_variable is not None:
            headers += (("Authorization", f"Bearer {os.environ.get(call.key_variable, '')}"),)
        self.open_requests += 1
        self.sent += 1
        marks, reply = Marks(self.started_s + intended_s), None
        try:
            reply = self._client.post(call.path, body, marks, headers)
            return reply
        finally:
            self.open_requests -= 1
            if reply is None:  # patience has ended, and with it this greenlet
                marks.ended_s = perf_counter()
            marks.shift(-self.started_s)
            error = _UNFINISHED if reply is None else reply.error
            self._on_sample(sample_of(marks, call.label, call.tenant, error))
