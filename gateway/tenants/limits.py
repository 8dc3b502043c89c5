"""How much a tenant may have: requests and tokens a minute, tokens a day, so many at once.

A request's tokens are reserved when it comes (what its prompt is thought to be, and what it may
generate at most) and settled when it has ended (what it used). Nothing here reads a clock.

Invariants.
    reserved + overdrawn = settled + returned + outstanding, in whole tokens, at every moment
    open = requests admitted and not yet ended
    a refusal takes nothing
    over any time t, a bucket of capacity c a minute lets through at most c + c * t / 60 s
An end that used more than was reserved overdraws: the bucket goes below nothing, and what comes
next waits for that too. A reservation is never larger than the bucket, or it could never be made.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from gateway.errors import QuotaExhausted, RateLimited, Rejected, TooManyAtOnce
from gateway.vocabulary import Seconds, Tokens

MINUTE_S: Final = 60.0
MINUTE_MS: Final = 60_000
DAY_S: Final = 86_400
ROUNDING: Final = 1e-6  # of a token: who waits for as long as it was told finds what it came for
LEARNING: Final = 0.1  # weight of the last stay in the mean


class Limits(msgspec.Struct, frozen=True):
    """What is allowed; None allows any amount."""

    requests_per_minute: int | None = None
    tokens_per_minute: Tokens | None = None
    tokens_per_day: Tokens | None = None
    max_concurrent: int | None = None


class Bucket:
    """So many a minute: `level` is what may be had, and flows in evenly up to `capacity`.

    `level` is that of the last look; what was given back since may for now stand above the brim.
    """

    __slots__ = ("_at", "_lines", "_per_s", "_what", "capacity", "level")

    def __init__(self, what: str, capacity: int, now: Seconds) -> None:
        self._what = what  # requests or tokens
        self._lines = (
            f"x-ratelimit-limit-{what}: {capacity}\r\n"
            f"x-ratelimit-remaining-{what}: %d\r\n"
            f"x-ratelimit-reset-{what}: %dms"
        ).encode()
        self.capacity = capacity
        self.level = float(capacity)
        self._per_s = capacity / MINUTE_S
        self._at = now

    def __repr__(self) -> str:
        return f"<Bucket of {self._what}: {self.level:.1f} of {self.capacity}>"

    def wait_s(self, amount: int, now: Seconds) -> Seconds:
        """How long until `amount`, at most the capacity, may be had; 0.0 if it may be now."""
        level = self.level + (now - self._at) * self._per_s
        level = min(level, self.capacity)
        self.level = level
        self._at = now
        missing = amount - level
        return 0.0 if missing < ROUNDING else missing / self._per_s

    def give(self, amount: int, now: Seconds) -> None:
        """Put back what was not used; a negative amount is used in addition."""
        if amount < 0:
            self.wait_s(0, now)  # what has flowed over is no part of what is taken from
        self.level += amount

    def resized(self, capacity: int | None, now: Seconds) -> Bucket | None:
        """One of another capacity, out of which as much is missing as out of this."""
        if capacity is None:
            return None
        self.wait_s(0, now)
        made = Bucket(self._what, capacity, now)
        made.level = capacity - (self.capacity - self.level)
        return made

    def lines(self) -> bytes:
        """Header lines: the limit, what is left of it, how long until all of it is there again."""
        level, capacity = int(self.level), self.capacity
        level = min(level, capacity)
        reset_ms = (capacity - level) * MINUTE_MS // capacity
        return self._lines % (level if level > 0 else 0, reset_ms)


class Day:
    """A budget that is whole again at midnight, UTC."""

    __slots__ = ("limit", "number", "used")

    def __init__(self, limit: Tokens) -> None:
        self.limit = limit
        self.number = 0  # of the day, since the epoch
        self.used: Tokens = 0

    def __repr__(self) -> str:
        return f"<Day {self.number}: {self.used} of {self.limit}>"

    def has(self, amount: Tokens, wall: float) -> bool:
        """May so much be used today?"""
        number = int(wall // DAY_S)
        if number != self.number:
            self.number, self.used = number, 0
        return self.used + amount <= self.limit


class Reservation(msgspec.Struct, gc=False):
    """What one request has been promised, and when."""

    tokens: Tokens
    day: int
    at: Seconds


class Allowance:
    """What one tenant has of what it may have. Every method is O(1)."""

    __slots__ = (
        "_requests",
        "_stay_s",
        "_tokens",
        "admitted",
        "day",
        "limits",
        "open",
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
            or (most is not None and self.open >= most)
            or (day is not None and not day.has(tokens, wall))
        ):
            refusal = self._refusal(tokens, tokens_s, requests_s, wall)
            self.refusals[refusal.reason] += 1
            raise refusal
        if requests is not None:
            requests.level -= 1
        if bucket is not None:
            bucket.level -= tokens
        number = 0
        if day is not None:
            day.used += tokens
            number = day.number
        self.open += 1
        self.admitted += 1
        self.reserved += tokens
        return Reservation(tokens, number, now)

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
        if limits == self.limits:
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
