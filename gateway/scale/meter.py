"""What is asked of one model: who is on the way, how much work arrives, what there is to do.

A request is noted when it is admitted and struck off when it ends, whatever becomes of it; all else
is read off the notes when somebody looks, about once a second: on the hot path there are two
operations on a dict, and some sums.

What arrives is counted once for each request, at the first look or when it ends, as much of it as
its replica does not hold. Of one that has no replica yet, so much as has been uncached of late.

Batches are on the way as any request is, but are no work that replicas are wanted for: they are
sent when others leave room.

Invariants. On the way is who has arrived and not left. Every request's work is counted exactly
once. Everything that a `Share` holds adds up over gateways.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, Protocol

from gateway.demand import Share
from gateway.scale.means import (
    PRIOR_OUTPUT_TOKENS,
    PRIOR_PREFILL_PER_S,
    Came,
    DecodeCost,
    Rate,
    Speed,
)
from gateway.scale.staffing import FAST_S, SLOW_S
from gateway.vocabulary import ServiceClass

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.request import GenerationRequest, Usage
    from gateway.vocabulary import Seconds, Tokens

LEAST_DECODED: Final = 32  # tokens, for a mean of the time between them
LEARNING: Final = 0.02  # weight of one answer in a mean
IDLE_S: Final = 300.0
"""Who has been idle for so long begins anew: nothing is known of what will come."""

_BATCH: Final = ServiceClass.BATCH  # found faster by a name of our own


class Open(Protocol):
    """A request on its way: its entry in the accounts."""

    @property
    def request(self) -> GenerationRequest | None: ...
    @property
    def received_at(self) -> Seconds: ...
    @property
    def dispatched_at(self) -> Seconds | None: ...
    @property
    def first_byte_at(self) -> Seconds | None: ...
    @property
    def last_byte_at(self) -> Seconds | None: ...
    @property
    def uncached(self) -> Tokens | None:
        """Prompt tokens that its replica does not hold, as far as is known."""

    @property
    def usage(self) -> Usage: ...


class Meter:
    """Of one model. O(1) per request, O(on the way) per look."""

    __slots__ = (
        "_active_at", "_answered", "_came", "_decode", "_decode_s", "_decoded", "_fast", "_fresh",
        "_looked_at", "_miss", "_open", "_output", "_slow", "_speed", "_work_of", "_written",
    )  # fmt: skip

    def __init__(self, work_of: Callable[[Tokens, Tokens], float], now: Seconds) -> None:
        """`work_of` a prompt of which so many tokens are uncached, as whoever learns rates of
        prefill counts it."""
        self._work_of = work_of
        self._decode = DecodeCost()
        self._speed = Speed(PRIOR_PREFILL_PER_S, self._decode.decode_s)
        self._fresh: dict[Open, None] = {}  # not yet counted
        self._open: dict[Open, None] = {}  # counted
        self._came = Came()
        self._fast, self._slow = Rate(FAST_S), Rate(SLOW_S)
        self._miss = 1.0  # the part of prompts that is uncached
        self._output = PRIOR_OUTPUT_TOKENS
        self._answered = 0  # since the last look
        self._written: Tokens = 0
        self._decoded: Tokens = 0
        self._decode_s: Seconds = 0.0
        self._looked_at = now
        self._active_at: Seconds = -inf  # when somebody was last seen to be on the way

    def __repr__(self) -> str:
        return f"<Meter {len(self._fresh) + len(self._open)} on the way, {self._speed!r}>"

    # On the hot path

    def arrived(self, entry: Open) -> None:
        """It has been admitted."""
        self._fresh[entry] = None

    def left(self, entry: Open) -> None:
        """It has ended; one that had not arrived does no harm."""
        if entry in self._fresh:
            del self._fresh[entry]
            self._count(entry)
        else:
            self._open.pop(entry, None)
        output = entry.usage.output_tokens
        if output:
            self._answered += 1
            self._written += output
            first, last = entry.first_byte_at, entry.last_byte_at
            if output > 1 and first is not None and last is not None and last > first:
                self._decoded += output - 1
                self._decode_s += last - first

    def _count(self, entry: Open) -> None:
        """It has arrived: so much work."""
        came = self._came
        came.is_empty = False
        request = entry.request
        if request is None or request.tenant.service_class is _BATCH:
            return
        prompt, uncached = request.prompt_tokens, entry.uncached
        if uncached is None:
            uncached = int(prompt * self._miss)
        elif prompt:
            self._miss += LEARNING * (uncached / prompt - self._miss)
        work = self._work_of(prompt, uncached)
        output = self._expected(request)
        cost_s = self._speed.cost_s(work, output)
        came.requests += 1
        came.work += work
        came.output += output
        came.lumps += cost_s * cost_s
        if uncached < prompt:
            came.saved += self._work_of(prompt, prompt) - work

    def _expected(self, request: GenerationRequest) -> float:
        """How many tokens it will generate."""
        if not request.route.generates:
            return 0.0
        most = request.max_tokens
        return self._output if most is None or most > self._output else float(most)

    # When somebody looks

    def look(self, prefill_per_s: float | None, now: Seconds) -> None:
        """Count who has come since, and bring the rates up to date. O(on the way).

        `prefill_per_s` is what the mean replica does now; None: unknown.
        """
        passed_s = now - self._looked_at
        if passed_s <= 0.0:
            return
        self._looked_at = now
        for entry in self._fresh:
            self._count(entry)
        self._open.update(self._fresh)
        self._fresh.clear()
        self._learn()
        rate = self._speed.prefill_per_s if prefill_per_s is None else prefill_per_s
        self._speed = Speed(rate, self._decode.decode_s)
        came, self._came = self._came, Came()
        if self._open or not came.is_empty:
            if now - self._active_at > IDLE_S:
                self._fast.begin()
                self._slow.begin()
            self._active_at = now
        self._fast.add(came, passed_s)
        self._slow.add(came, passed_s)

    def _learn(self) -> None:
        """From answers that have ended since the last look."""
        if self._answered:
            mean = self._written / self._answered
            weight = 1.0 - (1.0 - LEARNING) ** self._answered
            self._output += weight * (mean - self._output)
            self._answered, self._written = 0, 0
        if self._decoded >= LEAST_DECODED:
            self._decode.learn(self._decode_s / self._decoded)
            self._decoded, self._decode_s = 0, 0.0

    def share(self, now: Seconds, linger_s: Seconds) -> Share:
        """What this gateway sees of the demand: for so long after the last request, it is awake.
        O(on the way)."""
        queued, inflight, backlog = _Sum(), _Sum(), _Sum()
        oldest = now
        for each in (*self._fresh, *self._open):
            request = each.request
            if request is None:
                continue
            output, is_batch = self._expected(request), request.tenant.service_class is _BATCH
            uncached = each.uncached
            if uncached is None:
                uncached = int(request.prompt_tokens * self._miss)
            if each.dispatched_at is None:
                queued.add(request.prompt_tokens, output, uncached)
                oldest = min(oldest, each.received_at)
                is_owed = True
            else:
                inflight.add(request.prompt_tokens, output, uncached)
                is_owed = request.stream and each.first_byte_at is None
            if is_owed and not is_batch:
                backlog.add(self._work_of(request.prompt_tokens, uncached), output, 0)
        return Share(
            queued_requests=queued.requests,
            queued_tokens=int(queued.prompt),
            inflight_requests=inflight.requests,
            inflight_tokens=int(inflight.prompt + inflight.output),
            oldest_wait_s=now - oldest,
            arriving=(self._fast.busy(self._speed), self._slow.busy(self._speed)),
            requests=self._slow.per_s(),
            lumps=self._slow.lumpy(),
            saved=self._slow.spared(self._speed),
            backlog_s=self._speed.cost_s(backlog.prompt, backlog.output),
            held_tokens=int(queued.own + queued.output + inflight.own + inflight.output),
            is_awake=bool(queued.requests or inflight.requests)
            or now - self._active_at <= linger_s,
        )


class _Sum:
    """Over requests."""

    __slots__ = ("output", "own", "prompt", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.prompt = self.output = self.own = 0.0

    def add(self, prompt: float, output: float, own: float) -> None:
        """One with so many tokens, of which `own` are not shared with a cache."""
        self.requests += 1
        self.prompt += prompt
        self.output += output
        self.own += own
