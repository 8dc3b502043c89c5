"""Asking each replica how it is, and what it serves.

One task per replica, all in one TaskGroup: a replica that hangs delays nobody. A task starts when
its replica joins and is cancelled when it drains.

    JOINING    at once, then every 0.2 s, then less often the longer it takes
    EJECTED    not at all until its cool-down is over; then once, as PROBING
    otherwise  every `probe_every_s`, give or take the jitter

A probe is GET /health, and where engines may sleep GET /is_sleeping. Before a replica may take its
first work, or work again after an ejection, and then at every fifth probe (adapters come and go),
GET /v1/models too, unless models are pinned.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.clock import Clock
from gateway.fetch import FetchFailed, fetch
from gateway.fleet.cards import read_cards
from gateway.fleet.health import Sign, cooled_down_at
from gateway.fleet.ledger import Replica
from gateway.fleet.roster import Roster
from gateway.settings import FleetSettings
from gateway.vocabulary import Health, Seconds

if TYPE_CHECKING:
    from random import Random

JOINING_EVERY_S: Final = 0.2
# A replica that took t to load is found ready within 2 % of t, and one that never comes up is not
# asked five times a second for ever.
JOINING_SLOWDOWN_RATIO: Final = 0.02
MODELS_EVERY_PROBES: Final = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Means:
    """What every watch shares."""

    roster: Roster
    settings: FleetSettings
    clock: Clock
    rng: Random
    tls: ssl.SSLContext | None


class _Rest(msgspec.Struct):
    """What GET /is_sleeping is answered."""

    is_sleeping: bool


class Prober:
    """Probes whatever the roster holds, for as long as `run` runs. A RosterListener."""

    def __init__(
        self,
        roster: Roster,
        settings: FleetSettings,
        clock: Clock,
        rng: Random,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls` is how https replicas are trusted; None: as the machine trusts."""
        self._means = _Means(roster, settings, clock, rng, tls)
        self._tasks: asyncio.TaskGroup | None = None
        self._watches: dict[Replica, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Prober of {len(self._watches)} replicas>"

    async def run(self) -> None:
        """Probe until cancelled; at most one `run` at a time."""
        roster = self._means.roster
        async with asyncio.TaskGroup() as self._tasks:
            roster.subscribe(self)
            try:
                for replica in roster.replicas:
                    if replica.health is not Health.DRAINING:
                        self._start(replica)
                await asyncio.Event().wait()
            finally:
                roster.unsubscribe(self)
                self._watches.clear()  # the group ends them

    def joined(self, replica: Replica) -> None:
        """Watch it."""
        log.info("replica %s: joined", replica.id)
        self._start(replica)

    def left(self, replica: Replica) -> None:
        """Its watch was stopped when it began to drain."""
        log.info("replica %s: left", replica.id)

    def changed(self, replica: Replica, was: Health, now: Health) -> None:
        """Stop at DRAINING, start again when it is named again; say it in the log."""
        if now is Health.DRAINING:
            self._watches.pop(replica).cancel()
        elif was is Health.DRAINING:
            self._start(replica)
        log.log(_level_of(was, now), "replica %s: %s, was %s", replica.id, now.value, was.value)

    def _start(self, replica: Replica) -> None:
        assert self._tasks is not None, "only while running is the roster listened to"
        watch = _Watch(replica, self._means)
        self._watches[replica] = self._tasks.create_task(watch.run(), name=f"probe {replica.id}")


def _level_of(was: Health, now: Health) -> int:
    """How loud a change is: what recurs at the pace of requests or of cool-downs is not."""
    match was, now:
        case (Health.EJECTED, Health.PROBING) | (Health.PROBING, Health.EJECTED):
            return logging.DEBUG
        case (_, Health.SUSPECT) | (Health.SUSPECT, Health.HEALTHY):
            return logging.DEBUG
        case (_, Health.EJECTED):
            return logging.WARNING
        case _:
            return logging.INFO


class _Watch:
    """The probing of one replica."""

    def __init__(self, replica: Replica, means: _Means) -> None:
        self._replica = replica
        self._means = means
        self._began_at = means.clock()
        self._probes_since_models = 0
        self._trouble: str | None = None  # what the log last said was wrong

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._visit()
            except Exception:
                log.exception("replica %s: the probe has a bug", self._replica.id)
            await asyncio.sleep(self._pause_s())

    async def _visit(self) -> None:
        """One probe and its sign, unless the replica is ejected and not yet cooled down."""
        replica, means = self._replica, self._means
        if replica.health is Health.EJECTED:
            now = means.clock()
            if now < cooled_down_at(replica.standing, means.settings):
                return
            means.roster.sign(replica, Sign.COOLED_DOWN, now)
        try:
            sign = await self._ask()
        except (FetchFailed, ValueError, RecursionError, msgspec.MsgspecError) as error:
            self._say(str(error))
            means.roster.sign(replica, Sign.PROBE_FAILURE, means.clock())
        else:
            self._say(None)
            means.roster.sign(replica, sign, means.clock())

    async def _ask(self) -> Sign:
        """What the answers are a sign of.

        Raises FetchFailed, ValueError or MsgspecError, saying what is wrong with them.
        """
        await self._get("/health")
        sign = Sign.PROBE_SUCCESS
        if self._means.settings.sleep_mode and await self._sleeps():
            sign = Sign.ASLEEP
        self._probes_since_models += 1
        is_known = self._replica.takes_work or self._replica.health is Health.ASLEEP
        if self._replica.address.models or (
            is_known and self._probes_since_models < MODELS_EVERY_PROBES
        ):
            return sign
        cards = read_cards(await self._get("/v1/models"))
        self._probes_since_models = 0
        self._means.roster.observe_models(self._replica, cards)
        return sign

    async def _sleeps(self) -> bool:
        """Does it say so? An engine that cannot sleep has no such path."""
        status, body = await self._fetch("/is_sleeping")
        return status == 200 and msgspec.json.decode(body, type=_Rest).is_sleeping

    async def _get(self, path: str) -> bytes:
        status, body = await self._fetch(path)
        if not 200 <= status < 300:
            raise ValueError(f"GET {path} was answered {status}")
        return body

    async def _fetch(self, path: str) -> tuple[int, bytes]:
        means, url = self._means, self._replica.address.url
        return await fetch(url + path, timeout_s=means.settings.probe_timeout_s, tls=means.tls)

    def _say(self, trouble: str | None) -> None:
        """One line when the news changes, not one per probe."""
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if trouble is None:
            log.info("replica %s: answers its probes", self._replica.id)
        elif self._replica.health is Health.JOINING:
            log.info("replica %s: not up yet: %s", self._replica.id, trouble)
        else:
            log.warning("replica %s: probe failed: %s", self._replica.id, trouble)

    def _pause_s(self) -> Seconds:
        """From the end of one visit to the next."""
        settings, now = self._means.settings, self._means.clock()
        if self._replica.health is Health.EJECTED:
            return max(0.0, cooled_down_at(self._replica.standing, settings) - now)
        pause_s = settings.probe_every_s
        if self._replica.health is Health.JOINING:
            loading_s = now - self._began_at
            pause_s = min(pause_s, max(JOINING_EVERY_S, loading_s * JOINING_SLOWDOWN_RATIO))
        jitter = settings.probe_jitter_ratio
        return pause_s * self._means.rng.uniform(1 - jitter, 1 + jitter)
