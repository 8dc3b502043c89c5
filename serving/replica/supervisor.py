"""Watches over one engine: starts it, warms it up, sees it hang or die, starts it again, drains it.

Ends when it is told to, or when the engine has died too often; then with the engine's exit code,
so that whoever runs the pod sees it fail. Invariants: ready means that this very run of the engine
has answered a warm-up request and nobody has asked us to drain; one engine at a time; when `run`
returns nothing of the engine is left.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from serving.asking import fetch
from serving.child import Child, ChildSettings, Patience
from serving.replica.endurance import Endurance
from serving.replica.settings import ReplicaSettings
from serving.replica.vitals import Vitals, read_load
from serving.replica.warm_up import warm_up

LOOK_S: Final = 2.0
IDLE_LOOK_S: Final = 0.1
DIED_BY_ITSELF: Final = 1
"""What we exit with when an engine that should have gone on ended with 0."""


class Standing(StrEnum):
    """Where the replica is, as /status says it."""

    STARTING = "starting"
    WARMING_UP = "warming up"
    READY = "ready"
    PAUSING = "pausing before a restart"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Watch:
    """What is watched, and by which rules."""

    child: ChildSettings
    served_name: str
    rules: ReplicaSettings
    answers_http: bool = True
    """False for a node that only helps another: it is ready when it runs."""


class Supervisor:
    """Owner of the engine's process and of what is said of it."""

    def __init__(
        self,
        watch: Watch,
        say: Callable[[str], None],
        listener: Callable[[bytes], None],
        clock: Callable[[], float],
    ) -> None:
        self.standing = Standing.STARTING
        self.is_draining = False
        self._watch = watch
        self._say = say
        self._listener = listener
        self._clock = clock
        self._asked = asyncio.Event()
        self._patience = Patience(clock)
        self._endurance = Endurance(watch.rules.supervision)
        self._child: Child | None = None
        self._ready_at: float | None = None

    def __repr__(self) -> str:
        return f"<Supervisor {self.standing} {self._child!r}>"

    @property
    def is_ready(self) -> bool:
        """May requests come?"""
        return self.standing is Standing.READY and not self.is_draining

    def status(self) -> dict[str, object]:
        """What we know, for people."""
        return {
            "standing": str(self.standing),
            "draining": self.is_draining,
            "deaths": self._endurance.deaths,
            "pid": self._child.pid if self._child else None,
            "url": self._watch.child.url,
        }

    def stop(self) -> None:
        """Asked once, the engine is asked; asked again, it is ended."""
        self.is_draining = True
        self._asked.set()
        if self._patience.asked_again() and self._child is not None:
            self._child.kill()

    async def run(self) -> int:
        """Until the engine has ended for good. Returns our exit code."""
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self._keep())
            asked = tasks.create_task(self._asked.wait())
            await asyncio.wait((keeping, asked), return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            if self._asked.is_set() and not keeping.done():
                self._say(f"{self._watch.child.name}: stopping")
                if self._child is not None:
                    await self._child.stop()
        self.standing = Standing.ENDED
        code = keeping.result()
        return 0 if self._asked.is_set() and code in (0, -signal.SIGTERM) else exit_code(code)

    async def drain(self) -> bool:
        """Not ready from now on; True once nothing has run for a while, False if time is up."""
        self.is_draining = True
        self._say("draining")
        where, rules = self._watch.child, self._watch.rules
        start = busy_at = self._clock()
        while (now := self._clock()) - start < rules.drain_s + rules.settle_s:
            page = await fetch(where.host, where.port, "/metrics", tls=where.tls)
            if page is not None and read_load(page).requests > 0.0:
                busy_at = now
            if now - busy_at >= rules.settle_s:
                return True
            await asyncio.sleep(IDLE_LOOK_S)
        return False

    async def _keep(self) -> int:
        """One run of the engine after another; the exit code of the last."""
        while True:
            code, ready_s = await self._run_once()
            if self._asked.is_set():
                return code
            pause_s = self._endurance.died(ready_s)
            if pause_s is None:
                self._say(f"the engine ended ({how(code)}), for good")
                return code or DIED_BY_ITSELF
            count, most = self._endurance.deaths, self._watch.rules.supervision.restarts
            self._say(
                f"the engine ended ({how(code)}): starting it again in {pause_s:g} s "
                f"({count} of {most})"
            )
            self.standing = Standing.PAUSING
            try:
                await asyncio.wait_for(self._asked.wait(), pause_s)
            except TimeoutError:
                continue
            return 0

    async def _run_once(self) -> tuple[int, float | None]:
        """The engine's exit code, and for how long it was ready."""
        self.standing, self._ready_at = Standing.STARTING, None
        child = self._child = Child(self._watch.child, self._clock, self._listener)
        await child.start()
        if self._asked.is_set():
            await child.stop()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._look_after(child))
            code = await child.until_gone()
            watching.cancel()
        ended_at = self._clock()
        return code, None if self._ready_at is None else ended_at - self._ready_at

    async def _look_after(self, child: Child) -> None:
        """From the start to the end of one run; ends it when it hangs."""
        rules = self._watch.rules.supervision
        if self._watch.answers_http:
            try:
                async with asyncio.timeout(rules.start_s):
                    if not await child.until_ready() or not await self._warmed_up():
                        return
            except TimeoutError:
                self._say(f"the engine hangs: not ready within {rules.start_s:g} s; ending it")
                child.kill()
                return
        self.standing, self._ready_at = Standing.READY, self._clock()
        took_s, name = self._ready_at - child.started_at, self._watch.child.name
        self._say(f"{name}: ready at {self._watch.child.url} after {took_s:.1f} s")
        if self._watch.answers_http:
            await self._until_it_hangs(rules.hang_s)
            self._say(f"the engine hangs: no life for {rules.hang_s:g} s; ending it")
            self.standing = Standing.STARTING
            child.kill()

    async def _warmed_up(self) -> bool:
        """Ask until a warm-up request is answered; cancelled when time is up."""
        self.standing = Standing.WARMING_UP
        where, timeout_s = self._watch.child, self._watch.rules.warm_up.timeout_s
        said = None
        while trouble := await warm_up(where, self._watch.served_name, timeout_s):
            if trouble != said:
                self._say(f"not warmed up: {trouble}")
                said = trouble
            await asyncio.sleep(LOOK_S)
        return True

    async def _until_it_hangs(self, hang_s: float) -> None:
        where = self._watch.child
        vitals = Vitals(self._clock())
        look_s = min(LOOK_S, hang_s / 4)
        while True:
            page = await fetch(where.host, where.port, "/metrics", look_s, where.tls)
            load = read_load(page) if page is not None else None
            # Asked to stop, it has its own time to end in.
            if vitals.look(load, self._clock()) >= hang_s and not self._asked.is_set():
                return
            await asyncio.sleep(look_s)


def how(code: int) -> str:
    """An exit code as asyncio gives it, in words."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def exit_code(code: int) -> int:
    """A process ended by signal N is reported as shells do, 128 + N."""
    return 128 - code if code < 0 else code
