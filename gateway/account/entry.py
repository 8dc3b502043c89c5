"""One entry per request: what happened when, and how it ended.

    received --> parsed --> dispatched --> relaying --> closed
        |           |           |  ^          |           ^
        |           |           |  `- retry ---           |
        `-----------`-----------`-------------`-----------'

Invariants. An entry closes exactly once, with exactly one outcome, however its block is left. Marks
only move forward in time. Nothing here reads a clock.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from gateway.account.usage import NOTHING
from gateway.errors import Bug, GatewayError
from gateway.ports import Watcher
from gateway.request import GenerationRequest, Usage
from gateway.vocabulary import Outcome, ReplicaId, Seconds, Tokens

if TYPE_CHECKING:
    from gateway.account.meters import Histogram, ModelMeters
    from gateway.account.tracing import Trace
    from gateway.ports import Owing, Sent


_FINISHED: Final = Outcome.FINISHED  # found faster by a name of our own


class Book(Protocol):
    """Where entries go when they are closed."""

    def meters(self, request: GenerationRequest) -> ModelMeters: ...

    def close(self, entry: Entry) -> None: ...


class Entry(Watcher):
    """The account of one request. `with entry:` closes it."""

    __slots__ = (
        "_book",
        "_claim",
        "_gaps",
        "_has_streamed",
        "_lease",
        "_meters",
        "attempts",
        "chunks",
        "dispatched_at",
        "error",
        "first_byte_at",
        "key_id",
        "last_byte_at",
        "outcome",
        "received_at",
        "replica",
        "request",
        "request_id",
        "route",
        "status",
        "tenant",
        "trace",
        "usage",
    )

    def __init__(self, book: Book, request_id: bytes, route: str, received_at: Seconds) -> None:
        self._book = book
        self._gaps: Histogram | None = None  # where a stream's gaps between chunks are measured
        self._has_streamed = False
        self._lease: Owing | None = None
        self._claim: Sent | None = None
        self._meters: ModelMeters | None = None
        self.request_id = request_id
        self.route = route
        self.received_at = received_at
        self.trace: Trace | None = None  # if it is traced
        self.tenant: str | None = None  # its name
        self.key_id: str | None = None
        self.request: GenerationRequest | None = None
        self.replica: ReplicaId | None = None
        self.attempts = 0
        self.dispatched_at: Seconds | None = None
        self.first_byte_at: Seconds | None = None
        self.last_byte_at: Seconds | None = None
        self.chunks = 0
        self.status: int | None = None
        self.usage: Usage = NOTHING
        self.error: GatewayError | None = None
        self.outcome: Outcome | None = None

    def __repr__(self) -> str:
        return f"<Entry {self.route} {self.outcome or 'open'} after {self.attempts} attempts>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.outcome is None:
            self.failed(error if isinstance(error, GatewayError) else Bug())
        self._book.close(self)

    @property
    def ttft_s(self) -> Seconds | None:
        """Received to the first byte sent on.

        None before that, where no stream was asked for, and where an error came instead of one.
        """
        if self.first_byte_at is None or not self._has_streamed:
            return None
        return self.first_byte_at - self.received_at

    @property
    def queue_s(self) -> Seconds | None:
        """Received to first dispatched."""
        return None if self.dispatched_at is None else self.dispatched_at - self.received_at

    @property
    def time_per_output_token_s(self) -> Seconds | None:
        """(end - first token) / (output tokens - 1), as `vllm bench serve` defines TPOT."""
        tokens = self.usage.output_tokens
        if self.ttft_s is None or self.last_byte_at is None or tokens is None or tokens < 2:
            return None
        return (self.last_byte_at - self.received_at - self.ttft_s) / (tokens - 1)

    # Steps of a life, in their order

    def identified(self, tenant: str, key_id: str | None) -> None:
        """We know who asks, and by which key; an empty name is nobody in particular."""
        if tenant:
            self.tenant, self.key_id = tenant, key_id

    def parsed(self, request: GenerationRequest) -> None:
        """We know what is asked."""
        self.request = request

    def dispatched(
        self, replica: ReplicaId, lease: Owing, now: Seconds, claim: Sent | None = None
    ) -> None:
        """An attempt begins."""
        if self.dispatched_at is None:
            self.shared(now)
        self.attempts += 1
        self.replica = replica
        self._lease = lease
        self._claim = claim

    def shared(self, now: Seconds) -> None:
        """It is asked of a replica, by itself or in a call made for several requests."""
        self.dispatched_at = now
        if self.request is not None:
            self._meters = self._book.meters(self.request)
            self._has_streamed = self.request.stream
            self._gaps = self._meters.inter_token_s if self.request.stream else None

    def first_byte(self, now: Seconds) -> None:
        """The replica has begun to answer: the prompt has been read."""
        self.first_byte_at = self.last_byte_at = now
        self.chunks = 1
        if self._lease is not None:
            self._lease.prefilled()
        if self._claim is not None:
            self._claim.first_byte(now)

    def chunk(self, now: Seconds) -> None:
        """More of the response came. Called for every chunk."""
        if self._gaps is not None and self.last_byte_at is not None:
            self._gaps.observe(now - self.last_byte_at)
        self.last_byte_at = now
        self.chunks += 1

    def answered(self, status: int, usage: Usage, error: GatewayError | None) -> None:
        """The response was relayed whole; `error` where the replica's answer was a failure."""
        self.status = status
        self.usage = usage
        self.error = error
        self._has_streamed = self._has_streamed and status < 400
        self.outcome = _FINISHED if error is None else error.outcome

    def failed(self, error: GatewayError) -> None:
        """It ended early."""
        if self.outcome is None:
            self.error = error
            self.outcome = error.outcome
            self.status = error.status

    @property
    def reason(self) -> str:
        """Why it ended early; empty where it did not."""
        return self.error.reason if self.error is not None else ""

    @property
    def meters_of_model(self) -> ModelMeters | None:
        """The meters of its model, once it has been dispatched."""
        return self._meters

    @property
    def uncached(self) -> Tokens | None:
        """Prompt tokens that its replica is believed not to hold; None before it has one."""
        return None if self._claim is None else self._claim.uncached

    @property
    def prompt_tokens(self) -> Tokens | None:
        """As the replica counted them."""
        return self.usage.prompt_tokens
