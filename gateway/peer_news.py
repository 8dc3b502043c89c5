"""What other gateways are told of us, and who is told of them: rows of figures, out of the rooms
and into them.

    a replica   what the fleet's ledger, the gate and the policy have there
    a tenant    what it has used of its limits, and has open
    a model     our share of the demand for it

A row is told by every gateway of itself; each room keeps them apart by gateway, and adds them up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from msgspec.structs import astuple, replace

from gateway.choose import target
from gateway.clock import wall
from gateway.demand import Share
from gateway.hold import capacity
from gateway.peers.rows import Key, Row, Rows, Topic
from gateway.tenants import limits
from gateway.tenants.ration import ALONE, Ranks
from gateway.tenants.tenancy import Tenancy
from gateway.vocabulary import Health, ModelName, ReplicaId, Seconds

if TYPE_CHECKING:
    from gateway.delivery import Rooms
    from gateway.fleet.ledger import Replica
    from gateway.kv_cache import Placement
    from gateway.peers.share import Change, Peers
    from gateway.scale.demands import Demands
    from gateway.tenants.tenancy import Strangers

LEDGER, GATE, POLICY = 2, 7, 9
"""How many figures of a replica's row are whose, in this order."""

FIGURES: Final = {Topic.REPLICA: LEDGER + GATE + POLICY, Topic.TENANT: 8, Topic.MODEL: 13}

DEMAND_EVERY_S: Final = 0.2
"""Rates fade all the time: they are not told every time."""


class PeerNews:
    """The rooms, as other gateways know them. A `RosterListener`, too."""

    def __init__(self, rooms: Rooms, tenants: Tenancy | Strangers, demands: Demands) -> None:
        self._gate = rooms.gate
        self._chooser = rooms.chooser
        self._clock = rooms.clock
        self._tenants = tenants if isinstance(tenants, Tenancy) else None
        self._demands = demands
        self._demand_rows: dict[Key, Row] = {}
        self._demand_at = -DEMAND_EVERY_S
        self._replicas: dict[ReplicaId, Replica] = {}
        self._stirred: set[ReplicaId] = set()
        """Replicas whose rows may be others than they were told."""
        self.peers: Peers | None = None
        """Once there is a link."""
        self._wake: Callable[[], object] | None = None
        self._gate.on_change = self._stir

    def __repr__(self) -> str:
        return f"<PeerNews of {len(self._replicas)} replicas>"

    def link(self, peers: Peers, wake: Callable[[], object]) -> None:
        """There are others, and `wake` has them told what has changed."""
        self.peers = peers
        self._wake = wake
        for replica in self._replicas.values():
            replica.on_change = self._stir

    # What others are told

    def _stir(self, replica: ReplicaId) -> None:
        """What we have there has changed. O(1)."""
        if self._wake is not None:
            self._stirred.add(replica)
            self._wake()

    def rows(self) -> Rows:
        """All of ours."""
        tenancy = self._tenants
        tenants = self._tenant_rows(() if tenancy is None else tenancy.members)
        return self._replica_rows(self._replicas) | tenants | self._model_rows()

    def news(self) -> Rows:
        """Those of replicas that were stirred, of models now and then, and of tenants who have been
        here since the last call."""
        rows = self._replica_rows(self._stirred) | self._model_rows()
        tenancy = self._tenants
        if tenancy is not None and tenancy.touched:
            touched, tenancy.touched = tenancy.touched, set()
            rows |= self._tenant_rows(touched)
        return rows

    def _replica_rows(self, names: Iterable[ReplicaId]) -> dict[Key, Row]:
        """Of those that have ever had anything. The prompts of unary requests are begun by the
        clock, so who has anything un-begun is looked at again though nobody stirs it."""
        gate, chooser, replicas = self._gate, self._chooser, self._replicas
        rows: dict[Key, Row] = {}
        restless: set[ReplicaId] = set()
        for name in names:
            replica = replicas.get(name)
            if replica is None:
                continue
            held = gate.part(name)
            row = (
                replica.own_requests,
                replica.own_prompt_tokens,
                *_told(held, self._ahead_s()),
                *astuple(chooser.part(name)),
            )
            if any(row):
                rows[Topic.REPLICA, name] = row
            if held.unbegun:
                restless.add(name)
        self._stirred = restless
        return rows

    def _tenant_rows(self, names: Iterable[str]) -> dict[Key, Row]:
        """Of those that are limited and have ever been here."""
        if self._tenants is None:
            return {}
        now, members = self._clock(), self._tenants.members
        rows: dict[Key, Row] = {}
        for name in names:
            member = members.get(name)
            if member is not None and member.allowance.is_limited:
                row = astuple(member.allowance.part(now))
                if any(row):
                    rows[Topic.TENANT, name] = row
        return rows

    def _model_rows(self) -> dict[Key, Row]:
        """As of late; at once where somebody begins to wait for a replica."""
        now = self._clock()
        if now - self._demand_at >= DEMAND_EVERY_S:
            self._demand_at = now
            self._demand_rows = {
                (Topic.MODEL, model): _row_of(share)
                for model in self._demands.models()
                if (share := self._demands.share(model)) != Share()
            }
        return self._demand_rows

    def hurry(self, _: ModelName) -> None:
        """The demand for this model is to be told at once."""
        self._demand_at = -DEMAND_EVERY_S
        if self._wake is not None:
            self._wake()

    def of_others(self, model: ModelName) -> list[Share]:
        """See `demand.OtherShares`."""
        if self.peers is None:
            return []
        rows = self.peers.rows_of((Topic.MODEL, model))
        return [_share_of(row) for _, row in rows if _is_understood(Topic.MODEL, row)]

    # What we are told of them. A link's `Rooms`

    def heard(self, changes: Sequence[Change]) -> None:
        """Into the rooms; what we do not know, or not understand, is left."""
        for change in changes:
            topic, name = change.key
            if change.now is not None and not _is_understood(topic, change.now):
                continue
            if topic is Topic.REPLICA:
                replica = self._replicas.get(ReplicaId(name))
                if replica is not None:
                    self._at_replica(replica, change.peer, change.now)
            elif topic is Topic.TENANT:
                self._of_tenant(name, change)
            elif _queued(change.now) and not _queued(change.was):
                self._demands.activated(ModelName(name))

    def placements(self) -> Sequence[Placement]:
        """Prompts that we have sent since the last call."""
        return self._chooser.placements()

    def placed(self, placements: Sequence[Placement]) -> None:
        """Others have sent these."""
        now = self._clock()
        for each in placements:
            name = ReplicaId(each.replica)
            if name in self._replicas and self._chooser.placed(each, now):
                self._stir(name)

    def beside(self, gateways: Sequence[str], ours: int) -> None:
        """Limits are kept by all of these together, caches filled, and replicas given work."""
        self._chooser.beside(len(gateways), ours)
        self._gate.beside(len(gateways))
        if self._tenants is not None:
            self._tenants.ranks = Ranks(len(gateways), ours) if len(gateways) > 1 else ALONE

    def _at_replica(self, replica: Replica, peer: str, row: Row | None) -> None:
        now = self._clock()
        gate_part, policy_part = capacity.NO_PART, target.NO_PART
        requests = prompt_tokens = 0
        if row is not None:
            figures = [int(figure) for figure in row]
            requests, prompt_tokens = figures[:LEDGER]
            gate_part = _understood(figures[LEDGER : LEDGER + GATE], self._ahead_s())
            policy_part = target.Part(*figures[LEDGER + GATE :])
        replica.others(peer, requests, prompt_tokens)
        self._chooser.others(replica.id, peer, policy_part, now)
        self._gate.others(replica.id, peer, gate_part, now)

    def _ahead_s(self) -> Seconds:
        """Of our clock, the wall's: gateways tell instants by that."""
        return wall() - self._clock()

    def _of_tenant(self, name: str, change: Change) -> None:
        member = self._tenants.members.get(name) if self._tenants is not None else None
        if member is not None:
            row = change.now
            member.allowance.others(
                f"{change.peer} {change.epoch}",
                None if row is None else limits.Part(*[int(figure) for figure in row]),
                self._clock(),
                is_past=change.is_past,
            )

    # What becomes of replicas. A `RosterListener`

    def joined(self, replica: Replica) -> None:
        """Others may have known it before us."""
        self._replicas[replica.id] = replica
        replica.on_change = self._stir if self._wake is not None else None
        if self.peers is not None:
            for peer, row in self.peers.rows_of((Topic.REPLICA, replica.id)):
                if _is_understood(Topic.REPLICA, row):
                    self._at_replica(replica, peer, row)

    def changed(self, replica: Replica, was: Health, now: Health) -> None:
        """Nothing to others: they see for themselves."""

    def left(self, replica: Replica) -> None:
        """There is nothing of ours there any more."""
        del self._replicas[replica.id]
        self._stirred.discard(replica.id)
        replica.on_change = None


def _is_understood(topic: Topic, row: Row) -> bool:
    """Another version's row may hold other figures: then it is of another length."""
    return len(row) == FIGURES.get(topic)


def _told(held: capacity.Part, ahead_s: Seconds) -> Row:
    """A gate's part: the instant in milliseconds of the wall's clock, 0 where nobody waits."""
    *figures, due = astuple(held)
    return *figures, round((due + ahead_s) * 1000) if held.waiting else 0


def _understood(figures: Sequence[int], ahead_s: Seconds) -> capacity.Part:
    """The same by our own clock."""
    return replace(capacity.Part(*figures), first_due=figures[-1] / 1000 - ahead_s)


def _queued(row: Row | None) -> bool:
    """Does anybody wait, by the row of a model?"""
    return row is not None and row[0] > 0


def _row_of(share: Share) -> Row:
    figures = astuple(share)
    return tuple([float(figure) for figure in (*figures[:5], *figures[5], *figures[6:])])


def _share_of(row: Row) -> Share:
    requests, tokens, inflight, inflight_tokens = [int(figure) for figure in row[:4]]
    oldest_s, fast, slow, arriving, lumps, saved, backlog_s, held, is_awake = row[4:]
    return Share(
        requests, tokens, inflight, inflight_tokens, oldest_s,
        (fast, slow), arriving, lumps, saved, backlog_s, int(held), bool(is_awake),
    )  # fmt: skip
