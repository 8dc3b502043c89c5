"""The demand for every model: the room's owner of state, and what is asked of it.

It is fed by the corridor, which tells of every request that is admitted and of its end, and looks
about once a second. What it needs of the fleet, of the policy's rates and of other gateways it asks
through ports.

Invariants. Every known model has a demand at every moment, all zeros where nobody asks for it. A
name that no replica or setting knows has none: clients cannot make series. Idle for as long as
`linger_s` with nothing loading, a model needs no replica at all; until then it needs at least one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Final, Protocol

from gateway.demand import Demand, OtherShares, Share
from gateway.record import Value
from gateway.scale.meter import Meter, Open
from gateway.scale.staffing import Objective, Work, busy, needed

if TYPE_CHECKING:
    from gateway.settings import ScaleSettings
    from gateway.vocabulary import ModelName, Seconds, Tokens


DRAIN: Final = 0.5
"""What waits is to be done away with in this part of the time that a replica takes to come."""


class Standing(Value, frozen=True):
    """What there is for one model. `prefill_per_s`, `cache_tokens` and the `sequences` that run at
    once are of its mean replica; None: unknown. `cold_start_s` is how long a new one will take."""

    ready: int
    loading: int
    cold_start_s: Seconds
    prefill_per_s: float | None = None
    cache_tokens: Tokens | None = None
    sequences: int | None = None


class Supply(Protocol):
    """What is known of replicas."""

    def models(self) -> Collection[ModelName]:
        """All that are scaled, those without a replica too."""

    def base(self, model: ModelName) -> ModelName | None:
        """What must run for it to be served: an adapter needs its model. None: nobody knows it."""

    def standing(self, model: ModelName, now: Seconds) -> Standing: ...

    def work(self, prompt_tokens: Tokens, uncached: Tokens) -> float:
        """Of a prompt, in the unit of `Standing.prefill_per_s`."""

    def on_activation(self, listener: Callable[[ModelName], None]) -> None:
        """Call it the moment a request is held for a model that has no replica."""


class Alone:
    """There is no other gateway. An `OtherShares`."""

    def of_others(self, model: ModelName) -> Iterable[Share]:
        """None."""
        return ()


class Demands:
    """A `DemandSource`."""

    __slots__ = ("_clock", "_listeners", "_meters", "_settings", "_supply", "others")

    def __init__(
        self, settings: ScaleSettings, supply: Supply, clock: Callable[[], Seconds]
    ) -> None:
        self._settings = settings
        self._supply = supply
        self._clock = clock
        self._meters: dict[ModelName, Meter] = {}  # of adapters, too: that of their model
        self._listeners: tuple[Callable[[ModelName], None], ...] = ()
        self.others: OtherShares = Alone()

    def __repr__(self) -> str:
        return f"<Demands {self._meters!r}>"

    # What the corridor tells

    def arrived(self, entry: Open) -> None:
        """A request has been admitted. O(1)."""
        request = entry.request
        if request is None:
            return
        meter = self._meters.get(request.model) or self._meter(request.model)
        if meter is not None:
            meter.arrived(entry)

    def left(self, entry: Open) -> None:
        """It has ended. O(1)."""
        request = entry.request
        if request is not None:
            meter = self._meters.get(request.model)
            if meter is not None:
                meter.left(entry)

    def _meter(self, model: ModelName) -> Meter | None:
        base = self._supply.base(model)
        if base is None:
            return None
        meter = self._meters.get(base)
        if meter is None:
            meter = Meter(self._supply.work, self._clock())
        self._meters[base] = self._meters[model] = meter
        return meter

    # What is asked. A `DemandSource`

    def models(self) -> Collection[ModelName]:
        """Every model that is known, those without a replica too."""
        return self._supply.models()

    def on_activation(self, listener: Callable[[ModelName], None]) -> None:
        """Call it the moment a request is held for a model that has no replica."""
        self._listeners = (*self._listeners, listener)
        self._supply.on_activation(listener)

    def activated(self, model: ModelName) -> None:
        """At another gateway somebody begins to wait for a model."""
        if not self._supply.standing(model, self._clock()).ready:
            for listener in self._listeners:
                listener(model)

    def look(self) -> None:
        """Bring everything up to date; to be called about once a second. O(on the way)."""
        now = self._clock()
        for model in self._supply.models():
            meter = self._meters.get(model)
            if meter is not None:
                meter.look(self._supply.standing(model, now).prefill_per_s, now)

    def share(self, model: ModelName) -> Share:
        """What this gateway alone sees, for the others."""
        base = self._supply.base(model)
        return Share() if base is None else self._share(base, self._clock())

    def _share(self, base: ModelName, now: Seconds) -> Share:
        meter = self._meters.get(base)
        return Share() if meter is None else meter.share(now, self._settings.linger_s)

    def demand(self, model: ModelName) -> Demand:
        """Of one that is known, or of the model an adapter needs; all zeros for any other."""
        now = self._clock()
        base = self._supply.base(model)
        if base is None:
            return Demand(model)
        standing = self._supply.standing(base, now)
        share = self._share(base, now)
        for other in self.others.of_others(base):
            share = share.plus(other)
        return self._of(base, share, standing)

    def _of(self, model: ModelName, share: Share, standing: Standing) -> Demand:
        is_active = share.is_awake or standing.loading > 0
        objective, work = self._objective(standing), _work(share, standing)
        present = standing.ready + standing.loading
        replicas = max(needed(work, objective, present), 1.0) if is_active else 0.0
        return Demand(
            model=model,
            replicas_needed=replicas,
            is_active=is_active,
            queued_requests=share.queued_requests,
            queued_tokens=share.queued_tokens,
            inflight_requests=share.inflight_requests,
            inflight_tokens=share.inflight_tokens,
            oldest_wait_s=share.oldest_wait_s,
            saturation=busy(work, objective) / max(standing.ready, 1) if is_active else 0.0,
            replicas_ready=standing.ready,
            replicas_loading=standing.loading,
        )

    def _objective(self, standing: Standing) -> Objective:
        settings = self._settings
        return Objective(
            wait_s=settings.ttft_objective_s,
            ratio=settings.objective_ratio,
            cold_start_s=standing.cold_start_s,
            drain_s=max(DRAIN * standing.cold_start_s, settings.ttft_objective_s),
        )


def _work(share: Share, standing: Standing) -> Work:
    fast, slow = share.arriving
    return Work(
        fast=fast,
        slow=slow,
        requests=share.requests,
        lumps=share.lumps,
        saved=share.saved,
        backlog_s=share.backlog_s,
        caches=_filled(share.held_tokens, standing.cache_tokens),
        slots=_filled(share.queued_requests + share.inflight_requests, standing.sequences),
    )


def _filled(amount: int, each: int | None) -> float:
    """How many of them it fills; none where their size is not known."""
    return 0.0 if each is None else amount / each
