"""The clock: the only place that reads the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from gateway.vocabulary import Seconds


class Clock(Protocol):
    """Reads a monotonic instant, in seconds from an arbitrary origin."""

    def __call__(self) -> Seconds: ...


monotonic: Final[Clock] = time.monotonic
"""The machine's clock, unmoved by NTP."""


wall: Final[Callable[[], float]] = time.time
"""Seconds since the epoch, for log lines, documents, and what several gateways must agree on;
never for durations."""
