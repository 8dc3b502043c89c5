"""Who is told of what: the news of the fleet and of its caches, passed on to the rooms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.fleet.health import Standing
from gateway.kv_cache import BlocksCleared
from gateway.vocabulary import Health

if TYPE_CHECKING:
    from gateway.account.accounts import Accounts
    from gateway.choose.chooser import Chooser
    from gateway.fleet.ledger import Replica
    from gateway.hold.cold import ColdHold
    from gateway.hold.gate import Gate
    from gateway.kv_cache import BlockEvent, BlockListener, Certainty, EngineFacts
    from gateway.relay.relay import Relay
    from gateway.vocabulary import ReplicaId


class FleetNews:
    """A `RosterListener`. When a replica has left: its connections are closed, its series end, and
    nobody remembers what it held."""

    def __init__(
        self,
        relay: Relay,
        accounts: Accounts,
        chooser: Chooser,
        gate: Gate,
        cold: ColdHold,
    ) -> None:
        self._chooser = chooser
        self._gate = gate
        self._cold = cold
        self._relay = relay
        self._accounts = accounts

    def joined(self, replica: Replica) -> None:
        """It takes no work yet."""

    def changed(self, replica: Replica, was: Health, now: Health) -> None:
        """One that was out has most likely been restarted, with an empty cache; one that goes to
        sleep drops its own. Who flickers between healthy and suspect, which may be at the pace of
        requests, takes work all the while, and nobody chooses again for that."""
        if now in (Health.EJECTED, Health.ASLEEP):
            self._chooser.forget(replica.id)
        if replica.takes_work != Standing(was).takes_work:
            self._gate.moved(replica.id, takes_work=replica.takes_work)
        if replica.takes_work:
            self._cold.arrived(replica.models)

    def left(self, replica: Replica) -> None:
        """Its last lease has ended."""
        self._relay.forget(replica.id)
        self._accounts.forget(replica.id)
        self._chooser.forget(replica.id)
        self._gate.forget(replica.id)


class CacheNews:
    """A `BlockListener`: the policy hears all, those who wait what may change their choice."""

    def __init__(self, policy: BlockListener, gate: Gate) -> None:
        self._policy = policy
        self._gate = gate

    def described(self, replica: ReplicaId, facts: EngineFacts) -> None:
        """How much fits in its cache."""
        self._policy.described(replica, facts)
        self._gate.described(replica, facts)

    def apply(self, replica: ReplicaId, events: Sequence[BlockEvent]) -> None:
        """Whoever waits for what has just been cleared may do better elsewhere."""
        self._policy.apply(replica, events)
        if any(isinstance(event, BlocksCleared) for event in events):
            self._gate.ask_again(replica)

    def retold(self, replica: ReplicaId) -> None:
        """The same of an engine that has started anew."""
        self._policy.retold(replica)
        self._gate.ask_again(replica)

    def certainty(self, replica: ReplicaId, certainty: Certainty) -> None:
        """Nothing to those who wait."""
        self._policy.certainty(replica, certainty)
