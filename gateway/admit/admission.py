"""The door: open, full, or closed for the night.

Invariants: `open_requests` is the number of turns entered and not yet left; it never exceeds the
limit; once draining, none is added.
"""

from __future__ import annotations

from types import TracebackType

from gateway.errors import Draining, TooManyRequests
from gateway.settings import AdmitSettings


class Admission:
    """Counts who is in; `with admission:` is one request's stay. O(1)."""

    __slots__ = ("_most", "_settings", "is_draining", "open_requests")

    def __init__(self, settings: AdmitSettings) -> None:
        self._settings = settings
        self._most = settings.max_open_requests
        self.open_requests = 0
        self.is_draining = False

    def __repr__(self) -> str:
        state = "draining" if self.is_draining else "open"
        return f"<Admission {state}, {self.open_requests} in>"

    def drain(self) -> None:
        """Let nobody in any more; who is in may finish."""
        self.is_draining = True

    def __enter__(self) -> None:
        """Raises Draining or TooManyRequests."""
        if self.is_draining:
            raise Draining(retry_after_s=self._settings.retry_after_s)
        if self.open_requests >= self._most:
            raise TooManyRequests(retry_after_s=self._settings.retry_after_s)
        self.open_requests += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.open_requests -= 1
