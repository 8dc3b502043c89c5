"""Was it the generator? Its own lateness and its own CPU, and the verdict on them.

While a run goes, `Watch` sleeps a little again and again and notes how late it woke: every mark can
be as wrong. The verdict is arithmetic: a generator that was late, or short of CPU, measured itself.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from time import perf_counter
from typing import Final

import gevent
import msgspec

from loadtest.figures import percentile

_NAP_S: Final = 0.01
_WINDOW_S: Final = 1.0
LATE_SHARE: Final = 0.05
"""So much of the median of what was measured may be lateness, however little is allowed."""
FULL: Final = 0.9
"""CPU seconds a second of the one core a generator can use; beyond this it waits for itself."""


class Overhead(msgspec.Struct, frozen=True):
    """What one generating process cost, and how late it was. Seconds."""

    wall_s: float
    cpu_s: float
    events: int
    naps_late_s: list[float]
    """How late each of its naps ended."""
    windows_cpu: list[float]
    """CPU seconds per second, in windows of about a second."""


class Watch:
    """Watches this process from `start` to `stop`."""

    def __init__(self) -> None:
        self._late_s: list[float] = []
        self._cpu: list[float] = []
        self._started = (0.0, 0.0)
        self._greenlet: gevent.Greenlet | None = None

    def __repr__(self) -> str:
        return f"<Watch, {len(self._late_s)} naps>"

    def start(self) -> None:
        """Begin."""
        self._started = (perf_counter(), _cpu_s())
        self._greenlet = gevent.spawn(self._nap)

    @property
    def cpu(self) -> float:
        """CPU seconds per second of late."""
        return self._cpu[-1] if self._cpu else 0.0

    def stop(self, events: int) -> Overhead:
        """End, and say what it was; `events` is how many the generator read meanwhile."""
        if self._greenlet is not None:
            self._greenlet.kill()
        began_s, cpu_s = self._started
        wall_s = perf_counter() - began_s
        return Overhead(wall_s, _cpu_s() - cpu_s, events, self._late_s, self._cpu)

    def _nap(self) -> None:
        window_began_s, cpu_s = self._started
        while True:
            before_s = perf_counter()
            gevent.sleep(_NAP_S)
            now_s = perf_counter()
            self._late_s.append(max(0.0, now_s - before_s - _NAP_S))
            if now_s - window_began_s >= _WINDOW_S:
                used_s = _cpu_s()
                self._cpu.append((used_s - cpu_s) / (now_s - window_began_s))
                window_began_s, cpu_s = now_s, used_s


def bottleneck(
    overheads: Sequence[Overhead], lags_s: Sequence[float], allowed_s: float
) -> str | None:
    """Why the figures are the generator's own and not the endpoint's; None where they are not.

    `lags_s` is how late each request was sent, `allowed_s` how late p99 may be.
    """
    for overhead in overheads:
        windows = overhead.windows_cpu
        if windows and sum(used > FULL for used in windows) > 0.1 * len(windows):
            return (
                f"the generator had its core at {max(windows):.0%}: spread the load over several "
                "(locust --processes), or lower it"
            )
        if overhead.naps_late_s and (late_s := percentile(overhead.naps_late_s, 0.99)) > allowed_s:
            return (
                f"the generator woke up to {late_s * 1e3:.1f} ms late (p99; {allowed_s * 1e3:.1f} "
                "are allowed), and so are its marks: give it a core of its own"
            )
    if lags_s and (lag_s := percentile(lags_s, 0.99)) > allowed_s:
        return (
            f"requests left up to {lag_s * 1e3:.1f} ms after their instant (p99; "
            f"{allowed_s * 1e3:.1f} are allowed): give the generator a core of its own"
        )
    return None


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
