"""How much a tenant may have: requests and tokens a minute, tokens a day, so many at once.

A request's tokens are reserved when it comes (what its prompt is thought to be, and what it may
generate at most) and settled when it has ended (what it used). Nothing here reads a clock.

Invariants.
    reserved + overdrawn = settled + returned + outstanding, in whole tokens, at every moment
    open = requests admitted and not yet ended
    a refusal takes nothing
An end that used more than was reserved overdraws: the bucket goes below nothing, and what comes
next waits for that too. A reservation is never larger than the bucket, or it could never be made.

Limits are of all gateways together: what a tenant has at others is told a moment later, and taken
as if it had been here. A gateway that begins beside others takes over how far they have come.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from gateway.errors import QuotaExhausted, RateLimited, Rejected, TooManyAtOnce
from gateway.record import Node, Value
from gateway.tenants.buckets import DAY_S, ROUNDING, Bucket, Day
from gateway.tenants.ration import Ranks, Ration
from gateway.vocabulary import Seconds, Tokens

MOST_LIVES: Final = 256  # of other gateways, of which it is known how far they had come
LEARNING: Final = 0.1  # weight of the last stay in the mean


_limits_of: Final = msgspec.structs.astuple  # a compiled module compares no records


class Limits(Value, frozen=True):
    """What is allowed; None allows any amount."""

    requests_per_minute: int | None = None
    tokens_per_minute: Tokens | None = None
    tokens_per_day: Tokens | None = None
    max_concurrent: int | None = None


class Part(Value, frozen=True):
    """One gateway's part in what a tenant has: since it counts, requests and tokens; open now;
    on which day, and then on that day, tokens it let use and what it knows all to have used; how
    far from their brims its buckets are."""

    admitted: int = 0
    tokens: Tokens = 0
    open: int = 0
    day: int = 0
    day_used: Tokens = 0
    day_known: Tokens = 0
    requests_missing: float = 0.0
    tokens_missing: float = 0.0


NO_PART: Final = Part()


class Reservation(Node):
    """What one request has been promised, and when."""

    tokens: Tokens
    day: int
    at: Seconds


class Allowance:
    """What one tenant has of what it may have. Every method is O(1)."""

    __slots__ = (
        "_others",
        "_places_ration",
        "_requests",
        "_requests_ration",
        "_stay_s",
        "_tokens",
        "_tokens_ration",
        "admitted",
        "day",
        "limits",
        "open",
        "open_elsewhere",
        "overdrawn",
        "refusals",
        "reserved",
        "returned",
        "settled",
    )

    def __init__(self, limits: Limits, now: Seconds) -> None:
        self.limits = limits
        self.open = 0
        self.admitted = 0
        self.refusals: Counter[str] = Counter()  # by reason
        self.reserved: Tokens = 0
        self.overdrawn: Tokens = 0
        self.settled: Tokens = 0
        self.returned: Tokens = 0
        self.open_elsewhere = 0
        self._others: dict[str, Part] = {}  # by gateway, those that are gone too
        self._requests_ration = Ration()
        self._tokens_ration = Ration()
        self._places_ration = Ration()
        self._stay_s = 1.0  # mean time of a request
        self._requests = _bucket("requests", limits.requests_per_minute, now)
        self._tokens = _bucket("tokens", limits.tokens_per_minute, now)
        self.day = None if limits.tokens_per_day is None else Day(limits.tokens_per_day)

    def __repr__(self) -> str:
        return f"<Allowance {self.open} open, {self._requests}, {self._tokens}, {self.day}>"

    def reserve(self, tokens: Tokens, now: Seconds, wall: float) -> Reservation:
        """Let a request in that may use so many tokens.

        Raises TooManyAtOnce, RateLimited or QuotaExhausted, each saying when to come back; a
        refusal takes nothing.
        """
        requests, bucket, day = self._requests, self._tokens, self.day
        if bucket is not None and tokens > bucket.capacity:
            tokens = bucket.capacity
        if day is not None and tokens > day.limit:
            tokens = day.limit
        tokens_s = 0.0 if bucket is None else bucket.wait_s(tokens, now)
        requests_s = 0.0 if requests is None else requests.wait_s(1, now)
        most = self.limits.max_concurrent
        if (
            tokens_s
            or requests_s
            or (most is not None and self.open + self.open_elsewhere >= most)
            or (day is not None and not day.has(tokens, wall))
        ):
            refusal = self._refusal(tokens, tokens_s, requests_s, wall)
            self.refusals[refusal.reason] += 1
            raise refusal
        if requests is not None:
            requests.level -= 1
            self._requests_ration.take(1)
        if bucket is not None:
            bucket.level -= tokens
            self._tokens_ration.take(tokens)
        self._places_ration.take(1)
        number = 0
        if day is not None:
            day.used += tokens
            number = day.number
        self.open += 1
        self.admitted += 1
        self.reserved += tokens
        return Reservation(tokens, number, now)

    def must_wait(self, tokens: Tokens, now: Seconds, wall: float, ranks: Ranks) -> bool:
        """Is there room for such a request as far as we know, but other gateways may be giving it
        away at this moment? Then it is to ask again soon. Takes nothing."""
        requests, bucket, most = self._requests, self._tokens, self.limits.max_concurrent
        if bucket is not None:
            tokens = min(tokens, bucket.capacity)
            if bucket.wait_s(tokens, now):
                return False
        if requests is not None and requests.wait_s(1, now):
            return False
        places = 0 if most is None else most - self.open - self.open_elsewhere
        if most is not None and places < 1:
            return False
        return not (
            (bucket is None or self._tokens_ration.allows(tokens, int(bucket.level), ranks, wall))
            and (
                requests is None
                or self._requests_ration.allows(1, int(requests.level + ROUNDING), ranks, wall)
            )
            and (most is None or self._places_ration.allows(1, places, ranks, wall))
        )

    # What it has at other gateways

    @property
    def is_limited(self) -> bool:
        """Is there anything to keep count of with others?"""
        return any(most is not None for most in _limits_of(self.limits))

    def part(self, now: Seconds) -> Part:
        """What it has here, for them."""
        requests, tokens, day = self._requests, self._tokens, self.day
        return Part(
            self.admitted,
            self.reserved + self.overdrawn - self.returned,
            self.open,
            0 if day is None else day.number,
            0 if day is None else day.used,
            0 if day is None else day.used + day.elsewhere,
            0.0 if requests is None else requests.missing(now),
            0.0 if tokens is None else tokens.missing(now),
        )

    def others(self, life: str, part: Part | None, now: Seconds, *, is_past: bool) -> None:
        """What it has at another gateway; None once that is gone: then nothing is open there, and
        what was used was used. `life` is one life of it; `is_past`: it was so before we began."""
        was = self._others.pop(life, None)
        if part is None:
            part = msgspec.structs.replace(was or NO_PART, open=0)
        if was is None:
            was = self._join(part, now) if is_past else NO_PART
            if len(self._others) >= MOST_LIVES:  # the one that has said nothing for longest
                self.open_elsewhere -= self._others.pop(next(iter(self._others))).open
        self._others[life] = part
        self.open_elsewhere += part.open - was.open
        if self._requests is not None and part.admitted != was.admitted:
            self._requests.give(was.admitted - part.admitted, now)
        if self._tokens is not None and part.tokens != was.tokens:
            self._tokens.give(was.tokens - part.tokens, now)
        if self.day is not None:
            self.day.others(part.day, part.day_used - (was.day_used if part.day == was.day else 0))

    def _join(self, elder: Part, now: Seconds) -> Part:
        """Somebody was there before us: what is missing there is missing here. Its own part in it
        is not to be taken again."""
        for bucket, missing in (
            (self._requests, elder.requests_missing),
            (self._tokens, elder.tokens_missing),
        ):
            if bucket is not None:
                bucket.level -= max(missing - bucket.missing(now), 0.0)
        day = self.day
        if day is not None:
            day.others(elder.day, 0)
            if day.number == elder.day:
                day.elsewhere = max(day.elsewhere, elder.day_known - day.used)
        return msgspec.structs.replace(elder, open=0)

    def _refusal(
        self, tokens: Tokens, tokens_s: Seconds, requests_s: Seconds, wall: float
    ) -> Rejected:
        """Why it may not come in now, and when it may: what lasts longest is told."""
        limits = self.limits
        if self.day is not None and not self.day.has(tokens, wall):
            return QuotaExhausted(
                f"The budget of {limits.tokens_per_day} tokens a day is used up.",
                retry_after_s=DAY_S - wall % DAY_S,
            )
        if requests_s or tokens_s:
            return RateLimited(
                f"The limit of {limits.tokens_per_minute} tokens a minute is reached."
                if tokens_s > requests_s
                else f"The limit of {limits.requests_per_minute} requests a minute is reached.",
                retry_after_s=max(requests_s, tokens_s),
            )
        return TooManyAtOnce(
            f"The limit of {limits.max_concurrent} requests at once is reached.",
            retry_after_s=self._stay_s / (limits.max_concurrent or 1),
        )

    def settle(self, reservation: Reservation, used: Tokens, now: Seconds) -> None:
        """A request has ended, having used so many tokens. Once for every reservation."""
        spare = reservation.tokens - used
        self.open -= 1
        self.settled += used
        if spare >= 0:
            self.returned += spare
        else:
            self.overdrawn -= spare
        if self._tokens is not None and spare:
            self._tokens.give(spare, now)
        day = self.day
        if day is not None and day.number == reservation.day:
            day.used = max(day.used - spare, 0)
        if self.limits.max_concurrent is not None:
            self._stay_s += LEARNING * (now - reservation.at - self._stay_s)

    def resize(self, limits: Limits, now: Seconds) -> None:
        """The limits are others from now on; what is in use stays in use."""
        if _limits_of(limits) == _limits_of(self.limits):
            return
        self.limits = limits
        requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
        self._requests = (
            _bucket("requests", requests, now)
            if self._requests is None
            else self._requests.resized(requests, now)
        )
        self._tokens = (
            _bucket("tokens", tokens, now)
            if self._tokens is None
            else self._tokens.resized(tokens, now)
        )
        if limits.tokens_per_day is None:
            self.day = None
        elif self.day is None:
            self.day = Day(limits.tokens_per_day)
        else:
            self.day.limit = limits.tokens_per_day

    def lines(self) -> tuple[bytes, ...]:
        """What a response's head says of the buckets, by the names OpenAI's clients know.

        As of the last reservation, made or refused.
        """
        requests, tokens = self._requests, self._tokens
        if requests is None:
            return () if tokens is None else (tokens.lines(),)
        if tokens is None:
            return (requests.lines(),)
        return requests.lines(), tokens.lines()


def _bucket(what: str, capacity: int | None, now: Seconds) -> Bucket | None:
    return None if capacity is None else Bucket(what, capacity, now)
