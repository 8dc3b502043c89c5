"""Listening to what engines tell of their KV caches, for whoever wants to know.

One task per replica that takes work, all in one TaskGroup: it asks what the engine is (GET
/metrics) and where it publishes (the settings, else GET /kv_event_sources, else the usual ports),
and then listens (`kv_ear`). It ends when the replica is ejected or drains; when it is back, all is
told again from the beginning, because it has most likely been restarted.

An engine that generates publishes something with every step. A wake-up costs more than what it
brings, so there are none: one task looks every `GATHER_S` at what has come from all of them, or
every `LOOK_S` while something is awaited: a first batch, or what was missed. It takes turns of
`SLICE_S` with rests between them, so no request waits for more than a slice at a time, and at least
half of the core is left to them. Nothing is chosen wrongly for the delay: prompts on their way are
known to be, for longer; and who must know what is held at an instant has what waits handed in
(`catch_up`).

A replica whose events cannot be had is SILENT. Where that may change (it did not answer, or what it
answered makes no sense) it is asked again every `ASK_AGAIN_S`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.clock import Clock
from gateway.fetch import FetchFailed, fetch
from gateway.fleet.exposition import read_facts
from gateway.fleet.kv_sequence import PATIENCE, Patience
from gateway.fleet.kv_sources import read_sources, usual_source
from gateway.kv_cache import BlockListener, Certainty, EngineFacts
from gateway.vocabulary import EventSource, Health, ReplicaId, Seconds

if TYPE_CHECKING:
    import ssl

    import zmq

    from gateway.fleet.kv_ear import Ear
    from gateway.fleet.ledger import Replica
    from gateway.fleet.roster import Roster
    from gateway.settings import FleetSettings

ASK_AGAIN_S: Final[Seconds] = 5.0

SLICE_S: Final[Seconds] = 0.001
REST_S: Final[Seconds] = 0.001
LOOK_S: Final[Seconds] = 0.1
GATHER_S: Final[Seconds] = 0.5

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Heard:
    """What has been heard of a replica, as far back as it has been known."""

    batches: int = 0
    blocks: int = 0  # stored
    gaps: int = 0
    replays: int = 0  # rounds asked for
    certainty: Certainty = Certainty.SILENT


@dataclass(frozen=True, slots=True)
class Means:
    """What every ear shares."""

    context: zmq.Context[zmq.Socket[bytes]]
    listener: BlockListener
    clock: Clock
    patience: Patience


class KvEvents:
    """Listens to whatever the roster holds, for as long as `run` runs. A RosterListener."""

    def __init__(
        self,
        roster: Roster,
        settings: FleetSettings,
        listener: BlockListener,
        clock: Clock,
        tls: ssl.SSLContext | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        """`listener` is told; `tls` is how https replicas are trusted."""
        self.heard: dict[ReplicaId, Heard] = {}
        self._roster = roster
        self._settings = settings
        self._listener = listener
        self._clock = clock
        self._tls = tls
        self._patience = patience
        self._tasks: asyncio.TaskGroup | None = None
        self._means: Means | None = None  # from the first source on
        self._opened = ExitStack()
        self._watches: dict[Replica, asyncio.Task[None]] = {}
        self._ears: dict[ReplicaId, Ear] = {}

    def __repr__(self) -> str:
        return f"<KvEvents of {len(self._watches)} replicas, {len(self._ears)} of them tell>"

    async def run(self) -> None:
        """Listen until cancelled; at most one `run` at a time."""
        with self._opened:
            async with asyncio.TaskGroup() as self._tasks:
                self._roster.subscribe(self)
                try:
                    for replica in self._roster.replicas:
                        self.joined(replica)
                    await asyncio.Event().wait()
                finally:
                    self._roster.unsubscribe(self)
                    self._watches.clear()  # the group ends them
                    self._means = None

    def replay(self, replica: ReplicaId) -> None:
        """What it told was found to be wrong: it is asked for everything anew, soon.

        Nothing happens where that cannot be, or was done within the last half minute.
        """
        ear = self._ears.get(replica)
        if ear is not None:
            ear.repair()

    def catch_up(self, replica: ReplicaId) -> None:
        """The listener is told what has come from it by now; of very much, a part."""
        ear = self._ears.get(replica)
        if ear is not None:
            self._turn(ear, self._clock() + SLICE_S)

    def observe_facts(self, replica: Replica, facts: EngineFacts) -> None:
        """More is known of its engine; the listener hears of it where that is new."""
        if self._roster.observe_facts(replica, facts):
            self._listener.described(replica.id, replica.facts)

    # A RosterListener

    def joined(self, replica: Replica) -> None:
        """Listen to it as soon as it takes work."""
        self.heard[replica.id] = Heard()
        if replica.takes_work:
            self._start(replica)

    def left(self, replica: Replica) -> None:
        """Its watch was stopped when it began to drain."""
        self.heard.pop(replica.id, None)

    def changed(self, replica: Replica, was: Health, now: Health) -> None:
        """Start with its work; stop when it drains or is out."""
        if replica.takes_work and replica not in self._watches:
            self._start(replica)
        elif now in (Health.DRAINING, Health.EJECTED) and replica in self._watches:
            self._watches.pop(replica).cancel()
            self.heard[replica.id].certainty = Certainty.SILENT

    # A replica

    def _start(self, replica: Replica) -> None:
        assert self._tasks is not None, "only while running is the roster listened to"
        name = f"kv events {replica.id}"
        self._watches[replica] = self._tasks.create_task(self._watch(replica), name=name)

    async def _watch(self, replica: Replica) -> None:
        """Ask, then listen; say what is wrong when that changes, and ask again."""
        trouble: str | None = None
        while True:
            try:
                source = await self._introduced(replica)
                if source is None:
                    self._silence(replica)
                    return
                await self._listen(replica, source)
            except (FetchFailed, ValueError) as error:
                if str(error) != trouble:
                    trouble = str(error)
                    log.warning("replica %s: no KV events: %s", replica.id, trouble)
            except Exception:
                log.exception("listening to replica %s has a bug", replica.id)
            self._silence(replica)
            await asyncio.sleep(ASK_AGAIN_S)

    async def _introduced(self, replica: Replica) -> EventSource | None:
        """Where it tells, or None. Raises FetchFailed and ValueError."""
        status, page = await self._get(replica, "/metrics")
        url, rank = replica.address.url, replica.address.rank
        self._roster.observe_facts(
            replica, read_facts(page, rank) if status == 200 else EngineFacts()
        )
        self._listener.described(replica.id, replica.facts)  # known or not: it may have forgotten
        if replica.address.kv_events is not None:
            return replica.address.kv_events
        status, body = await self._get(replica, "/kv_event_sources")
        if status == 404:
            usual = usual_source(self._settings.kv_events, url)
            return usual.of_rank(rank or 0) if usual else None
        if status != 200:
            raise ValueError(f"GET /kv_event_sources was answered {status}")
        sources = read_sources(body, url)
        if rank is not None:
            return sources.get(rank)
        if len(sources) > 1:
            log.warning(
                "replica %s: no KV events: it is %d caches; set its data_parallel_size",
                replica.id,
                len(sources),
            )
            return None
        return next(iter(sources.values()), None)

    async def _listen(self, replica: Replica, source: EventSource) -> None:
        """Until cancelled. Raises ValueError for an endpoint that is none.

        ZeroMQ is loaded when a replica is found to tell: nobody else needs it.
        """
        import zmq

        from gateway.fleet.kv_ear import Ear

        if self._means is None:
            context = self._opened.enter_context(zmq.Context[zmq.Socket[bytes]]())
            self._means = Means(context, self._listener, self._clock, self._patience)
            assert self._tasks is not None, "it runs in one of them"
            self._tasks.create_task(self._hear(), name="kv events")
        ear = self._ears[replica.id] = Ear(replica.id, source, self.heard[replica.id], self._means)
        log.info("replica %s: listening to %s", replica.id, source.endpoint)
        try:
            self._listener.retold(replica.id)
            await ear.run()
        except zmq.ZMQError as error:
            raise ValueError(str(error)) from error
        finally:
            if self._ears.get(replica.id) is ear:
                del self._ears[replica.id]

    async def _hear(self) -> None:
        """Take turns at listening to all, for ever."""
        while True:
            deadline = self._clock() + SLICE_S
            rest_s = GATHER_S
            for ear in tuple(self._ears.values()):
                if not self._turn(ear, deadline):
                    rest_s = REST_S
                elif not ear.is_calm:
                    rest_s = min(rest_s, LOOK_S)
                if self._clock() >= deadline:
                    await asyncio.sleep(REST_S)
                    deadline = self._clock() + SLICE_S
            await asyncio.sleep(rest_s)

    def _turn(self, ear: Ear, deadline: Seconds) -> bool:
        """One ear's. What goes wrong ends that one only."""
        try:
            return ear.turn(deadline)
        except Exception as error:
            ear.fail(error)
            return True

    def _silence(self, replica: Replica) -> None:
        self.heard[replica.id].certainty = Certainty.SILENT
        self._listener.certainty(replica.id, Certainty.SILENT)

    async def _get(self, replica: Replica, path: str) -> tuple[int, bytes]:
        return await fetch(
            replica.address.url + path,
            timeout_s=self._settings.probe_timeout_s,
            tls=self._tls,
        )
