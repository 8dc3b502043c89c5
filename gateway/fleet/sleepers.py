"""Waking engines that sleep: vLLM keeps their weights in the CPU's memory, and is back in seconds.

Who sleeps is found out by the probes (GET /is_sleeping). One that sleeps takes no work; while a
request is held for a model that it serves, it is asked to wake (POST /wake_up), one replica of the
model at a time, until one is awake: again and again where it fails, and where it is found out only
then that one sleeps. One that was put to sleep over requests of ours, which it would keep until
somebody woke it, is woken at once.

Invariants. Nobody is asked to wake while it is being asked already. Whatever an engine answers, it
is only its own waking that fails.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.fetch import FetchFailed, fetch
from gateway.fleet.health import Sign
from gateway.vocabulary import Health

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.clock import Clock
    from gateway.fleet.ledger import Replica
    from gateway.fleet.roster import Roster
    from gateway.vocabulary import ModelName

WAKE_LIMIT_S: Final = 120.0  # weights come back at the speed of a bus
AGAIN_S: Final = 1.0  # between two looks for one that wakes

log = logging.getLogger(__name__)


class _Woken(msgspec.Struct):
    """What POST /wake_up is answered."""

    status: str


class Sleepers:
    """Wakes them, for as long as `run` runs. A RosterListener."""

    def __init__(
        self,
        roster: Roster,
        is_held: Callable[[ModelName], object],
        clock: Clock,
        tls: ssl.SSLContext | None,
    ) -> None:
        """`is_held` says whether requests are held for a model."""
        self._roster = roster
        self._is_held = is_held
        self._clock = clock
        self._tls = tls
        self._tasks: asyncio.TaskGroup | None = None
        self._models: set[ModelName] = set()  # for which one is being woken
        self._waking: set[Replica] = set()

    def __repr__(self) -> str:
        return f"<Sleepers: waking {len(self._waking)}>"

    async def run(self) -> None:
        """Until cancelled; at most one `run` at a time."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._roster.subscribe(self)
            try:
                await asyncio.Event().wait()
            finally:
                self._roster.unsubscribe(self)
                self._tasks = None  # the group ends them, and takes no more
                self._models.clear()

    def wanted(self, model: ModelName) -> None:
        """A request is held for it: wake a replica, if one sleeps."""
        if self._tasks is not None and model not in self._models:
            self._models.add(model)
            self._tasks.create_task(self._wake_one(model), name=f"wake {model}")

    def joined(self, replica: Replica) -> None:
        """Nobody knows yet whether it sleeps."""

    def left(self, replica: Replica) -> None:
        """If it is being asked, that fails by itself."""

    def changed(self, replica: Replica, was: Health, now: Health) -> None:
        """One that fell asleep over our requests has to go on with them."""
        if now is Health.ASLEEP and replica.inflight_requests and self._tasks is not None:
            self._tasks.create_task(self._wake(replica), name=f"wake {replica.id}")

    async def _wake_one(self, model: ModelName) -> None:
        """The first that can be woken, for as long as that is of use."""
        try:
            while self._is_held(model):
                for replica in self._roster.replicas:
                    sleeps = replica.health is Health.ASLEEP and model in replica.models
                    if sleeps and await self._wake(replica):
                        return
                await asyncio.sleep(AGAIN_S)
        finally:
            self._models.discard(model)

    async def _wake(self, replica: Replica) -> bool:
        """Is it awake?"""
        if replica in self._waking:
            return False
        self._waking.add(replica)
        log.info("replica %s: waking it", replica.id)
        try:
            status, body = await fetch(
                f"{replica.address.url}/wake_up",
                method="POST",
                timeout_s=WAKE_LIMIT_S,
                tls=self._tls,
            )
        except FetchFailed as error:
            log.warning("replica %s: it does not wake: %s", replica.id, error)
            return False
        finally:
            self._waking.discard(replica)
        if status == 200 and _is_awake(body):
            self._roster.sign(replica, Sign.PROBE_SUCCESS, self._clock())
            return True
        log.warning("replica %s: POST /wake_up was answered %d, not awake", replica.id, status)
        return False


def _is_awake(body: bytes) -> bool:
    try:
        return msgspec.json.decode(body, type=_Woken).status == "awake"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
