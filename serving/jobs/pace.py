"""How fast a client goes, and how long it waits: no clock, no chance and no thread of its own.

`Window` is how many calls may be in flight: it opens by one for each window's worth of answers and
closes to half when the gateway pushes back (429, 503), as TCP's does (additive increase,
multiplicative decrease). What was sent before the window was closed does not close it again: one
wave of refusals is one signal. A call that was refused waits as long as the gateway says; where
nothing has been answered since the wave before, or ever, all calls do.

Invariants: 1 <= limit <= most; what is in flight never rises above the limit by a start; nothing
starts while all calls wait.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime

LONGEST_WAIT_S = 300.0  # whatever Retry-After says: a mistake there should not stop a job for days


def retry_after_s(field: str | None, now: float) -> float | None:
    """Seconds that a Retry-After asks for, as a number or a date (RFC 9110, 10.2.3).

    None where it is absent or cannot be read. `now` is seconds since the epoch.
    """
    if field is None:
        return None
    text = field.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), LONGEST_WAIT_S)
    try:
        moment = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, OSError, IndexError):
        return None
    return min(max(moment - now, 0.0), LONGEST_WAIT_S)


def backoff_s(failures: int, chance: float, most_s: float = 30.0) -> float:
    """How long to wait after so many failures in a row (from 1); `chance` is in [0, 1).

    Between half of and all of a time that doubles from half a second, so that clients that
    failed together do not come back together.
    """
    whole = min(0.5 * 2.0 ** min(failures - 1, 30), most_s)
    return whole * (0.5 + chance / 2)


class Window:
    """How many calls may be in flight, and from when."""

    __slots__ = (
        "_answers", "_closed_at", "_is_stalled", "_most", "_until",
        "in_flight", "limit", "refusals",
    )  # fmt: skip

    def __init__(self, most: int) -> None:
        """Fully open: what the gateway can bear it says at once, and what it can hold it holds."""
        self._most = most
        self._answers = 0  # since the limit last changed
        self._closed_at = float("-inf")
        self._until = float("-inf")
        self._is_stalled = True  # no answer since the last wave of refusals
        self.limit = most
        self.in_flight = 0
        self.refusals = 0

    def wait_s(self, now: float) -> float | None:
        """0.0 if a call may start now; the seconds until one may; None until one has ended."""
        if self.in_flight >= self.limit:
            return None
        return max(self._until - now, 0.0)

    def start(self) -> None:
        """A call goes out; `wait_s` has said 0.0."""
        self.in_flight += 1

    def answered(self) -> None:
        """It came back with an answer, whatever it says."""
        self.in_flight -= 1
        self._is_stalled = False
        self._answers += 1
        if self._answers >= self.limit:
            self._answers = 0
            self.limit = min(self.limit + 1, self._most)

    def failed(self) -> None:
        """It came back with nothing that tells of the gateway's load."""
        self.in_flight -= 1

    def pushed_back(self, sent_at: float, now: float, wait_s: float) -> None:
        """It was refused for now, and told to wait: fewer start after, and none while it waits if
        none is answered."""
        self.in_flight -= 1
        self.refusals += 1
        if self._is_stalled:
            self._until = max(self._until, now + wait_s)
        if sent_at >= self._closed_at:
            self._closed_at = now
            self._is_stalled = True
            self._answers = 0
            self.limit = max(self.limit // 2, 1)
