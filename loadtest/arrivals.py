"""When sessions begin: ascending instants in seconds since the start, from a seed.

Pure. An open loop: nothing here knows how the endpoint fares, as the users of a service do not. The
same seed gives the same instants to every worker of a distributed run; each takes its share by
number. `Users` is the closed loop beside it: so many who each wait for their answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from random import Random

import msgspec


class Poisson(
    msgspec.Struct, frozen=True, tag_field="kind", tag="poisson", forbid_unknown_fields=True
):
    """Independent users: exponential gaps."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _checked(self.rate_per_s)

    def instants(self, seed: int, duration_s: float) -> Iterator[float]:
        """The instants below `duration_s`."""
        return _gamma(Random(f"arrivals {seed}"), self.rate_per_s, 1.0, duration_s)

    def at_rate(self, rate_per_s: float) -> Poisson:
        """The same at another mean rate."""
        return Poisson(rate_per_s)


class Bursts(
    msgspec.Struct, frozen=True, tag_field="kind", tag="bursts", forbid_unknown_fields=True
):
    """Gamma gaps: the same mean rate as Poisson's, in bursts.

    `burstiness` is the coefficient of variation of the gaps: 1 is Poisson, above it burstier, 0.0
    a metronome.
    """

    rate_per_s: float
    burstiness: float = 3.0

    def __post_init__(self) -> None:
        _checked(self.rate_per_s)
        if self.burstiness < 0:
            raise ValueError("burstiness is at least 0")

    def instants(self, seed: int, duration_s: float) -> Iterator[float]:
        """The instants below `duration_s`."""
        random = Random(f"arrivals {seed}")
        return _gamma(random, self.rate_per_s, self.burstiness, duration_s)

    def at_rate(self, rate_per_s: float) -> Bursts:
        """The same at another mean rate."""
        return Bursts(rate_per_s, self.burstiness)


class Ramp(msgspec.Struct, frozen=True, tag_field="kind", tag="ramp", forbid_unknown_fields=True):
    """A Poisson process whose rate goes from one value to another in a straight line."""

    from_per_s: float
    to_per_s: float

    def __post_init__(self) -> None:
        if min(self.from_per_s, self.to_per_s) < 0 or self.from_per_s == self.to_per_s == 0:
            raise ValueError("the rates of a ramp are at least 0, and not both 0")

    @property
    def rate_per_s(self) -> float:
        """In the mean."""
        return (self.from_per_s + self.to_per_s) / 2

    def instants(self, seed: int, duration_s: float) -> Iterator[float]:
        """The instants below `duration_s`.

        A Poisson process of rate 1 in operational time, put through the inverse of the expected
        count a t + (b - a) t^2 / 2T (Cinlar's inversion): exact, nothing is thrown away.
        """
        random = Random(f"arrivals {seed}")
        start, slope = self.from_per_s, (self.to_per_s - self.from_per_s) / duration_s
        expected = random.expovariate(1.0)
        while expected < self.rate_per_s * duration_s:
            # the root of slope/2 t^2 + start t - expected, in the form that bears slope = 0
            root = sqrt(max(0.0, start * start + 2 * slope * expected))
            yield min(2 * expected / (start + root), duration_s)
            expected += random.expovariate(1.0)

    def at_rate(self, rate_per_s: float) -> Ramp:
        """The same shape at another mean rate."""
        scale = rate_per_s / self.rate_per_s
        return Ramp(self.from_per_s * scale, self.to_per_s * scale)


class OwnTimes(
    msgspec.Struct, frozen=True, tag_field="kind", tag="own-times", forbid_unknown_fields=True
):
    """The workload is a trace, and brings its own instants, `speed` times as fast."""

    speed: float = 1.0

    def __post_init__(self) -> None:
        if self.speed <= 0:
            raise ValueError("speed is above 0")

    def replay(self, times_s: list[float], duration_s: float) -> Iterator[float]:
        """A trace's ascending times, from its first on."""
        for at_s in times_s:
            after_s = (at_s - times_s[0]) / self.speed
            if after_s >= duration_s:
                return
            yield after_s


class Users(msgspec.Struct, frozen=True, tag_field="kind", tag="users", forbid_unknown_fields=True):
    """A closed loop: each user asks again once answered. Slow replies make for less load."""

    users: int

    def __post_init__(self) -> None:
        if self.users < 1:
            raise ValueError("there is at least one user")


OpenLoop = Poisson | Bursts | Ramp
Arrivals = OpenLoop | OwnTimes | Users


def _checked(rate_per_s: float) -> None:
    if rate_per_s <= 0:
        raise ValueError("a rate is above 0")


def _gamma(
    random: Random, rate_per_s: float, variation: float, duration_s: float
) -> Iterator[float]:
    """Gaps of mean 1/rate and this coefficient of variation: gamma of shape 1/cv^2."""
    mean_s = 1.0 / rate_per_s
    shape = 1.0 / variation**2 if variation > 0.001 else 0.0
    at_s = 0.0
    while True:
        at_s += random.gammavariate(shape, mean_s / shape) if shape else mean_s
        if at_s >= duration_s:
            return
        yield at_s
