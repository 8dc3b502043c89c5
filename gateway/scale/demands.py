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

import msgspec

from gateway.demand import Demand, OtherShares, Share
from gateway.scale.meter import Meter, Open
from gateway.scale.staffing import Objective, Work, busy, needed

if TYPE_CHECKING:
    from gateway.settings import ScaleSettings
    from gateway.vocabulary import ModelName, Seconds, Tokens


class Standing(msgspec.Struct, frozen=True):
    """What there is for one model. `prefill_per_s` and `cache_tokens` are of its mean replica;
    None: unknown. `cold_start_s` is how long a new one is expected to take."""

    ready: int
    loading: int
    cold_start_s: Seconds
    prefill_per_s: float | None = None
    cache_tokens: Tokens | None = None


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


PRIOR_PREFILL_PER_S: Final = 8_000.0  # a mid-size model on one data-centre GPU


class Demands:
    """A `DemandSource`."""

    __slots__ = ("_clock", "_meters", "_settings", "_supply", "others")

    def __init__(
        self, settings: ScaleSettings, supply: Supply, clock: Callable[[], Seconds]
    ) -> None:
        self._settings = settings
        self._supply = supply
        self._clock = clock
        self._meters: dict[ModelName, Meter] = {}  # of adapters, too: that of their model
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
            meter = Meter(self._supply.work, PRIOR_PREFILL_PER_S, self._clock())
        self._meters[base] = self._meters[model] = meter
        return meter

    # What is asked. A `DemandSource`

    def models(self) -> Collection[ModelName]:
        """Every model that is known, those without a replica too."""
        return self._supply.models()

    def on_activation(self, listener: Callable[[ModelName], None]) -> None:
        """Call it the moment a request is held for a model that has no replica."""
        self._supply.on_activation(listener)

    def look(self) -> None:
        """Bring everything up to date; to be called about once a second. O(on the way)."""
        now = self._clock()
        for model in self._supply.models():
            self._look(model, self._supply.standing(model, now), now)

    def _look(self, model: ModelName, standing: Standing, now: Seconds) -> Meter | None:
        meter = self._meters.get(model)
        if meter is not None:
            meter.look(standing.prefill_per_s or PRIOR_PREFILL_PER_S, standing.ready, now)
        return meter

    def share(self, model: ModelName) -> Share:
        """What this gateway alone sees, for the others."""
        now = self._clock()
        base = self._supply.base(model)
        meter = self._meters.get(model if base is None else base)
        return Share() if meter is None else meter.share(now)

    def demand(self, model: ModelName) -> Demand:
        """Of one that is known, or of the model an adapter needs; all zeros for any other."""
        now = self._clock()
        base = self._supply.base(model)
        if base is None:
            return Demand(model)
        standing = self._supply.standing(base, now)
        meter = self._meters.get(base)
        share = Share() if meter is None else meter.share(now)
        for other in self.others.of_others(base):
            share = share.plus(other)
        return self._of(base, share, standing, now)

    def _of(self, model: ModelName, share: Share, standing: Standing, now: Seconds) -> Demand:
        settings = self._settings
        meter = self._meters.get(model)
        lingers = meter is not None and now - meter.active_at <= settings.linger_s
        is_active = (
            lingers or share.queued_requests + share.inflight_requests + standing.loading > 0
        )
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
            drain_s=max(standing.cold_start_s, settings.ttft_objective_s),
        )


def _work(share: Share, standing: Standing) -> Work:
    fast, slow = share.arriving
    return Work(
        fast=fast,
        slow=slow,
        lumps=share.lumps,
        saved=share.saved,
        backlog_s=share.backlog_s,
        held_tokens=share.held_tokens,
        cache_tokens=standing.cache_tokens,
    )
