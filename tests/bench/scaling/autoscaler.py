"""KEDA and the horizontal pod autoscaler, as they decide.

KEDA looks every `polling_s`. While there are no replicas, an active trigger brings one (or the
minimum); when none has been active for `cooldown_s`, there shall be none. In between the autoscaler
decides, every `sync_s`, by one metric:

    external, AverageValue   ratio = total / (target x replicas);  desired = ceil(total / target)
    resource, utilisation    ratio = mean over ready pods / target; desired = ceil(ratio x ready)

Nothing is done while |1 - ratio| is within the tolerance. Pods that are not ready count as idle
when a resource metric says up, and nothing is done if that turns the direction. What is wanted is
then held back: downwards to the highest of what was wanted in the last `down_window_s`, upwards by
the policies (twice as many or four more in 15 s, whichever is more), and within the bounds.

Read from: kubernetes pkg/controller/podautoscaler (1.33) and kedacore/keda pkg/scaling/executor
(2.17), at their defaults, with KEDA's polling and cool-down times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Final

TOLERANCE: Final = 0.1
UP_PERIOD_S: Final = 15.0
UP_PODS: Final = 4


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The knobs, at their defaults."""

    polling_s: float = 30.0
    cooldown_s: float = 300.0
    sync_s: float = 15.0
    down_window_s: float = 300.0
    most: int = 64


@dataclass(frozen=True, slots=True)
class External:
    """A total, to be shared out at so much a replica."""

    total: float
    target: float

    def desired(self, replicas: int, _ready: int) -> int:
        """Without regard to what went before."""
        if abs(1.0 - self.total / (self.target * replicas)) <= TOLERANCE:
            return replicas
        return ceil(round(self.total / self.target, 3))


@dataclass(frozen=True, slots=True)
class Resource:
    """A mean over the pods that are ready."""

    mean: float
    target: float

    def desired(self, replicas: int, ready: int) -> int:
        """Without regard to what went before."""
        if not ready:
            return replicas
        ratio = self.mean / self.target
        if abs(1.0 - ratio) <= TOLERANCE:
            return replicas
        if ratio < 1.0 or replicas == ready:
            return ceil(round(ratio * ready, 3))
        idle = self.mean * ready / replicas / self.target
        return ceil(round(idle * replicas, 3)) if idle > 1.0 + TOLERANCE else replicas


Metric = External | Resource


class Autoscaler:
    """Decides how many replicas there shall be."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.replicas = 0
        self.active_at_s = -behaviour.cooldown_s
        self._wanted: deque[tuple[float, int]] = deque()
        self._ups: deque[tuple[float, int]] = deque()

    def __repr__(self) -> str:
        return f"<Autoscaler {self.replicas}>"

    def poll(self, is_active: bool, now_s: float) -> None:
        """KEDA's look, or its being told of an activation."""
        if is_active:
            self.active_at_s = now_s
            if not self.replicas:
                self.replicas = 1
                self._wanted.clear()
                self._ups.clear()
        elif self.replicas and now_s - self.active_at_s >= self.behaviour.cooldown_s:
            self.replicas = 0

    def sync(self, metric: Metric, ready: int, now_s: float) -> None:
        """The autoscaler's look."""
        if not self.replicas:
            return
        behaviour = self.behaviour
        wanted = min(max(metric.desired(self.replicas, ready), 1), behaviour.most)
        self._wanted.append((now_s, wanted))
        while self._wanted[0][0] < now_s - behaviour.down_window_s:
            self._wanted.popleft()
        if wanted < self.replicas:
            highest = max(each for _, each in self._wanted)
            self.replicas = min(self.replicas, highest)
        elif wanted > self.replicas:
            while self._ups and self._ups[0][0] <= now_s - UP_PERIOD_S:
                self._ups.popleft()
            before = self.replicas - sum(each for _, each in self._ups)
            most = max(2 * before, before + UP_PODS)
            grown = max(min(wanted, most), self.replicas)
            if grown > self.replicas:
                self._ups.append((now_s, grown - self.replicas))
            self.replicas = grown


@dataclass(frozen=True, slots=True)
class Signals:
    """What there is to scale by, at one instant, fresh."""

    queued: int
    inflight: int
    cache_usage: float  # summed over ready replicas
    busy: float  # the mean part of the last 15 s in which a ready replica computed
    replicas_needed: float


Rule = Callable[[Signals], Metric]
