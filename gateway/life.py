"""The life of one request: accept, identify, parse, admit, choose, relay, account.

This is the corridor: it visits the rooms in their order and is the only module that knows it. It
touches no socket, clock or metric itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

from gateway.account.usage import read_usage
from gateway.choose.explain import decision
from gateway.errors import ClientGone, CutShort, GatewayError, ReplicaError, ReplicaFailed
from gateway.fleet.health import Sign
from gateway.parse.parser import Message
from gateway.relay.attempt import ANYTHING_GOES, UNAVAILABLE, UNWELL, Client

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.accept.amend import Value
    from gateway.account.accounts import Accounts
    from gateway.account.entry import Entry
    from gateway.account.usage import Usage
    from gateway.admit.admission import Admission
    from gateway.choose.chooser import Choice, Chooser
    from gateway.clock import Clock
    from gateway.fleet.ledger import Replica
    from gateway.fleet.roster import Roster
    from gateway.parse.parser import Parser
    from gateway.relay.attempt import Reply
    from gateway.relay.relay import Relay
    from gateway.relay.retries import Retries
    from gateway.tenants.tenancy import Strangers, Tenancy
    from gateway.vocabulary import GenerationRequest, ReplicaId, Seconds

EXPLAIN: Final = b"x-headrace-explain"
DECISION: Final = b"x-headrace-decision: "


class Exchange(Message, Client, Protocol):
    """What lives: an exchange of the express lane, or an errand of our own."""

    replica: ReplicaId | None
    """Where the last attempt went."""

    notes: Sequence[bytes]
    """Header lines of our own for the response."""

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

    def refuse(self, error: GatewayError) -> None: ...

    def cut(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Life:
    """The rooms, in the order of a request's life."""

    tenants: Tenancy | Strangers
    parser: Parser
    admission: Admission
    fleet: Roster
    chooser: Chooser
    relay: Relay
    retries: Retries
    accounts: Accounts
    clock: Clock

    async def live(self, exchange: Exchange) -> None:
        """Carry one accepted exchange to its end.

        Whatever happens, cancellation included, the entry closes with exactly one outcome and every
        lease taken on the way is given back.
        """
        with self.accounts.open(
            exchange.request_id, exchange.route.path, exchange.received_at
        ) as entry:
            try:
                caller = self.tenants.identify(exchange)
                entry.identified(caller.tenant.name, caller.key_id)
                request = caller.asks(self.parser.parse(exchange))
                entry.parsed(request)
                with self.admission, caller.stay(request, exchange, entry):
                    await self._deliver(request, exchange, entry)
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

    async def _deliver(self, request: GenerationRequest, exchange: Exchange, entry: Entry) -> None:
        """Try replicas until one has answered, or no other may be tried."""
        self.retries.earn()
        tried: list[Replica] = []
        for attempt in count(1):
            candidates = self.fleet.candidates(request.model)
            untried = [one for one in candidates if one not in tried] if tried else candidates
            choice = self.chooser.choose(request, untried, self.clock())
            tried.append(choice.replica)
            if EXPLAIN in exchange.fields:
                others = [note for note in exchange.notes if not note.startswith(DECISION)]
                exchange.notes = (*others, DECISION + decision(choice, request.prompt_tokens))
            leave_on = ANYTHING_GOES
            if len(untried) > 1 and self.retries.may_follow(attempt, self.clock()):
                leave_on = UNWELL if attempt == 1 else UNAVAILABLE
            try:
                return await self._attempt(choice, request, exchange, entry, leave_on)
            except ReplicaError as error:
                if exchange.has_started or not self._another(request, tried):
                    raise
                if not self.retries.allows(error, attempt, self.clock()):
                    raise
                self.accounts.retries[error.reason] += 1

    async def _attempt(
        self,
        choice: Choice[Replica],
        request: GenerationRequest,
        exchange: Exchange,
        entry: Entry,
        leave_on: frozenset[int],
    ) -> None:
        """One try. What it says of the replica is taken down under the lease: when the last lease
        on a replica that has left ends, everything about it is forgotten."""
        now = self.clock()
        replica = choice.replica
        exchange.replica = replica.id
        with (
            replica.lease(request.prompt_tokens) as lease,
            self.chooser.dispatched(request, choice, now) as claim,
        ):
            entry.dispatched(replica.id, lease, now, claim)
            try:
                reply = await self.relay.run(
                    replica.address, exchange, entry, stream=request.stream, leave_on=leave_on
                )
            except ReplicaError as error:
                self._failed(replica, error)
                raise
            usage = self._answered(replica, request, reply, entry)
            claim.answered(usage.prompt_tokens, usage.cached_tokens, self.clock())

    def _another(self, request: GenerationRequest, tried: list[Replica]) -> bool:
        """Is there a replica that has not been tried?"""
        try:
            return any(one not in tried for one in self.fleet.candidates(request.model))
        except GatewayError:
            return False

    def _failed(self, replica: Replica, error: ReplicaError) -> None:
        self.accounts.attempted(replica.id, error.reason)
        self.fleet.sign(replica, Sign.FAILURE, self.clock())

    def _answered(
        self, replica: Replica, request: GenerationRequest, reply: Reply, entry: Entry
    ) -> Usage:
        """A response was relayed whole: what does it say of the replica, and of prompts?"""
        usage = read_usage(reply.tail())
        error = ReplicaFailed() if reply.status >= 500 else None
        entry.answered(reply.status, usage, error)
        if error is not None:
            self._failed(replica, error)
            return usage
        self.accounts.attempted(replica.id, "ok")
        if reply.status < 400:  # a refusal, 429 among them, says nothing of the replica's health
            self.fleet.sign(replica, Sign.SUCCESS, self.clock())
        if usage.prompt_tokens is not None:
            self.parser.learn(request, usage.prompt_tokens)
        return usage
