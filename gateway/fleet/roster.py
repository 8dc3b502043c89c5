"""Which replicas are there, and who can serve what? The one owner of the list.

Asked on the hot path: `candidates(model)`, one look-up in an index that is rebuilt only when the
list, a replica's models or its taking of work changes. Everything here is synchronous and atomic
between two awaits, so there are no locks, and what is handed out is immutable and swapped whole.

Invariants.
- One URL, or one rank behind it, is one replica, however many sources name it; no two share an id.
  Where sources disagree about it, the settings win over Kubernetes, over a file, over DNS.
- The index equals a scan of the list: for each model, the replicas that take work and serve it.
- One that is awaited takes no work, and is JOINING until whoever runs it calls it ready.
- A replica that no source names is DRAINING, and is forgotten as soon as it holds no lease. Named
  again before that, it joins again as the same replica, its leases kept. One told to drain by a
  sign stays, draining, for as long as it is named.
- A model that a source declares is known, whether a replica serves it or not, and so is one that
  only engines serve that sleep.
- Listeners hear of a change after it can be seen: `joined` first, `left` last, and between the two
  every change of health.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import msgspec

from gateway.errors import NoReplica, UnknownModel
from gateway.fleet.health import Sign, Standing, after, cool_down_s
from gateway.fleet.ledger import Replica
from gateway.kv_cache import EngineFacts
from gateway.settings import FleetSettings, ModelSettings
from gateway.vocabulary import Health, ModelCard, ModelName, ReplicaAddress, ReplicaId, Seconds


class RosterListener(Protocol):
    """Is told of replicas, synchronously; it must not block, raise, or change the roster."""

    def joined(self, replica: Replica) -> None:
        """It is on the list, in the state JOINING."""

    def left(self, replica: Replica) -> None:
        """It is forgotten: it holds no lease, and this object will not come back."""

    def changed(self, replica: Replica, was: Health, now: Health) -> None:
        """Its health moved."""


class Roster:
    """The replicas, by the sources that name them."""

    __slots__ = (
        "_asleep",
        "_by_id",
        "_cards",
        "_declared",
        "_declared_by",
        "_index",
        "_is_complete",
        "_known",
        "_listeners",
        "_may_serve_anything",
        "_named",
        "_replicas",
        "_retry_after_s",
        "_served",
        "_settings",
        "unplaced",
    )

    def __init__(self, settings: FleetSettings) -> None:
        self._settings = settings
        self._named: dict[str, dict[ReplicaId, ReplicaAddress]] = {}  # source -> id
        self._by_id: dict[ReplicaId, Replica] = {}
        self._listeners: tuple[RosterListener, ...] = ()
        self._declared_by: dict[str, tuple[ModelSettings, ...]] = {}  # source -> models
        self._declared: dict[ModelName, ModelSettings] = {}
        self._cards: dict[ModelName, ModelCard] = {}  # of those declared, as last described
        self._asleep: dict[ModelName, ModelSettings] = {}
        self._is_complete = False
        self.unplaced: Mapping[str, tuple[ModelName, ...]] = MappingProxyType({})
        """Replicas that have no address yet, by whatever name, and the models they are for."""
        self.declare(settings.models, "settings")

    def __repr__(self) -> str:
        ready = sum(replica.takes_work for replica in self._replicas)
        return f"<Roster: {ready} of {len(self._replicas)} replicas take work>"

    # What is asked of it

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """All of them, the draining included, in the order they joined."""
        return self._replicas

    @property
    def is_ready(self) -> bool:
        """Does at least one replica take work, or is there a model to be waited for? Or is there
        nothing at all, and that is known: whoever asks is told so.
        """
        if self._declared or self._asleep:
            return True
        if not self._replicas:
            return self._is_complete
        return any(replica.takes_work for replica in self._replicas)

    def known_models(self) -> Mapping[ModelName, ModelCard]:
        """What can be asked for: what the replicas that take work serve, adapters included, and
        what is known without one; O(1).

        Where two describe the same model differently, the one that joined first is quoted.
        """
        return self._known

    def knows(self, model: ModelName) -> bool:
        """Is it one of them? O(1)."""
        return model in self._known

    def known_at_zero(self, model: ModelName) -> ModelSettings | None:
        """How a model is waited for that has no replica, if it is known without one; O(1)."""
        return self._declared.get(model) or self._asleep.get(model)

    def serving(self, model: ModelName) -> Sequence[Replica]:
        """Those that take work and serve `model`; there may be none; O(1)."""
        return self._index.get(model, ())

    def candidates(self, model: ModelName) -> Sequence[Replica]:
        """Those that take work and serve `model`: at least one, in the order they joined; O(1).

        Raises UnknownModel when replicas are known, none of them in any state serves it, and none
        is still to say what it serves; NoReplica when it may well be served, only not now.
        """
        found = self._index.get(model)
        if found is not None:
            return found
        if model in self._served or model in self._declared or self._may_serve_anything:
            raise NoReplica(retry_after_s=self._retry_after_s)
        raise UnknownModel(f"The model `{model[:200]}` does not exist.", param="model")

    # What it is told

    def subscribe(self, listener: RosterListener) -> None:
        """Tell `listener` of all that happens from now on."""
        self._listeners = (*self._listeners, listener)

    def unsubscribe(self, listener: RosterListener) -> None:
        """Tell it no more."""
        self._listeners = tuple(each for each in self._listeners if each is not listener)

    def apply(self, addresses: Iterable[ReplicaAddress], source: str) -> None:
        """Take in the whole truth from one source: what it no longer names, it no longer knows.

        `source` is `static`, `kubernetes`, `file:PATH` or `dns:NAME`. One that it names twice
        counts as named first. O(replicas) when nothing changes.
        """
        named: dict[ReplicaId, ReplicaAddress] = {}
        for address in addresses:
            named.setdefault(address.id, address)
        self._named[source] = named
        wanted = self._wanted()
        moved: list[tuple[Replica, Health]] = []
        is_changed = False
        for name, replica in self._by_id.items():
            was = replica.health
            is_changed |= self._reconcile(replica, wanted.get(name))
            if replica.health is not was:
                moved.append((replica, was))
        joined = [Replica(each) for name, each in wanted.items() if name not in self._by_id]
        for replica in joined:
            replica.models = _by_name(_foretold(replica.address))
            self._by_id[replica.id] = replica
        if joined or is_changed:
            self._publish()
        for replica in joined:
            for listener in self._listeners:
                listener.joined(replica)
        for replica, was in moved:
            self._tell(replica, was)
        self.forget_idle()

    def declare(self, models: Iterable[ModelSettings], source: str) -> None:
        """All models that one source knows, with or without replicas: what it no longer names, it
        no longer knows. Where sources disagree, the settings are right, and then who spoke first.
        """
        self._declared_by[source] = tuple(models)
        self._declared = {}
        for each in (model for known in self._declared_by.values() for model in known):
            self._declared.setdefault(each.name, each)
        self._cards = {name: self._cards.get(name, ModelCard(name)) for name in self._declared}
        self._publish()

    def know_all(self) -> None:
        """All that there was to be found has been told once, even if it was nothing."""
        self._is_complete = True

    def observe_models(self, replica: Replica, cards: Iterable[ModelCard]) -> None:
        """A replica has said what it serves. Pinned models are not overruled."""
        if replica.address.models:
            return
        models = _by_name(cards)
        if models != replica.models:
            replica.models = models
            self._publish()

    def observe_facts(self, replica: Replica, facts: EngineFacts) -> bool:
        """More is known of its engine; what is not said stands. True if that is new."""
        known = {
            name: value
            for name, value in msgspec.structs.asdict(facts).items()
            if value is not None
        }
        learnt = msgspec.structs.replace(replica.facts, **known)
        is_new = learnt != replica.facts
        replica.facts = learnt
        return is_new

    def sign(self, replica: Replica, sign: Sign, now: Seconds) -> None:
        """Take in one sign; O(1) unless it changes who takes work, then O(replicas x models)."""
        standing = after(replica.standing, sign, now, self._settings)
        if standing is not replica.standing:
            self._move(replica, standing)

    def forget_idle(self) -> None:
        """Forget the replicas that no source names and that hold no lease.

        Called by `apply`, and by the last lease of each such replica.
        """
        gone = [
            replica
            for replica in self._by_id.values()
            if replica.on_idle is not None and not replica.own_requests
        ]
        if not gone:
            return
        for replica in gone:
            del self._by_id[replica.id]
            replica.on_idle = None
        self._publish()
        for replica in gone:
            for listener in self._listeners:
                listener.left(replica)

    # How it moves

    def _wanted(self) -> dict[ReplicaId, ReplicaAddress]:
        """id -> address over all sources: `static` first, then `kubernetes`, `file:`, `dns:`."""
        wanted: dict[ReplicaId, ReplicaAddress] = {}
        for source in sorted(self._named, reverse=True):
            for name, address in self._named[source].items():
                wanted.setdefault(name, address)
        return wanted

    def _reconcile(self, replica: Replica, address: ReplicaAddress | None) -> bool:
        """Bring a replica in line with what the sources now say of it; True if that changed it."""
        was_gone = replica.on_idle is not None
        if address is None:
            replica.standing = Standing(Health.DRAINING)
            replica.on_idle = self.forget_idle
            return not was_gone
        if was_gone:
            replica.standing = Standing()
            replica.on_idle = None
        if address == replica.address:
            return was_gone
        replica.address = address
        if address.models:
            replica.models = _by_name(_foretold(address))
        # Where the pins were taken away, what they said holds until the replica has been asked.
        return True

    def _move(self, replica: Replica, standing: Standing) -> None:
        was, took_work = replica.health, replica.takes_work
        replica.standing = standing
        if replica.health is was:
            return
        # A fleet that flickers between healthy and suspect costs no rebuild.
        if not (replica.takes_work and took_work):
            self._publish()
        self._tell(replica, was)

    def _tell(self, replica: Replica, was: Health) -> None:
        for listener in self._listeners:
            listener.changed(replica, was, replica.health)

    def _publish(self) -> None:
        """Rebuild what is handed out; O(replicas x models)."""
        self._replicas = tuple(self._by_id.values())
        index: dict[ModelName, list[Replica]] = {}
        known: dict[ModelName, ModelCard] = {}
        served: set[ModelName] = set()
        asleep: dict[ModelName, ModelCard] = {}
        for replica in self._replicas:
            served.update(replica.models)
            if replica.takes_work:
                for name, card in replica.models.items():
                    index.setdefault(name, []).append(replica)
                    known.setdefault(name, card)
            elif replica.health is Health.ASLEEP:
                asleep.update(replica.models)
        for name, card in asleep.items():
            known.setdefault(name, card)
        for name in self._declared:
            self._cards[name] = known.setdefault(name, self._cards[name])
        self._asleep = {name: ModelSettings(name=name) for name in asleep}
        self._index = {name: tuple(replicas) for name, replicas in index.items()}
        self._known = MappingProxyType(known)
        self._served = frozenset(served)
        self._may_serve_anything = not self._replicas or any(
            replica.health is Health.JOINING and not replica.address.models
            for replica in self._replicas
        )
        self._retry_after_s = self._soonest_s()

    def _soonest_s(self) -> Seconds:
        """When a client refused for want of a replica may find one, at the earliest."""
        outs_s = [
            cool_down_s(replica.standing.ejections, self._settings)
            for replica in self._replicas
            if replica.health is Health.EJECTED
        ]
        if any(replica.health in (Health.JOINING, Health.PROBING) for replica in self._replicas):
            return self._settings.probe_every_s
        return min(outs_s, default=self._settings.probe_every_s)


def _foretold(address: ReplicaAddress) -> list[ModelCard]:
    """Its pins; without, what it is expected to serve until it has been asked."""
    return [ModelCard(name) for name in address.models or address.expected]


def _by_name(cards: Iterable[ModelCard]) -> Mapping[ModelName, ModelCard]:
    return MappingProxyType({card.id: card for card in cards})
