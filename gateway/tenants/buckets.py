"""What a limit leaves: a bucket that fills evenly, and a budget that is whole again each day.

Invariant. Over any time t, a bucket of capacity c a minute lets through at most c + c * t / 60 s.
"""

from __future__ import annotations

from typing import Final

from gateway.vocabulary import Seconds, Tokens

MINUTE_S: Final = 60.0
MINUTE_MS: Final = 60_000
DAY_S: Final = 86_400
ROUNDING: Final = 1e-6  # of a token: who waits for as long as it was told finds what it came for


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

    def missing(self, now: Seconds) -> float:
        """How far it is from the brim."""
        self.wait_s(0, now)
        return self.capacity - self.level

    def resized(self, capacity: int | None, now: Seconds) -> Bucket | None:
        """One of another capacity, out of which as much is missing as out of this."""
        if capacity is None:
            return None
        made = Bucket(self._what, capacity, now)
        made.level = capacity - self.missing(now)
        return made

    def lines(self) -> bytes:
        """Header lines: the limit, what is left of it, how long until all of it is there again."""
        level, capacity = int(self.level), self.capacity
        level = min(level, capacity)
        reset_ms = (capacity - level) * MINUTE_MS // capacity
        return self._lines % (level if level > 0 else 0, reset_ms)


class Day:
    """A budget that is whole again at midnight, UTC."""

    __slots__ = ("elsewhere", "limit", "number", "used")

    def __init__(self, limit: Tokens) -> None:
        self.limit = limit
        self.number = 0  # of the day, since the epoch
        self.used: Tokens = 0
        self.elsewhere: Tokens = 0  # used today at other gateways

    def __repr__(self) -> str:
        return f"<Day {self.number}: {self.used} and {self.elsewhere} of {self.limit}>"

    def has(self, amount: Tokens, wall: float) -> bool:
        """May so much be used today?"""
        number = int(wall // DAY_S)
        if number != self.number:
            self.number, self.used, self.elsewhere = number, 0, 0
        return self.used + self.elsewhere + amount <= self.limit

    def others(self, number: int, tokens: Tokens) -> None:
        """So much more was used, on that day, elsewhere; or less, where it was given back."""
        if number > self.number:  # it is that day there already
            self.number, self.used, self.elsewhere = number, 0, 0
        if number == self.number:
            self.elsewhere = max(self.elsewhere + tokens, 0)
