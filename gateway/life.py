"""The life of one request: accept, identify, parse, admit, choose, hold, relay, account.

This is the corridor: it visits the rooms in their order and is the only module that knows it. It
touches no socket, clock or metric itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from gateway.accept.amend import amended
from gateway.account.accounts import Accounts
from gateway.account.tracing import CHOOSE, WAIT, Tracer
from gateway.account.usage import read_usage
from gateway.admit.admission import Admission
from gateway.choose.chooser import Chooser
from gateway.choose.explain import decision, document, explained, ranked, reason
from gateway.clock import Clock
from gateway.console.recent import Recent
from gateway.errors import (
    ClientGone,
    CutShort,
    GatewayError,
    NoReplica,
    ReplicaError,
    ReplicaFailed,
)
from gateway.fleet.health import Sign
from gateway.fleet.roster import Roster
from gateway.hold.cold import ColdHold
from gateway.hold.gate import Gate
from gateway.hold.turn import ChooseAgain
from gateway.lessons import Lessons
from gateway.parse.parser import Message, Parser, Shown
from gateway.relay.attempt import ANYTHING_GOES, UNAVAILABLE, UNWELL, Client
from gateway.relay.relay import Relay
from gateway.relay.retries import Retries
from gateway.scale.demands import Demands
from gateway.tenants.tenancy import HESITATION_S, Caller, Strangers, Tenancy
from gateway.trust.opa import Opa
from gateway.vocabulary import ServiceClass

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from gateway.accept.amend import Value
    from gateway.account.entry import Entry
    from gateway.account.usage import Usage
    from gateway.choose.chooser import Choice, Claim
    from gateway.fleet.ledger import Replica
    from gateway.hold.turn import Turn
    from gateway.relay.attempt import Reply
    from gateway.vocabulary import GenerationRequest, ReplicaId, Route, Seconds, Tenant

EXPLAIN: Final = b"x-headrace-explain"
DECISION: Final = b"x-headrace-decision: "

_BATCH: Final = ServiceClass.BATCH  # found faster by a name of our own


class Exchange(Message, Client, Protocol):
    """What lives: an exchange of the express lane, or an errand of our own."""

    replica: ReplicaId | None
    """Where the last attempt went, once it has gone."""

    @property
    def among(self) -> Container[ReplicaId] | None:
        """The only replicas to ask; None: any."""

    notes: Sequence[bytes]
    """Header lines of our own for the response."""

    forwarded: bytes
    """The header lines that replicas are sent."""

    @property
    def body(self) -> bytes: ...
    @property
    def request_id(self) -> bytes: ...
    @property
    def on_behalf_of(self) -> str | None:
        """The tenant, where it is known without a key."""

    def amend(self, *path: str, value: Value) -> None:
        """Set a member of the JSON object that the body is."""

    @property
    def received_at(self) -> Seconds: ...
    @property
    def has_started(self) -> bool:
        """A response head has been decided: nobody else may be tried."""

    @property
    def is_gone(self) -> bool:
        """Nobody waits for the response."""

    def keep_waiting(self) -> None:
        """A stream waits for its turn."""

    def refuse(self, error: GatewayError) -> None: ...

    def cut(self) -> None: ...


Deliver = Callable[["GenerationRequest", Exchange, "Entry"], Coroutine[None, None, None]]


class Pool(Protocol):
    """Calls that may go upstream together."""

    def takes(self, request: GenerationRequest) -> bool:
        """Is it of that kind?"""

    async def deliver(
        self, request: GenerationRequest, exchange: Exchange, entry: Entry, alone: Deliver
    ) -> None:
        """As `alone` would, if need be by it. Raises what it raises."""


@dataclass(frozen=True, slots=True)
class Life:
    """The rooms, in the order of a request's life."""

    tenants: Tenancy | Strangers
    parser: Parser
    admission: Admission
    fleet: Roster
    chooser: Chooser
    cold: ColdHold
    gate: Gate
    relay: Relay
    retries: Retries
    accounts: Accounts
    lessons: Lessons
    demands: Demands
    clock: Clock
    pool: Pool | None = None
    """Where calls that are only read share upstream calls, if they do."""
    recent: Recent = field(default_factory=Recent)
    """What the console shows of choices, while somebody looks."""
    tracer: Tracer | None = None
    """Who decides which requests are traced, if any are."""
    permits: Opa | None = None
    """The policy, if there is one."""

    async def live(self, exchange: Exchange) -> None:
        """Carry one accepted exchange to its end.

        Whatever happens, cancellation included, the entry closes with exactly one outcome and every
        lease taken on the way is given back.
        """
        with self.accounts.open(
            exchange.request_id, exchange.route.path, exchange.received_at
        ) as entry:
            if self.tracer is not None:
                entry.trace = self.tracer.begin(exchange)
            try:
                caller = self.tenants.identify(exchange)
                entry.identified(caller.tenant.name, caller.key_id)
                request = caller.asks(self.parser.parse(exchange))
                entry.parsed(request)
                if self.permits is not None:
                    await self.permits.check(request)
                while caller.hesitates(request):
                    await asyncio.sleep(HESITATION_S)
                with self.admission, caller.stay(request, exchange, entry):
                    self.demands.arrived(entry)
                    try:
                        if self.pool is None or not self.pool.takes(request):
                            await self._deliver(request, exchange, entry)
                        else:
                            await self.pool.deliver(request, exchange, entry, self._deliver)
                    finally:
                        self.demands.left(entry)
            except ClientGone as error:
                entry.failed(error)
                exchange.cut()  # who reads nothing would never come to the end of an explanation
            except GatewayError as error:
                entry.failed(error)
                exchange.refuse(error)
            except asyncio.CancelledError:
                # Cancelled because nobody listens any more, or because our own time is up.
                reason = ClientGone() if exchange.is_gone else CutShort()
                entry.failed(reason)
                exchange.refuse(reason)
                raise

    def foresee(self, route: Route, body: bytes, tenant: Tenant) -> dict[str, Any]:
        """Where a body of this tenant's would go now, and why. Nothing is sent, nothing remembered.

        Raises a GatewayError where the body would be refused.
        """
        salt = self.tenants.salt_for(tenant, route)
        if salt is not None:
            body = amended(body, ("cache_salt",), salt)
        request = Caller(tenant, None, None).asks(self.parser.parse(Shown(route, body)))
        candidates = self.fleet.candidates(request.model)
        quote, replicas = self.chooser.quote(request, candidates, self.clock())
        table = ranked(quote, len(replicas))
        return {
            "model": request.model,
            "prompt_tokens": request.prompt_tokens,
            "reason": reason(table[0], table[1] if len(table) > 1 else None),
            "replicas": document(table),
        }

    async def carry(self, exchange: Exchange) -> None:
        """Carry a call of our own, made for requests that have been admitted and are accounted for
        themselves. Refuses it as `live` does; if it is cancelled, nobody waits for it."""
        with self.accounts.aside(exchange.route.path, exchange.received_at) as entry:
            try:
                request = self.parser.parse(exchange)
                entry.parsed(request)
                await self._deliver(request, exchange, entry)
            except GatewayError as error:
                entry.failed(error)
                exchange.refuse(error)

    async def _deliver(self, request: GenerationRequest, exchange: Exchange, entry: Entry) -> None:
        """Try replicas until one has answered, or no other may be tried."""
        self.retries.earn()
        tried: list[Replica] = []
        attempt = 1
        while True:
            candidates = await self._candidates(request, exchange, entry)
            untried = candidates
            if attempt == 1 and self.lessons.first_s and self.chooser.doubts(request, candidates):
                request = await self.lessons.read_first(request, candidates)
                candidates = untried = await self._candidates(request, exchange, entry)
            if tried:  # whoever waited for the last one that was untried may find it gone
                untried = [one for one in candidates if one not in tried] or candidates
            choice = self._choose(request, untried, entry)
            tried.append(choice.replica)
            if self.recent.is_wanted:
                self.recent.chosen(request, explained(choice), self.clock())
            if EXPLAIN in exchange.fields:
                others = [note for note in exchange.notes if not note.startswith(DECISION)]
                exchange.notes = (*others, DECISION + decision(choice, request.prompt_tokens))
            leave_on = ANYTHING_GOES
            if len(untried) > 1 and self.retries.may_follow(attempt, self.clock()):
                leave_on = UNWELL if attempt == 1 else UNAVAILABLE
            try:
                return await self._attempt(choice, request, exchange, entry, leave_on)
            except ChooseAgain:
                tried.pop()
            except ReplicaError as error:
                if exchange.has_started or not self._another(request, tried):
                    raise
                if not self.retries.allows(error, attempt, self.clock()):
                    raise
                self.accounts.retries[error.reason] += 1
                attempt += 1

    async def _candidates(
        self, request: GenerationRequest, exchange: Exchange, entry: Entry
    ) -> Sequence[Replica]:
        """Who may be asked. A model that is known and has no replica is waited for; not by one that
        may be asked of some only, for it can wait where it comes from."""
        model = request.model
        if exchange.among is not None:
            return _only(self.fleet.candidates(model), exchange.among)
        while not (candidates := self.fleet.serving(model)):
            known = self.fleet.known_at_zero(model)
            if known is None:
                return self.fleet.candidates(model)  # which says why there are none
            if entry.trace is not None:
                entry.trace.begin(WAIT, self.clock())
            await self.cold.wait(known, request, exchange)
        return candidates

    def _choose(
        self, request: GenerationRequest, replicas: Sequence[Replica], entry: Entry
    ) -> Choice[Replica]:
        trace, now = entry.trace, self.clock()
        if trace is None:
            return self.chooser.choose(request, replicas, now)
        trace.begin(CHOOSE, now)
        choice = self.chooser.choose(request, replicas, now)
        quote = choice.quote
        prediction = None if quote is None else quote.prediction(choice.index)
        trace.chose(choice.replica.id, len(replicas), prediction, self.clock())
        return choice

    async def _attempt(
        self,
        choice: Choice[Replica],
        request: GenerationRequest,
        exchange: Exchange,
        entry: Entry,
        leave_on: frozenset[int],
    ) -> None:
        """One try, when its turn has come.

        What it says of the replica is taken down under the lease: when the last lease on a replica
        that has left ends, everything about it is forgotten. It counts as the replica's while it
        waits, so that who chooses next sees it; a batch does not, for whoever comes after a batch
        will go before it.
        """
        replica = choice.replica
        if request.tenant.service_class is _BATCH:
            exchange.replica = None  # an attempt before may have gone somewhere
            uncached = choice.uncached(request.prompt_tokens)
            with (
                await self.gate.turn(request, replica.id, uncached, exchange) as turn,
                replica.lease(request.prompt_tokens) as lease,
                self.chooser.dispatched(request, choice, self.clock()) as claim,
            ):
                turn.claim = claim
                exchange.replica = replica.id
                entry.dispatched(replica.id, lease, self.clock(), turn)
                self._teach(request, claim, replica, exchange)
                await self._relay(replica, turn, exchange, entry, leave_on)
            return
        with (
            replica.lease(request.prompt_tokens) as lease,
            self.chooser.dispatched(request, choice, self.clock()) as claim,
            await self.gate.turn(request, replica.id, claim.uncached, exchange, claim) as turn,
        ):
            exchange.replica = replica.id
            entry.dispatched(replica.id, lease, self.clock(), turn)
            self._teach(request, claim, replica, exchange)
            await self._relay(replica, turn, exchange, entry, leave_on)

    def _teach(
        self, request: GenerationRequest, claim: Claim, replica: Replica, exchange: Exchange
    ) -> None:
        """What the policy learns from a dispatch is read beside it; some engines can tell more."""
        self.lessons.dispatched(request, claim, replica)
        if self.recent.is_wanted and claim.dispatch is not None:
            self.recent.sent(request, claim.dispatch.hashes, self.clock())
        if claim.wants_report and replica.facts.version is not None:  # it is vLLM
            exchange.amend("vllm_xargs", "kv_cache_report_mode", value=b'"full"')

    async def _relay(
        self,
        replica: Replica,
        turn: Turn,
        exchange: Exchange,
        entry: Entry,
        leave_on: frozenset[int],
    ) -> None:
        trace = entry.trace
        if trace is not None and entry.request is not None:
            exchange.forwarded = trace.sent(entry.request, replica.address, self.clock())
        try:
            reply = await self.relay.run(
                replica.address, exchange, entry, stream=turn.is_stream, leave_on=leave_on
            )
        except ReplicaError as error:
            if trace is not None:
                trace.end(self.clock(), error.reason)
            self._failed(replica, error)
            raise
        usage = self._answered(replica, reply, entry)
        turn.answered(usage.prompt_tokens, usage.cached_tokens, usage.output_tokens, self.clock())

    def _another(self, request: GenerationRequest, tried: list[Replica]) -> bool:
        """Is there a replica that has not been tried?"""
        try:
            return any(one not in tried for one in self.fleet.candidates(request.model))
        except GatewayError:
            return False

    def _failed(self, replica: Replica, error: ReplicaError) -> None:
        self.accounts.attempted(replica.id, error.reason)
        self.fleet.sign(replica, Sign.FAILURE, self.clock())

    def _answered(self, replica: Replica, reply: Reply, entry: Entry) -> Usage:
        """A response was relayed whole: what does it say of the replica, and of prompts?"""
        tail = reply.tail()
        usage = read_usage(tail)
        error = ReplicaFailed() if reply.status >= 500 else None
        entry.answered(reply.status, usage, error)
        if error is not None:
            self._failed(replica, error)
            return usage
        self.accounts.attempted(replica.id, "ok")
        if reply.status < 400:  # a refusal, 429 among them, says nothing of the replica's health
            self.fleet.sign(replica, Sign.SUCCESS, self.clock())
        if usage.prompt_tokens is not None and entry.request is not None:
            self.parser.learn(entry.request, usage.prompt_tokens)
        self.lessons.answered(replica, tail)
        return usage


def _only(candidates: Sequence[Replica], among: Container[ReplicaId]) -> Sequence[Replica]:
    """Raises NoReplica where that leaves none."""
    left = [replica for replica in candidates if replica.id in among]
    if not left:
        raise NoReplica
    return left
