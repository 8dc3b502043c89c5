"""The composition root: Settings in, a house that serves out.

Everything is constructed here; how it lives then is its base's (`lifecycle`). It knows everything
and decides nothing.
"""

from __future__ import annotations

import random
from pathlib import Path
from ssl import CERT_NONE, CERT_REQUIRED
from typing import TYPE_CHECKING

import uvicorn

from gateway.accept.control import control_app
from gateway.accept.door import Door
from gateway.accept.head import reading
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
from gateway.lifecycle import Lifecycle
from gateway.news import CacheNews, FleetNews
from gateway.overview import console
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
    from prometheus_client.registry import Collector
    from starlette.types import ASGIApp

    from gateway.accept.head import Reading
    from gateway.batch.service import Batches
    from gateway.fleet.ledger import Replica
    from gateway.kv_cache import EngineFacts
    from gateway.settings import BatchSettings, Settings
    from gateway.vocabulary import ModelCard, ModelName
    from gateway.worker import Worker


class House(Lifecycle):
    """One gateway, or one worker of it."""

    def __init__(self, settings: Settings, worker: Worker | None = None) -> None:
        """Raises SettingsError for a policy that does not exist, a store of batches that cannot be
        opened, or a Kubernetes API that there is no way to; OSError for a file. Starts nothing but
        the threads that write logs."""
        self._settings = settings
        self._worker = worker
        self.roster = Roster(settings.fleet)
        self.traces = traces(settings.account.traces)
        self.log = logs_of(settings.account, self.traces)
        self.accounts = Accounts(monotonic, self.roster.knows, self.log)
        self.admission = Admission(settings.admit)
        self.link: Link | None = None
        self.gate = Gate(settings.hold, monotonic, self.roster.serving)
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

    async def _scrape(self) -> Collector:
        return self._registry if self._siblings is None else await self._siblings.metrics()

    def _card(self, model: ModelName) -> ModelCard | None:
        return self.roster.known_models().get(model)

    def _observe(self, replica: Replica, facts: EngineFacts) -> None:
        """A response has said more of an engine."""
        if self.kv_events is not None:
            self.kv_events.observe_facts(replica, facts)
        else:
            self.roster.observe_facts(replica, facts)
