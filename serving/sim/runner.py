"""Drives the engine in real time: begins a step, lets its duration pass, completes it, delivers.

Steps are paced against a running schedule rather than one by one, so that the event loop's coarse
timers do not add up: a step that ended late shortens the next wait, up to `_CATCH_UP_S`.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from serving.sim.engine import Engine, EngineRequest, FinishReason, Output
from serving.sim.faults import Faults
from serving.sim.kv_cache import KvEvent
from serving.sim.metrics import Timings

Sink = Callable[[Output], None]
Clock = Callable[[], float]

_CATCH_UP_S = 0.05


@dataclass(slots=True)
class _Delivery:
    """One request's sink and its instants."""

    sink: Sink
    submitted_at: float
    first_at: float | None = None
    last_at: float = 0.0
    tokens: int = 0


class Runner:
    """Owner of the engine; every change to it goes through here."""

    def __init__(
        self,
        engine: Engine,
        speed: float,
        faults: Faults,
        publish: Callable[[list[KvEvent]], None],
        clock: Clock,
    ) -> None:
        self.engine = engine
        self.timings = Timings()
        self._speed = speed
        self._faults = faults
        self._publish = publish
        self._clock = clock
        self._deliveries: dict[str, _Delivery] = {}
        self._work = asyncio.Event()
        self.is_sleeping = False

    def submit(self, request: EngineRequest, sink: Sink) -> None:
        """Queue a request; `sink` is called with each output, the last one carrying its end."""
        self._deliveries[request.id] = _Delivery(sink, self._clock())
        arrival_s = self.engine.timing.arrival_s / self._speed
        if arrival_s:
            asyncio.get_running_loop().call_later(arrival_s, self._admit, request)
        else:
            self._admit(request)

    def _admit(self, request: EngineRequest) -> None:
        if request.id in self._deliveries:  # not aborted on its way
            self.engine.submit(request, self._clock())
            self._work.set()

    def abort(self, request_id: str) -> None:
        """Drop a request, if it is still here; its sink is not called again."""
        if self._deliveries.pop(request_id, None) is not None:
            self.engine.abort(request_id)

    def clear_cache(self) -> bool:
        """Forget cached prefixes, and say so to subscribers; False while any block is used."""
        cleared = self.engine.clear_cache()
        self._work.set()
        return cleared

    def sleep(self, level: int) -> None:
        """Compute nothing until `wake_up`: what runs is aborted, what comes waits. From level 1 on
        the cache is lost. As vLLM's mode "abort", but that a unary answer comes in full."""
        self.is_sleeping = True
        for request_id in list(self._deliveries):
            delivery = self._deliveries.pop(request_id)
            self.engine.abort(request_id)
            delivery.sink(Output(request_id, None, FinishReason.ABORT, 0, 0.0))
        if level >= 1:
            self.clear_cache()

    def wake_up(self) -> None:
        """Compute again."""
        self.is_sleeping = False
        self._work.set()

    async def run(self) -> None:
        """Step for ever; cancel to stop."""
        due = self._clock()
        while True:
            now = self._clock()
            batch = None if self.is_sleeping else self.engine.begin(now)
            if batch is None:
                self._emit(self.engine.cache.take_events())
                self._work.clear()
                await self._work.wait()
                due = self._clock()
                continue
            due = max(due, now - _CATCH_UP_S)
            due += batch.duration_s * self._faults.table.slow / self._speed
            await asyncio.sleep(max(due - now, 0.0))
            outputs, events = self.engine.complete(batch)
            self._emit(events)
            self._deliver(outputs)

    def _emit(self, events: list[KvEvent]) -> None:
        if events:
            self._publish(events)

    def _deliver(self, outputs: list[Output]) -> None:
        now = self._clock()
        for output in outputs:
            delivery = self._deliveries.get(output.request_id)
            if delivery is None:
                continue
            self._note(delivery, output, now)
            if output.finish is not None:
                del self._deliveries[output.request_id]
            delivery.sink(output)

    def _note(self, delivery: _Delivery, output: Output, now: float) -> None:
        """Put one output's instants into the histograms."""
        if delivery.first_at is None:
            delivery.first_at = now
            self.timings.queue.observe(output.queued_s)
            self.timings.ttft.observe(now - delivery.submitted_at)
        else:
            self.timings.itl.observe(now - delivery.last_at)
        delivery.last_at = now
        delivery.tokens += 1
        if output.finish is not None:
            self.timings.e2e.observe(now - delivery.submitted_at)
            if delivery.tokens > 1:
                elapsed_s = now - delivery.first_at
                self.timings.tpot.observe(elapsed_s / (delivery.tokens - 1))
