"""Rates of arriving work over the past, and what one answer costs, learnt from many.

Means are over the past in which older arrivals count less, by exp(-age / time). One that begins
anew, for a model that wakes, knows only so much of its past, and is divided by that.
"""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.vocabulary import Seconds

LEAST_PAST_S: Final = 10.0
"""A model that wakes is taken to have been awake for so long: its first request is no flood."""

PRIOR_PREFILL_PER_S: Final = 8_000.0  # a mid-size model on one data-centre GPU
PRIOR_OUTPUT_TOKENS: Final = 256.0
PRIOR_STEP_S: Final = 0.015  # one token of a sequence that is alone
SHARE: Final = 50.0  # what one sequence more adds to a step, as a part of that of one alone
FORGET: Final = 0.001  # of the least time, per look that has seen longer ones


class Speed:
    """What the mean replica of a model does: prefill in work a second (as the policy that chooses
    counts work), and for how long each generated token keeps it busy."""

    __slots__ = ("decode_s", "prefill_per_s")

    def __init__(self, prefill_per_s: float, decode_s: Seconds) -> None:
        self.prefill_per_s: Final = prefill_per_s
        self.decode_s: Final = decode_s

    def __repr__(self) -> str:
        return f"<Speed {self.prefill_per_s:.0f} a second, {self.decode_s * 1e6:.0f} us a token>"

    def cost_s(self, work: float, output: float) -> Seconds:
        """Replica-seconds."""
        return work / self.prefill_per_s + output * self.decode_s


class Came:
    """What has arrived: requests, their work, the tokens they will generate, work spared by caches,
    and the sum of squares of requests' replica-seconds."""

    __slots__ = ("is_empty", "lumps", "output", "requests", "saved", "work")

    def __init__(self) -> None:
        self.is_empty = True  # nobody has come, not even who brings no work
        self.requests = 0
        self.work = self.output = self.saved = self.lumps = 0.0

    def __repr__(self) -> str:
        return f"<Came {self.work:.0f} work, {self.output:.0f} tokens>"


class Rate:
    """Arrivals a second, over so much of the past."""

    __slots__ = ("_known", "_past_s", "lumps", "output", "requests", "saved", "work")

    def __init__(self, past_s: Seconds) -> None:
        self._past_s = past_s
        self.begin()

    def __repr__(self) -> str:
        return f"<Rate {self.work:.0f} work a second>"

    def begin(self) -> None:
        """Nothing is known of the past."""
        self._known = 1.0 - exp(-LEAST_PAST_S / self._past_s)
        self.requests = self.work = self.output = self.saved = self.lumps = 0.0

    def add(self, came: Came, passed_s: Seconds) -> None:
        """So much came in the time that has passed."""
        keep = exp(-passed_s / self._past_s)
        weight = (1.0 - keep) / passed_s
        self._known = 1.0 - (1.0 - self._known) * keep
        self.requests = self.requests * keep + came.requests * weight
        self.work = self.work * keep + came.work * weight
        self.output = self.output * keep + came.output * weight
        self.saved = self.saved * keep + came.saved * weight
        self.lumps = self.lumps * keep + came.lumps * weight

    def busy(self, speed: Speed) -> float:
        """Replica-seconds per second."""
        return speed.cost_s(self.work, self.output) / self._known

    def spared(self, speed: Speed) -> float:
        """Replica-seconds per second that caches spare."""
        return speed.cost_s(self.saved, 0.0) / self._known

    def per_s(self) -> float:
        """Requests per second."""
        return self.requests / self._known

    def lumpy(self) -> float:
        """Squares of requests' replica-seconds per second."""
        return self.lumps / self._known


class DecodeCost:
    """For how long a generated token keeps a replica busy: what one sequence more adds to a step.

    That is a small part of the time between tokens, and cannot be told from it while prefill
    stretches steps beside it. So it is taken to be one in SHARE of the least time seen of late:
    that of a replica with little else to do. Replicas that can run no more sequences show it by
    their number.
    """

    __slots__ = ("_least_s",)

    def __init__(self) -> None:
        self._least_s = PRIOR_STEP_S

    def __repr__(self) -> str:
        return f"<DecodeCost {self.decode_s * 1e6:.0f} us a token>"

    @property
    def decode_s(self) -> Seconds:
        """Of one token."""
        return self._least_s / SHARE

    def learn(self, token_s: Seconds) -> None:
        """So long between the tokens of answers that have just ended."""
        self._least_s = min(token_s, self._least_s + FORGET * (token_s - self._least_s))
