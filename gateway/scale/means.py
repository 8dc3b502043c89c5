"""Rates of arriving work over the past, and what one answer costs, learnt from many.

Means are over the past in which older arrivals count less, by exp(-age / time). One that begins
anew, for a model that wakes, knows only so much of its past, and is divided by that.
"""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from gateway.vocabulary import Seconds

LEAST_PAST_S: Final = 10.0
"""A model that wakes is taken to have been awake for so long: its first request is no flood."""

PRIOR_OUTPUT_TOKENS: Final = 256.0
PRIOR_STEP_S: Final = 0.015  # one token of a sequence that is alone
PRIOR_DECODE_S: Final = 0.000_25
PRIOR_SEQUENCES: Final = 64.0
FADE: Final = 0.99  # per look: the last hundred of them count


class Speed(msgspec.Struct, frozen=True):
    """What the mean replica of a model does: prefill in work a second (as the policy that chooses
    counts work), and for how long each generated token keeps it busy."""

    prefill_per_s: float
    decode_s: Seconds

    def cost_s(self, work: float, output: float) -> Seconds:
        """Replica-seconds."""
        return work / self.prefill_per_s + output * self.decode_s


class Came:
    """What has arrived: requests, their work, the tokens they will generate, work spared by caches,
    and the sum of squares of requests' replica-seconds."""

    __slots__ = ("lumps", "output", "requests", "saved", "work")

    def __init__(self) -> None:
        self.requests = 0
        self.work = self.output = self.saved = self.lumps = 0.0

    def __repr__(self) -> str:
        return f"<Came {self.work:.0f} work, {self.output:.0f} tokens>"


class Rate:
    """Arrivals a second, over so much of the past."""

    __slots__ = ("_known", "_past_s", "lumps", "output", "saved", "work")

    def __init__(self, past_s: Seconds) -> None:
        self._past_s = past_s
        self._known = 0.0
        self.work = self.output = self.saved = self.lumps = 0.0
        self.begin()

    def __repr__(self) -> str:
        return f"<Rate {self.work:.0f} work a second>"

    def begin(self) -> None:
        """Nothing is known of the past."""
        self._known = 1.0 - exp(-LEAST_PAST_S / self._past_s)
        self.work = self.output = self.saved = self.lumps = 0.0

    def add(self, came: Came, passed_s: Seconds) -> None:
        """So much came in the time that has passed."""
        keep = exp(-passed_s / self._past_s)
        weight = (1.0 - keep) / passed_s
        self._known = 1.0 - (1.0 - self._known) * keep
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

    def lumpy(self) -> float:
        """Squares of requests' replica-seconds per second."""
        return self.lumps / self._known


class DecodeCost:
    """For how long a generated token keeps a replica busy: what one sequence more adds to a step.

    The time between tokens is a + b x sequences; b is wanted, for a passes whoever is there. Both
    are fitted by least squares over looks that fade. Prefill beside it stretches all steps: it is
    taken out by the part of the time that it took.
    """

    __slots__ = ("_n", "_sx", "_sxx", "_sxy", "_sy", "decode_s")

    def __init__(self) -> None:
        self.decode_s: Seconds = PRIOR_DECODE_S
        self._n = self._sx = self._sxx = self._sxy = self._sy = 0.0
        for sequences in (1.0, PRIOR_SEQUENCES):
            self._add(sequences, PRIOR_STEP_S + PRIOR_DECODE_S * sequences)

    def __repr__(self) -> str:
        return f"<DecodeCost {self.decode_s * 1e6:.0f} us a token>"

    def learn(self, sequences: float, token_s: Seconds, prefilling: float) -> None:
        """So many at each replica, so long between tokens, while prefill had that part of time."""
        self._add(max(sequences, 1.0), token_s * (1.0 - min(max(prefilling, 0.0), 0.9)))
        spread = self._n * self._sxx - self._sx**2
        slope = (self._n * self._sxy - self._sx * self._sy) / spread if spread > 0.0 else 0.0
        self.decode_s = min(max(slope, 0.0), self._sy / self._sx)

    def _add(self, x: float, y: float) -> None:
        self._n = FADE * self._n + 1.0
        self._sx = FADE * self._sx + x
        self._sy = FADE * self._sy + y
        self._sxx = FADE * self._sxx + x * x
        self._sxy = FADE * self._sxy + x * y
