"""What the console may read of a gateway, and who may look.

Where keys are asked for, a tenant's key shows everything but the names of tenants, the admin key
those too. Where they are not, whoever reaches us may look, as at /debug/fleet, unless there is an
admin key: then it is asked for. Reading changes nothing.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING

from gateway.clock import monotonic
from gateway.console.broadcast import Broadcast
from gateway.console.routes import console_routes
from gateway.console.snapshot import Load
from gateway.errors import InvalidKey
from gateway.tenants.keys import digest, presented_key
from gateway.tenants.tenancy import Strangers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from starlette.routing import Route

    from gateway.account.meters import ModelMeters
    from gateway.demand import Demand
    from gateway.fleet.ledger import Replica
    from gateway.hold.turn import Waiter
    from gateway.life import Life
    from gateway.settings import ConsoleSettings
    from gateway.vocabulary import ModelName, Outcome, ReplicaId, Seconds, Tokens
    from gateway.worker import Worker


def console(
    life: Life, settings: ConsoleSettings, worker: Worker | None
) -> tuple[Broadcast, tuple[Route, ...]]:
    """What tells those who watch, and the routes by which they come, if there are to be any."""
    overview = Overview(life, settings, worker)
    broadcast = Broadcast(settings, overview, life.rooms.recent)
    return broadcast, console_routes(broadcast, overview.sees_names) if settings.enabled else ()


class Overview:
    """An `Owners`, of the rooms that a request's life leads through."""

    __slots__ = ("_admin_key", "_life", "_rooms", "worker")

    def __init__(self, life: Life, settings: ConsoleSettings, worker: Worker | None) -> None:
        self._life = life
        self._rooms = life.rooms
        self.worker = None if worker is None else (worker.index + 1, len(worker.ports))
        hashed = settings.admin_key_sha256
        self._admin_key = None if hashed is None else bytes.fromhex(hashed)

    def __repr__(self) -> str:
        return f"<Overview of {self._rooms.fleet!r}>"

    def sees_names(self, fields: Mapping[bytes, bytes]) -> bool:
        """A `Viewer`. Raises InvalidKey."""
        tenants = self._life.tenants
        key = presented_key(fields)
        admin = self._admin_key
        if key is not None and admin is not None and compare_digest(digest(key), admin):
            return True
        if isinstance(tenants, Strangers):
            if admin is not None:
                raise InvalidKey
            return True
        tenants.tenant(fields)
        return False

    def now(self) -> Seconds:
        """Monotonic."""
        return monotonic()

    @property
    def is_draining(self) -> bool:
        """Takes nothing new."""
        return self._life.admission.is_draining

    @property
    def received(self) -> int:
        """Requests, since the start."""
        return self._life.accounts.received

    @property
    def open_requests(self) -> int:
        """Those that have not ended."""
        return self._life.accounts.open_entries

    def outcomes(self) -> Mapping[Outcome, int]:
        """How many ended how."""
        return self._life.accounts.outcomes()

    def replicas(self) -> Sequence[Replica]:
        """All of them."""
        return self._rooms.fleet.replicas

    def load(self, replica: ReplicaId) -> Load:
        """O(1)."""
        gate, chooser = self._rooms.gate, self._rooms.chooser
        part = gate.part(replica)
        rate = chooser.rate_per_s(replica)
        holdings = chooser.holdings
        return Load(
            waiting=part.waiting,
            used_tokens=part.kv_tokens,
            held_tokens=chooser.held_tokens(replica),
            grade=None if holdings is None else holdings.grade(replica),
            tokens_per_s=gate.rate_per_s(replica) if rate is None else rate,
        )

    def waiting(self) -> Iterable[Waiter]:
        """Who waits for a turn."""
        return self._rooms.gate.crowd

    def models(self) -> Collection[ModelName]:
        """All that are scaled."""
        return self._life.demands.models()

    def demand(self, model: ModelName) -> Demand:
        """How many replicas it needs."""
        return self._life.demands.demand(model)

    def meters(self) -> Mapping[ModelName, ModelMeters]:
        """What was measured."""
        return self._life.accounts.by_model

    def spread(self, hashes: list[int]) -> Mapping[ReplicaId, Tokens]:
        """What caches hold."""
        return self._rooms.chooser.spread(hashes)
