"""The nouns of demand: how many replicas a model needs now, and what that is made of.

Asked by the room that works it out (`scale`), by whoever tells an autoscaler, and by gateways that
tell each other. Everything is by model.

Several gateways before one fleet each see a part of the traffic. What one of them sees is its
`Share`, in which everything adds up: work and tokens are sums over requests, a rate of arrivals is
a sum over arrivals weighed by their age, and the oldest of all waits is the oldest of the oldest.
Replicas needed do not add up (one replica each is not one in all), so they are worked out last,
from the sum; every gateway that has heard the same shares says the same. Replicas themselves are
seen by every gateway alike, and are never added.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

import msgspec

from gateway.vocabulary import ModelName, Seconds, Tokens


class Share(msgspec.Struct, frozen=True):
    """What one gateway knows of the demand for one model at one instant.

    `arriving` is the work that arrives, in replica-seconds per second: of late, and over a longer
    past; `requests` is how many bring it and `lumps` the sum of squares of what each costs, per
    second. `saved` is the work per second that caches spare. `backlog_s` is the work of those that
    wait, in replica-seconds, `held_tokens` the room in KV caches that requests in flight and
    waiting take in the end. `is_awake` holds while there are requests, and for a while after.
    """

    queued_requests: int = 0
    queued_tokens: Tokens = 0
    inflight_requests: int = 0
    inflight_tokens: Tokens = 0
    oldest_wait_s: Seconds = 0.0
    arriving: tuple[float, float] = (0.0, 0.0)
    requests: float = 0.0
    lumps: float = 0.0
    saved: float = 0.0
    backlog_s: Seconds = 0.0
    held_tokens: Tokens = 0
    is_awake: bool = False

    def plus(self, other: Share) -> Share:
        """What two gateways know together. Commutative and associative; Share() adds nothing."""
        return Share(
            queued_requests=self.queued_requests + other.queued_requests,
            queued_tokens=self.queued_tokens + other.queued_tokens,
            inflight_requests=self.inflight_requests + other.inflight_requests,
            inflight_tokens=self.inflight_tokens + other.inflight_tokens,
            oldest_wait_s=max(self.oldest_wait_s, other.oldest_wait_s),
            arriving=(
                self.arriving[0] + other.arriving[0],
                self.arriving[1] + other.arriving[1],
            ),
            requests=self.requests + other.requests,
            lumps=self.lumps + other.lumps,
            saved=self.saved + other.saved,
            backlog_s=self.backlog_s + other.backlog_s,
            held_tokens=self.held_tokens + other.held_tokens,
            is_awake=self.is_awake or other.is_awake,
        )


class Demand(msgspec.Struct, frozen=True):
    """The demand for one model at one instant.

    `replicas_needed` is absolute: what there should be, whatever there is; an autoscaler compares
    it with a target of 1. `is_active` holds while a request waits or is in flight, or did until
    just now, or a replica is loading: nobody should scale to zero then. `saturation` is the work
    that arrives or is owed over what ready replicas do: 0 is idle, 1 all they can.
    """

    model: ModelName
    replicas_needed: float = 0.0
    is_active: bool = False
    queued_requests: int = 0
    queued_tokens: Tokens = 0
    inflight_requests: int = 0
    inflight_tokens: Tokens = 0
    oldest_wait_s: Seconds = 0.0
    saturation: float = 0.0
    replicas_ready: int = 0
    replicas_loading: int = 0


class DemandSource(Protocol):
    """Who is asked for the demand."""

    def models(self) -> Collection[ModelName]:
        """Every model that is known, those without a replica too."""

    def demand(self, model: ModelName) -> Demand:
        """Of one that is known, or all zeros."""

    def on_activation(self, listener: Callable[[ModelName], None]) -> None:
        """Call it the moment a request is held for a model that has no replica."""


class OtherShares(Protocol):
    """What other gateways before the same fleet have told."""

    def of_others(self, model: ModelName) -> Iterable[Share]:
        """One from each that has been heard of late."""
