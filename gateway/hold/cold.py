"""Who waits for a model that no replica serves now?

A request for a model that is known, though nothing serves it, is held here until something does:
bounded by number, tokens, bytes and time for each model. The first to come when nobody waits is the
trigger: whoever starts replicas, or wakes those that sleep, is told once, in the same tick.

    a replica that serves it takes work       all of its requests go on, at once: they choose, and
                                              wait for their turn, in the order that is just
    it is full                                a Rejected error, with when it is worth coming back;
                                              lower classes make room first
    its deadline passes, or it has waited     an Evicted error
    for as long as it may
    its client leaves                         its place is free at once

Invariants. Who is held is in exactly one crowd and leaves it exactly once. Nobody is held for a
model that is served, for longer than it takes to be told. A start that is seen to its end is learnt
from once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

from gateway.errors import DeadlineMissed, Displaced, GatewayError, WaitedTooLong
from gateway.hold.cold_starts import ColdStarts
from gateway.hold.crowd import Count, Crowd
from gateway.hold.fair_queue import Ticket

if TYPE_CHECKING:
    from gateway.clock import Clock
    from gateway.hold.turn import Client
    from gateway.request import GenerationRequest
    from gateway.settings import HoldSettings, ModelSettings
    from gateway.vocabulary import ModelName, Seconds

WATCH_EVERY_S: Final = 0.25

Listener = Callable[["ModelName"], None]


class Held(Ticket):
    """A request that waits for its model."""

    __slots__ = ("client", "error", "future", "is_stream", "spoken_at")

    def __init__(self, request: GenerationRequest, client: Client) -> None:
        super().__init__(
            request.tenant, client.received_at, request.prompt_tokens, deadline=request.deadline
        )
        self.client = client
        self.size_bytes = len(client.body)
        self.is_stream = request.stream
        self.spoken_at = client.received_at
        self.error: GatewayError | None = None
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Awaited:
    """A model that no replica serves, and who waits for it."""

    __slots__ = ("began_at", "crowd", "settings", "wanted_at")

    def __init__(self, settings: ModelSettings, crowd: Crowd[Held], now: Seconds) -> None:
        self.settings = settings
        self.crowd = crowd
        self.began_at = now
        self.wanted_at = now  # when a request last came

    def __repr__(self) -> str:
        return f"<Awaited {self.settings.name} {self.crowd!r}>"


class ColdHold:
    """All models that are waited for, and what their starts have taught."""

    def __init__(
        self, settings: HoldSettings, clock: Clock, is_served: Callable[[ModelName], object]
    ) -> None:
        """`is_served` says whether a replica that takes work serves a model."""
        self._settings = settings
        self._clock = clock
        self._is_served = is_served
        self._awaited: dict[ModelName, Awaited] = {}
        self._starts: dict[ModelName, ColdStarts] = {}
        self._listeners: tuple[Listener, ...] = ()

    def __repr__(self) -> str:
        return f"<ColdHold {list(self._awaited.values())!r}>"

    @property
    def held(self) -> int:
        """How many wait, over all models."""
        return sum(awaited.crowd.count.requests for awaited in self._awaited.values())

    def fill(self) -> dict[ModelName, float]:
        """Of what may wait for each model that is waited for, the part that does."""
        return {model: awaited.crowd.fill for model, awaited in self._awaited.items()}

    def count(self, model: ModelName) -> Count:
        """What waits for a model."""
        awaited = self._awaited.get(model)
        return Count() if awaited is None else awaited.crowd.count

    def is_held(self, model: ModelName) -> bool:
        """Does anybody wait for it?"""
        return self.count(model).requests > 0

    def starts(self, model: ModelName) -> ColdStarts:
        """What is known of its cold starts."""
        found = self._starts.get(model)
        if found is None:
            found = self._starts[model] = ColdStarts(self._settings.cold_start_s)
        return found

    def on_activation(self, listener: Listener) -> None:
        """Call it when somebody begins to wait for a model for which nobody waited. It must not
        block or raise."""
        self._listeners = (*self._listeners, listener)

    async def wait(self, model: ModelSettings, request: GenerationRequest, client: Client) -> None:
        """Until a replica takes work for `model`, which is that of the request.

        Raises Rejected where it may not wait, and Evicted where it waited in vain.
        """
        now = self._clock()
        awaited = self._awaited.get(model.name)
        if awaited is None:
            crowd = Crowd[Held](model.held, self._settings.per_tenant)
            awaited = self._awaited[model.name] = Awaited(model, crowd, now)
        awaited.wanted_at = now
        held = Held(request, client)
        self._make_room(awaited, held, now)
        is_first = not awaited.crowd.count.requests
        awaited.crowd.join(held)
        held.is_waiting = True
        if is_first:
            for listener in self._listeners:
                listener(model.name)
        try:
            await held.future
        except asyncio.CancelledError:
            self._leave(awaited, held)
            raise
        if held.error is not None:
            raise held.error

    def arrived(self, models: Collection[ModelName]) -> None:
        """A replica that takes work serves these."""
        for model in models:
            awaited = self._awaited.pop(model, None)
            if awaited is not None:
                self.starts(model).took(self._clock() - awaited.began_at)
                for held in awaited.crowd:
                    self._leave(awaited, held)

    def _make_room(self, awaited: Awaited, held: Held, now: Seconds) -> None:
        """Raises Rejected where there is none to be made."""
        remaining_s = self._remaining_s(awaited, now)
        while (other := awaited.crowd.must_leave(held, remaining_s)) is not None:
            other.error = Displaced(retry_after_s=remaining_s)
            self._leave(awaited, other)

    def _leave(self, awaited: Awaited, held: Held) -> None:
        if held.is_waiting:
            held.is_waiting = False
            awaited.crowd.leave(held)
            if not held.future.done():
                held.future.set_result(None)

    def _remaining_s(self, awaited: Awaited, now: Seconds) -> Seconds:
        return self.starts(awaited.settings.name).remaining_s(now - awaited.began_at)

    # Its background loop

    async def watch(self) -> None:
        """Look after those who wait."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            if self._awaited:
                self.check(self._clock())

    def check(self, now: Seconds) -> None:
        """Send away who has waited too long, speak to who may think that we are gone, and let go on
        whose model has come to be served without anybody saying so. O(held)."""
        self.arrived([model for model in self._awaited if self._is_served(model)])
        for model, awaited in list(self._awaited.items()):
            for held in awaited.crowd:
                self._look_after(awaited, held, now)
            idle_s = now - awaited.wanted_at
            if not awaited.crowd.count.requests and idle_s > awaited.settings.max_hold_s:
                del self._awaited[model]  # nobody wants it any more, and nobody has started it

    def _look_after(self, awaited: Awaited, held: Held, now: Seconds) -> None:
        if held.deadline is not None and now >= held.deadline:
            held.error = DeadlineMissed(retry_after_s=self._remaining_s(awaited, now))
        elif now - held.since > awaited.settings.max_hold_s:
            held.error = WaitedTooLong(retry_after_s=self._remaining_s(awaited, now))
        elif held.is_stream and now - held.spoken_at >= self._settings.comment_every_s:
            held.spoken_at = now
            held.client.keep_waiting()
        if held.error is not None:
            self._leave(awaited, held)
