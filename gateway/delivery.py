"""The second half of a request's life: choose, hold, relay, and again where one did not answer.

Only here is known in which order these rooms are visited. Touches no socket, clock or metric
itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.account.accounts import Accounts
from gateway.account.tracing import CHOOSE, WAIT
from gateway.account.usage import read_usage
from gateway.choose.chooser import Chooser
from gateway.choose.explain import decision, explained
from gateway.clock import Clock
from gateway.console.recent import Recent
from gateway.errors import GatewayError, NoReplica, ReplicaError, ReplicaFailed
from gateway.fleet.health import Sign
from gateway.fleet.roster import Roster
from gateway.hold.cold import ColdHold
from gateway.hold.gate import Gate
from gateway.hold.turn import ChooseAgain
from gateway.lessons import Lessons
from gateway.parse.parser import Parser
from gateway.relay.attempt import ANYTHING_GOES, UNAVAILABLE, UNWELL
from gateway.relay.relay import Relay
from gateway.relay.retries import Retries
from gateway.vocabulary import ServiceClass

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from gateway.account.entry import Entry
    from gateway.choose.chooser import Choice, Claim
    from gateway.exchange import AnyExchange
    from gateway.fleet.ledger import Lease, Replica
    from gateway.hold.turn import Turn
    from gateway.relay.attempt import Reply
    from gateway.request import GenerationRequest, Usage
    from gateway.vocabulary import ReplicaId, Seconds

EXPLAIN: Final = b"x-headrace-explain"
DECISION: Final = b"x-headrace-decision: "

_BATCH: Final = ServiceClass.BATCH  # found faster by names of our own
_SUCCESS: Final = Sign.SUCCESS


@dataclass(frozen=True, slots=True)
class Rooms:
    """Those that lie on the way."""

    fleet: Roster
    chooser: Chooser
    cold: ColdHold
    gate: Gate
    relay: Relay
    retries: Retries
    accounts: Accounts
    lessons: Lessons
    parser: Parser
    """Learns how long prompts are in tokens."""
    recent: Recent
    """What the console shows of choices, while somebody looks."""
    clock: Clock


class Delivery:
    """One request that has been admitted, on its way to an answer. `run` it once."""

    __slots__ = ("_entry", "_exchange", "_request", "_rooms", "_tried")

    def __init__(
        self, rooms: Rooms, request: GenerationRequest, exchange: AnyExchange, entry: Entry
    ) -> None:
        self._rooms = rooms
        self._request = request
        self._exchange = exchange
        self._entry = entry
        self._tried: list[Replica] = []

    async def run(self) -> None:
        """Try replicas until one has answered, or no other may be tried. Raises GatewayErrors."""
        rooms, tried = self._rooms, self._tried
        rooms.retries.earn()
        attempt = 1
        try:
            while True:
                candidates = self._at_hand() or await self._awaited()
                if (
                    attempt == 1
                    and rooms.lessons.first_s
                    and rooms.chooser.doubts(self._request, candidates)
                ):
                    self._request = await rooms.lessons.read_first(self._request, candidates)
                    candidates = self._at_hand() or await self._awaited()
                untried = candidates
                if tried:  # whoever waited for the last one that was untried may find it gone
                    untried = [one for one in candidates if one not in tried] or candidates
                now = rooms.clock()
                choice = self._choose(untried, now)
                tried.append(choice.replica)
                leave_on = ANYTHING_GOES
                if len(untried) > 1 and rooms.retries.may_follow(attempt, now):
                    leave_on = UNWELL if attempt == 1 else UNAVAILABLE
                try:
                    return await self._attempt(choice, leave_on, now)
                except ChooseAgain:
                    tried.pop()
                except ReplicaError as error:
                    if self._exchange.has_started or not self._another():
                        raise
                    if not rooms.retries.allows(error, attempt, rooms.clock()):
                        raise
                    rooms.accounts.retries[error.reason] += 1
                    attempt += 1
        finally:
            rooms.gate.left(self._exchange)

    def _at_hand(self) -> Sequence[Replica]:
        """Who may be asked now; empty where that is nobody. What may be asked of some only is not
        held for them, since it can wait where it comes from: raises NoReplica."""
        fleet, among, model = self._rooms.fleet, self._exchange.among, self._request.model
        return fleet.serving(model) if among is None else _only(fleet.candidates(model), among)

    async def _awaited(self) -> Sequence[Replica]:
        """Who may be asked, in time: a model that is known and has no replica is waited for."""
        rooms, exchange, model = self._rooms, self._exchange, self._request.model
        while not (candidates := rooms.fleet.serving(model)):
            known = rooms.fleet.known_at_zero(model)
            if known is None:
                return rooms.fleet.candidates(model)  # which says why there are none
            if self._entry.trace is not None:
                self._entry.trace.begin(WAIT, rooms.clock())
            rooms.gate.left(exchange)  # it waits for whatever comes now, and there is room for that
            await rooms.cold.wait(known, self._request, exchange)
        return candidates

    def _another(self) -> bool:
        """Is there a replica that may be asked and has not been tried?"""
        among = self._exchange.among
        try:
            candidates = self._rooms.fleet.candidates(self._request.model)
            if among is not None:
                candidates = _only(candidates, among)
        except GatewayError:
            return False
        return any(one not in self._tried for one in candidates)

    # Choose

    def _choose(self, replicas: Sequence[Replica], now: Seconds) -> Choice[Replica]:
        """One of these; whoever wants to know why is told."""
        rooms, request, exchange = self._rooms, self._request, self._exchange
        trace = self._entry.trace
        if trace is not None:
            trace.begin(CHOOSE, now)
        choice = rooms.chooser.choose(request, replicas, now)
        if trace is not None:
            quote = choice.quote
            prediction = None if quote is None else quote.prediction(choice.index)
            trace.chose(choice.replica.id, len(replicas), prediction, rooms.clock())
        if rooms.recent.is_wanted:
            rooms.recent.chosen(request, explained(choice), now)
        if EXPLAIN in exchange.fields:
            others = [note for note in exchange.notes if not note.startswith(DECISION)]
            exchange.notes = (*others, DECISION + decision(choice, request.prompt_tokens))
        return choice

    # Hold

    async def _attempt(
        self, choice: Choice[Replica], leave_on: frozenset[int], now: Seconds
    ) -> None:
        """One try of what was chosen just now, when its turn has come.

        It counts as the replica's while it waits, so that who chooses next sees it; a batch does
        not, for whoever comes after a batch will go before it. What a try says of the replica is
        taken down under the lease: when the last lease on a replica that has left ends, everything
        about it is forgotten.
        """
        rooms, request, exchange = self._rooms, self._request, self._exchange
        replica, tokens = choice.replica, request.prompt_tokens
        exchange.replica = None
        if request.tenant.service_class is _BATCH:
            with (
                await rooms.gate.turn(
                    request, replica.id, choice.uncached(tokens), exchange
                ) as turn,
                replica.lease(tokens) as lease,
                rooms.chooser.dispatched(request, choice, rooms.clock()) as claim,
            ):
                turn.claim = claim
                self._sent(replica, turn, lease, claim)
                await self._relay(replica, turn, leave_on)
        else:
            with (
                replica.lease(tokens) as lease,
                rooms.chooser.dispatched(request, choice, now) as claim,
                await rooms.gate.turn(request, replica.id, claim.uncached, exchange, claim) as turn,
            ):
                self._sent(replica, turn, lease, claim)
                await self._relay(replica, turn, leave_on)

    def _sent(self, replica: Replica, turn: Turn, lease: Lease, claim: Claim) -> None:
        """It is on its way there. What the policy learns from that is read beside it; some engines
        can tell more."""
        rooms, request, exchange = self._rooms, self._request, self._exchange
        exchange.replica = replica.id
        self._entry.dispatched(replica.id, lease, rooms.clock(), turn)
        rooms.lessons.dispatched(request, claim, replica)
        if rooms.recent.is_wanted and claim.dispatch is not None:
            rooms.recent.sent(request, claim.dispatch.hashes, rooms.clock())
        if claim.wants_report and replica.facts.version is not None:  # it is vLLM
            exchange.amend("vllm_xargs", "kv_cache_report_mode", value=b'"full"')

    # Relay

    async def _relay(self, replica: Replica, turn: Turn, leave_on: frozenset[int]) -> None:
        rooms, exchange, entry = self._rooms, self._exchange, self._entry
        trace = entry.trace
        if trace is not None:
            exchange.forwarded = trace.sent(self._request, replica.address, rooms.clock())
        try:
            reply = await rooms.relay.run(
                replica.address, exchange, entry, stream=turn.is_stream, leave_on=leave_on
            )
        except ReplicaError as error:
            if trace is not None:
                trace.end(rooms.clock(), error.reason)
            self._failed(replica, error)
            raise
        now = rooms.clock()
        turn.answered(self._answered(replica, reply, now), now)

    def _failed(self, replica: Replica, error: ReplicaError) -> None:
        rooms = self._rooms
        rooms.accounts.attempted(replica.id, error.reason)
        rooms.fleet.sign(replica, Sign.FAILURE, rooms.clock())

    def _answered(self, replica: Replica, reply: Reply, now: Seconds) -> Usage:
        """A response was relayed whole: what does it say of the replica, and of prompts?"""
        rooms, tail = self._rooms, reply.tail()
        usage = read_usage(tail)
        error = ReplicaFailed() if reply.status >= 500 else None
        self._entry.answered(reply.status, usage, error)
        if error is not None:
            self._failed(replica, error)
            return usage
        rooms.accounts.attempted(replica.id, "ok")
        if reply.status < 400:  # a refusal, 429 among them, says nothing of the replica's health
            rooms.fleet.sign(replica, _SUCCESS, now)
        if usage.prompt_tokens is not None:
            rooms.parser.learn(self._request, usage.prompt_tokens)
        rooms.lessons.answered(replica, tail)
        return usage


def _only(candidates: Sequence[Replica], among: Container[ReplicaId]) -> Sequence[Replica]:
    """Raises NoReplica where that leaves none."""
    left = [replica for replica in candidates if replica.id in among]
    if not left:
        raise NoReplica
    return left
