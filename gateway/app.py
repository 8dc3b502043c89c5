"""The composition root: Settings in, a house that serves out.

Everything is constructed here, without effects; `House.serve` starts the background loops and the
server as one group of tasks, and ends when the server has stopped. It knows everything and decides
nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from ssl import CERT_NONE, CERT_REQUIRED
from typing import TYPE_CHECKING, Final

import uvicorn

from gateway.accept.control import control_app
from gateway.accept.door import Door
from gateway.accept.head import reading
from gateway.accept.tls import watch_certificates
from gateway.account.accounts import Accounts
from gateway.account.cold_metrics import ColdCollector
from gateway.account.metrics import registry
from gateway.account.recording import logs_of
from gateway.account.trace_metrics import TraceCollector
from gateway.account.tracing import Tracer
from gateway.admit.admission import Admission
from gateway.choose.policies import policy
from gateway.clock import monotonic, wall
from gateway.console.recent import Recent
from gateway.delivery import Rooms
from gateway.errands import Errands
from gateway.extras import scaler, traces
from gateway.fleet.discover import discoveries
from gateway.fleet.kv_events import KvEvents
from gateway.fleet.probe import Prober
from gateway.fleet.roster import Roster
from gateway.fleet.sleepers import Sleepers
from gateway.hold.cold import ColdHold
from gateway.hold.gate import Gate
from gateway.lessons import Lessons
from gateway.life import Life
from gateway.loops import every, kept
from gateway.news import CacheNews, FleetNews
from gateway.overview import console
from gateway.panel import Panel
from gateway.parse.parser import Parser
from gateway.peer_news import PeerNews
from gateway.peers.link import Link, listen
from gateway.peers.metrics import PeersCollector
from gateway.pooled import Pooled
from gateway.relay.relay import Relay
from gateway.relay.retries import Retries
from gateway.scale.demands import Demands
from gateway.scale.metrics import DemandCollector
from gateway.scale.routes import scale_routes
from gateway.server import Server
from gateway.siblings import Siblings
from gateway.supply import Supply
from gateway.tenants.watch import tenancy
from gateway.tokens.service import Tokens
from gateway.trust.service import Trust

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from prometheus_client.registry import Collector
    from starlette.types import ASGIApp

    from gateway.accept.head import Reading
    from gateway.batch.service import Batches
    from gateway.fleet.ledger import Replica
    from gateway.kv_cache import EngineFacts
    from gateway.settings import BatchSettings, Settings
    from gateway.vocabulary import ModelCard, ModelName
    from gateway.worker import Worker

FLUSH_EVERY_S: Final = 0.2
TIDY_EVERY_S: Final = 0.2
LOOK_EVERY_S: Final = 1.0
DRAIN_LOOK_EVERY_S: Final = 0.02
CUT_SHORT_S: Final = 1.0

Loop = Callable[[], Awaitable[object]]


class House(Panel):
    """One gateway, or one worker of it: how it is put together, and how it lives and ends."""

    def __init__(self, settings: Settings, worker: Worker | None = None) -> None:
        """Raises SettingsError for a policy that does not exist, a store of batches that cannot be
        opened, or a Kubernetes API that there is no way to. Starts nothing."""
        self._settings = settings
        self._worker = worker
        self.roster = Roster(settings.fleet)
        self.traces = traces(settings.account.traces)
        self.log = logs_of(settings.account, self.traces)
        self.accounts = Accounts(monotonic, self._is_served, self.log)
        self.admission = Admission(settings.admit)
        self.link: Link | None = None
        self.gate = Gate(settings.hold, monotonic)
        self.cold = ColdHold(settings.hold, monotonic, self.roster.serving)
        self.trust = Trust(settings.trust, settings.relay.replica_ca, (monotonic, wall))
        tls = self.trust.tls
        self.relay = Relay(settings.relay, settings.accept.client_stall_s, monotonic, tls)
        rng = random.Random()  # breaks ties; guards nothing
        self.tenants, self._tenants_watch = tenancy(settings.tenants, monotonic, wall)
        self.chooser = policy(settings.choose, rng)
        self.tokens = Tokens(settings.tokens, self._card, tls)
        self.lessons = Lessons(self.chooser, self.tokens, self._observe, settings.choose)
        self.demands = self._demanded()
        merge = settings.merge
        self.pool = Pooled(merge, self.tokens, self.roster, monotonic) if merge.enabled else None
        self.parser = Parser()
        self.life = Life(
            tenants=self.tenants,
            parser=self.parser,
            admission=self.admission,
            demands=self.demands,
            rooms=self._rooms(),
            accounts=self.accounts,
            pool=self.pool,
            tracer=Tracer(settings.account.traces.ratio, rng.getrandbits) if self.traces else None,
            permits=self.trust.permits,
        )
        if self.pool is not None:
            self.pool.errands = Errands(self.life.carry, monotonic)
        heads, live = self._heads(), self.life.live
        self.door = Door(settings.accept, live, monotonic, heads, self.tenants.tenant)
        self._discoveries = discoveries(settings.fleet, self.roster, self.chooser, monotonic, rng)
        self._prober = Prober(self.roster, settings.fleet, monotonic, rng, tls)
        self._sleepers = Sleepers(self.roster, self.cold.is_held, monotonic, tls)
        self.kv_events = self._listening()
        self._peer_news = PeerNews(self.life.rooms, self.tenants, self.demands)
        self._tell()
        self.batches = self._batches(settings.batch)
        self.keda = scaler(settings.scale.keda, self.demands)
        self.control = self._shown()

    def _rooms(self) -> Rooms:
        """What lies on a request's way from the choice to its last byte."""
        relay = self._settings.relay
        return Rooms(
            fleet=self.roster,
            chooser=self.chooser,
            cold=self.cold,
            gate=self.gate,
            relay=self.relay,
            retries=Retries(
                relay.max_attempts, relay.retry_budget_ratio, relay.retry_budget_min_per_s
            ),
            accounts=self.accounts,
            lessons=self.lessons,
            parser=self.parser,
            recent=Recent(),
            clock=monotonic,
        )

    def _heads(self) -> Reading:
        """How the heads of requests are read."""
        return reading(
            keys=self._tenants_watch is not None,
            forwards_keys=self._settings.tenants.forward_authorization,
            traces=self.traces is not None,
        )

    def _shown(self) -> ASGIApp:
        """The control app, with what rooms add to it."""
        metrics = registry(self.accounts, self)
        metrics.register(DemandCollector(self.demands))
        metrics.register(ColdCollector(self.cold, self.demands.models))
        metrics.register(PeersCollector(lambda: self.link))
        for collector in self.trust.collectors():
            metrics.register(collector)
        if self.traces is not None:
            metrics.register(TraceCollector(self.traces))
        batch = self.batches.attach(metrics, self.door.uploads) if self.batches else ()
        self._registry = metrics
        worker = self._worker
        self._siblings = None if worker is None else Siblings(worker, metrics)
        self.console, pages = console(self.life, self._settings.console, worker)
        return control_app(self, self._scrape, (*scale_routes(self.demands), *pages, *batch))

    def _demanded(self) -> Demands:
        scale = self._settings.scale
        supply = Supply(
            self.roster, self.chooser, self.gate, self.cold, scale.load_deadline_s, monotonic
        )
        return Demands(scale, supply, monotonic)

    def _batches(self, settings: BatchSettings) -> Batches | None:
        """The Batch API, if it is on; if not, what it needs is not even loaded."""
        if not settings.is_on:
            return None
        from gateway.batch.service import Batches

        errands = Errands(self.life.live, monotonic)
        return Batches(settings, errands, self.roster, self.models, (monotonic, wall))

    def _tell(self) -> None:
        """See to it that who must know is told."""
        self.roster.subscribe(
            FleetNews(self.relay, self.accounts, self.chooser, self.gate, self.cold)
        )
        self.roster.subscribe(self._peer_news)
        self.demands.others = self._peer_news
        self.cold.on_activation(self._sleepers.wanted)
        self.cold.on_activation(self._peer_news.hurry)
        self.trust.on_renewal(self.relay.renew)

    def _listening(self) -> KvEvents | None:
        """To KV events, if the policy wants to know."""
        listener, holdings = self.chooser.listener, self.chooser.holdings
        fleet = self._settings.fleet
        if listener is None or fleet.kv_events.listen == "off":
            return None
        news = CacheNews(listener, self.gate)
        events = KvEvents(self.roster, fleet, news, monotonic, self.trust.tls)
        if holdings is not None:
            holdings.catch_up = events.catch_up
        return events

    def _linked(self) -> Link | None:
        """To other gateways and workers, if there are any."""
        settings, worker = self._settings.peers, self._worker
        if not settings.is_on:
            return None
        sock = listen(settings) if worker is None else worker.link
        addresses = () if worker is None else worker.addresses
        link = Link(settings, self._peer_news, (monotonic, wall), sock, addresses)
        self._peer_news.link(link.peers, link.wake)
        return link

    async def _scrape(self) -> Collector:
        return self._registry if self._siblings is None else await self._siblings.metrics()

    def _is_served(self, model: ModelName) -> bool:
        return model in self.roster.known_models()

    def _card(self, model: ModelName) -> ModelCard | None:
        return self.roster.known_models().get(model)

    def _observe(self, replica: Replica, facts: EngineFacts) -> None:
        """A response has said more of an engine."""
        if self.kv_events is not None:
            self.kv_events.observe_facts(replica, facts)
        else:
            self.roster.observe_facts(replica, facts)

    # Serving

    def server(self) -> Server:
        """A server for this house, not yet listening to clients. Raises OSError, naming it, for a
        TLS file, tenants or a secret that cannot be read, and for the port of the link to other
        gateways; SettingsError for tenants that cannot be used."""
        accept = self._settings.accept
        tls = accept.tls
        for path in (tls.certificate, tls.key, tls.client_ca):
            if path is not None:
                Path(path).read_bytes()  # the ssl module would not say which file it misses
        if self._tenants_watch is not None:
            self._tenants_watch.load()
        self.link = self._linked()
        config = uvicorn.Config(
            self.control,
            host=accept.host,
            port=accept.port,
            http=self.door.protocol,  # type: ignore[arg-type]  # uvicorn calls it like a class
            ws="none",
            lifespan="off",
            loop="none",  # the caller has chosen the loop
            log_config=None,
            access_log=False,
            backlog=accept.backlog,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=1,
            ssl_certfile=tls.certificate,
            ssl_keyfile=tls.key,
            ssl_ca_certs=tls.client_ca,
            ssl_cert_reqs=CERT_REQUIRED if tls.client_ca else CERT_NONE,
        )
        config.load()
        return Server(config, self)

    async def serve(self, server: Server) -> None:
        """Run until the server has stopped; then end every background loop.

        Raises OSError where KEDA's scaler cannot listen, or we are not told who we are.
        """
        await self.trust.start()
        if self.keda is not None:
            await self.keda.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(kept(name, loop), name=name)
                    for name, loop in self._loops(server.config.ssl)
                ]
                try:
                    await self._listen(server)
                finally:
                    for task in loops:
                        task.cancel()
        finally:
            await self._close()

    def _loops(self, context: ssl.SSLContext | None) -> Iterator[tuple[str, Loop]]:
        """What runs beside the requests; `context` is what clients are spoken to by."""
        yield "sweep", self.door.sweep
        yield "watch", self.relay.watch
        yield "hold", self.gate.watch
        yield "cold", self.cold.watch
        yield "probe", self._prober.run
        yield "sleepers", self._sleepers.run
        yield "flush", partial(every, FLUSH_EVERY_S, self.log.flush)
        yield "tidy", partial(every, TIDY_EVERY_S, self._tidy)
        yield "demand", partial(every, LOOK_EVERY_S, self.demands.look)
        yield "console", self.console.run
        yield "lessons", self.lessons.run
        if self.kv_events is not None:
            yield "kv events", self.kv_events.run
        yield from self.trust.loops()
        yield from ((repr(each), each.run) for each in self._discoveries)
        if self.batches is not None:
            yield "batches", self.batches.run
        if self.link is not None:
            yield "peers", self.link.run
        if self._siblings is not None:
            yield "siblings", self._siblings.run
        if self._tenants_watch is not None:
            yield "tenants", self._tenants_watch.run
        if context is not None:
            yield "certificates", partial(watch_certificates, context, self._settings.accept.tls)

    async def _listen(self, server: Server) -> None:
        if self._worker is None:
            await server.serve()
        else:
            accept = self._settings.accept
            await server.serve([await self._worker.socket(accept, self, server.stop)])

    async def _close(self) -> None:
        """The end, whatever has led to it."""
        await self._cut_short()
        if self.keda is not None:
            await self.keda.stop()
        if self.batches is not None:
            self.batches.close()
        self.tokens.close()
        self.relay.close()
        await asyncio.to_thread(self.log.close)  # which waits for its threads

    def _tidy(self) -> None:
        """What the policy remembers is put in order, and what it doubts is asked for again."""
        self.chooser.tidy(monotonic())
        for replica in self.chooser.repairs():
            if self.kv_events is not None:
                self.kv_events.replay(replica)

    async def drain(self) -> None:
        """Take nothing new; let what runs finish, for as long as the grace lasts; cut the rest."""
        self.door.is_closing = True
        self.console.close()
        if self.batches is not None:
            await self.batches.stop()
        self.admission.drain()
        if self.keda is not None:
            await self.keda.stop()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.admit.drain_grace_s
        while self.accounts.open_entries and loop.time() < deadline:
            await asyncio.sleep(DRAIN_LOOK_EVERY_S)
        await self._cut_short()

    async def _cut_short(self) -> None:
        """End whatever is still being served, and give it a moment to say so."""
        self.door.cut_short()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CUT_SHORT_S
        while self.accounts.open_entries and loop.time() < deadline:
            await asyncio.sleep(DRAIN_LOOK_EVERY_S)
