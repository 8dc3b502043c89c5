"""What the control app and the collector may read of a gateway. Reading changes nothing.

A base of `app.House`, which puts in the parts: one place of the house shows, the other acts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.accept.amend import amended
from gateway.account.container import memory_limit_bytes
from gateway.choose.explain import document, ranked, reason
from gateway.clock import monotonic
from gateway.errors import UnknownPath
from gateway.fleet.snapshot import fleet_document
from gateway.parse.parser import Shown
from gateway.tenants.tenancy import Caller
from gateway.vocabulary import ROUTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.accept.door import Door
    from gateway.admit.admission import Admission
    from gateway.choose.chooser import Chooser
    from gateway.choose.dispatch import CacheState
    from gateway.choose.shadow import Shadow
    from gateway.fleet.kv_events import Heard, KvEvents
    from gateway.fleet.ledger import Replica
    from gateway.fleet.roster import Roster
    from gateway.hold.cold import ColdHold
    from gateway.hold.gate import Gate
    from gateway.lessons import Lessons
    from gateway.parse.parser import Parser
    from gateway.peers.link import Link
    from gateway.pooled import Pooled
    from gateway.relay.relay import Relay
    from gateway.settings import Settings
    from gateway.tenants.tenancy import Member, Strangers, Tenancy
    from gateway.vocabulary import ModelCard, ModelName, ReplicaId, Seconds, Tenant


class Panel:
    """The windows of a house."""

    _settings: Settings
    roster: Roster
    admission: Admission
    gate: Gate
    cold: ColdHold
    link: Link | None
    relay: Relay
    door: Door
    tenants: Tenancy | Strangers
    parser: Parser
    chooser: Chooser
    lessons: Lessons
    kv_events: KvEvents | None
    pool: Pooled | None

    @property
    def is_ready(self) -> bool:
        """Takes new work, and has a replica that does, or a model to wait for."""
        return self.roster.is_ready and not self.admission.is_draining

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """All of them."""
        return self.roster.replicas

    @property
    def malformed(self) -> int:
        """What was refused before it was a request."""
        return self.door.malformed

    @property
    def connections(self) -> int:
        """Client connections."""
        return len(self.door.lanes)

    @property
    def shadow(self) -> Shadow | None:
        """The policy beside the live one, if there is one."""
        return self.chooser.shadow

    @property
    def upstream_busy(self) -> int:
        """Connections to replicas that carry a request."""
        return self.relay.busy

    @property
    def heard(self) -> Mapping[ReplicaId, Heard]:
        """What replicas have told of their caches."""
        return self.kv_events.heard if self.kv_events is not None else {}

    @property
    def waiting(self) -> Mapping[str, int]:
        """How many wait for their turn, by class."""
        return self.gate.crowd.waiting()

    @property
    def waiting_fill(self) -> float:
        """Of what may wait for its turn, the part that does."""
        return self.gate.crowd.fill

    @property
    def held_fill(self) -> Mapping[ModelName, float]:
        """The same of models at zero that are waited for."""
        return self.cold.fill()

    @property
    def ttft_objective_s(self) -> Seconds:
        """The time to first token that is aimed at."""
        return self._settings.scale.ttft_objective_s

    @property
    def memory_limit_bytes(self) -> int | None:
        """What our container may use, if anything says so."""
        return memory_limit_bytes()

    @property
    def workers(self) -> int:
        """How many processes we are to be."""
        return self._settings.peers.workers

    @property
    def peers_heard(self) -> int | None:
        """Other gateways and workers; None where there are to be none."""
        return len(self.link.peers.present) if self.link is not None else None

    @property
    def merged_calls(self) -> int:
        """Small calls answered out of a shared one."""
        return self.pool.merged_calls if self.pool is not None else 0

    @property
    def shared_upstream_calls(self) -> int:
        """Upstream calls that were made for several small ones."""
        return self.pool.shared_upstream_calls if self.pool is not None else 0

    @property
    def read_first(self) -> Mapping[str, int]:
        """Prompts read before the choice, by what came of it."""
        return self.lessons.read_first_by_result

    def caches(self) -> Mapping[ReplicaId, CacheState]:
        """What is believed of replicas' caches, by a policy that thinks of them."""
        holdings = self.chooser.holdings
        if holdings is None:
            return {}
        return {replica.id: holdings.cache(replica.id) for replica in self.roster.replicas}

    def models(self) -> Mapping[ModelName, ModelCard]:
        """What can be asked for now."""
        return self.roster.known_models()

    def serves(self, model: ModelName) -> bool:
        """A replica takes work for it now."""
        return bool(self.roster.serving(model))

    @property
    def members(self) -> Mapping[str, Member]:
        """Tenants by name; none where there are no keys."""
        return self.tenants.members

    @property
    def tenant_reload_failures(self) -> int:
        """How often a new file of tenants could not be used."""
        return self.tenants.reload_failures

    def tenant(self, fields: Mapping[bytes, bytes]) -> Tenant:
        """Who sends a head with these fields. Raises InvalidKey."""
        return self.tenants.tenant(fields)

    def fleet_document(self) -> dict[str, Any]:
        """For /debug/fleet: replicas, and the other gateways before them."""
        peers = [] if self.link is None else self.link.document()
        return {**fleet_document(self.roster), "peers": peers}

    def route_document(self, path: str, body: bytes, tenant: Tenant) -> dict[str, Any]:
        """For /debug/route: where a body of this tenant's would go now, and why. Nothing is sent,
        nothing remembered.

        Raises a GatewayError where the body would be refused.
        """
        route = next((each for each in ROUTES if each.path == path), None)
        if route is None:
            raise UnknownPath(f"`{path[:200]}` is no inference route.", param="path")
        salt = self.tenants.salt_for(tenant, route)
        if salt is not None:
            body = amended(body, ("cache_salt",), salt)
        request = Caller(tenant, None, None).asks(self.parser.parse(Shown(route, body)))
        candidates = self.roster.candidates(request.model)
        quote, replicas = self.chooser.quote(request, candidates, monotonic())
        table = ranked(quote, len(replicas))
        return {
            "model": request.model,
            "prompt_tokens": request.prompt_tokens,
            "reason": reason(table[0], table[1] if len(table) > 1 else None),
            "replicas": document(table),
        }
