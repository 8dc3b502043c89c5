"""The book: opens an entry per request, and adds up what closed entries say.

Invariant: received = sum of all outcomes + open, at every moment.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, Protocol

from gateway.account.entry import Entry
from gateway.account.meters import ModelMeters
from gateway.record import Value
from gateway.vocabulary import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.clock import Clock
    from gateway.request import GenerationRequest
    from gateway.vocabulary import ModelName, ReplicaId, Seconds


class Ending(Value, frozen=True):
    """How requests end, as far as metrics tell them apart. Closed sets all.

    A msgspec.Struct: one is made per request, at a third of the price of a NamedTuple.
    """

    route: str
    model: str  # one that replicas serve, or empty
    outcome: str
    reason: str


class Scribe(Protocol):
    """Writes closed entries down."""

    def write(self, entry: Entry, ended_at: Seconds) -> None: ...


class Accounts:
    """Owns every open entry's number and all sums."""

    __slots__ = (
        "_clock",
        "_is_known",
        "_scribe",
        "attempts",
        "by_model",
        "endings",
        "open_entries",
        "received",
        "retries",
    )

    def __init__(self, clock: Clock, is_known: Callable[[ModelName], bool], scribe: Scribe) -> None:
        """`is_known` tells whether a model name may become a label."""
        self._clock = clock
        self._is_known = is_known
        self._scribe = scribe
        self.received = 0
        self.open_entries = 0
        self.endings: defaultdict[Ending, int] = defaultdict(int)
        self.by_model: dict[ModelName, ModelMeters] = {}
        self.attempts: defaultdict[tuple[ReplicaId, str], int] = defaultdict(int)
        """By the replica, and "ok" or a reason."""
        self.retries: defaultdict[str, int] = defaultdict(int)
        """By the reason of the attempt before."""

    def __repr__(self) -> str:
        return f"<Accounts received {self.received}, open {self.open_entries}, {self.outcomes()}>"

    def open(self, request_id: bytes, route: str, received_at: Seconds) -> Entry:
        """A request has been received: use the entry by `with`."""
        self.received += 1
        self.open_entries += 1
        return Entry(self, request_id, route, received_at)

    def aside(self, route: str, received_at: Seconds) -> Entry:
        """For a call of our own, made for requests that are accounted for themselves."""
        return Entry(_ASIDE, b"", route, received_at)

    def outcomes(self) -> dict[Outcome, int]:
        """How many requests ended how."""
        sums: Counter[Outcome] = Counter()
        for ending, count in self.endings.items():
            sums[Outcome(ending.outcome)] += count
        return dict(sums)

    def attempted(self, replica: ReplicaId, result: str) -> None:
        """One attempt ended."""
        self.attempts[replica, result] += 1

    def forget(self, replica: ReplicaId) -> None:
        """A replica has left for good: its series end."""
        for key in [key for key in self.attempts if key[0] == replica]:
            del self.attempts[key]

    # What entries ask

    def meters(self, request: GenerationRequest) -> ModelMeters:
        """The meters of a request's model, which a replica serves. O(1)."""
        found = self.by_model.get(request.model)
        if found is None:
            found = self.by_model[request.model] = ModelMeters()
        return found

    def close(self, entry: Entry) -> None:
        """An entry has ended: add it up and write it down. O(1)."""
        now = self._clock()
        outcome = entry.outcome
        if outcome is None:
            raise AssertionError("an entry closes with an outcome")
        self.open_entries -= 1
        request = entry.request
        model = request.model if request is not None and self._is_known(request.model) else ""
        self.endings[Ending(entry.route, model, outcome, entry.reason)] += 1
        meters = entry.meters_of_model
        if meters is not None:
            _measure(meters, entry, now)
        self._scribe.write(entry, now)


class _Aside:
    """A book that keeps nothing."""

    def meters(self, request: GenerationRequest) -> ModelMeters:
        """Some that nobody reads."""
        return ModelMeters()

    def close(self, entry: Entry) -> None:
        """Nothing to add up."""


_ASIDE: Final = _Aside()


def _measure(meters: ModelMeters, entry: Entry, now: Seconds) -> None:
    meters.duration_s.observe(now - entry.received_at)
    queue_s, ttft_s = entry.queue_s, entry.ttft_s
    if queue_s is not None:
        meters.queue_s.observe(queue_s)
    if ttft_s is not None:
        meters.ttft_s.observe(ttft_s)
        per_token_s = entry.time_per_output_token_s
        if per_token_s is not None:
            meters.time_per_output_token_s.observe(per_token_s)
    usage = entry.usage
    meters.prompt_tokens += usage.prompt_tokens or 0
    meters.cached_tokens += usage.cached_tokens or 0
    meters.output_tokens += usage.output_tokens or 0
