"""The marks of one reply become a sample; a sample is what all figures are made of.

Pure. All times are seconds since the start of the run. An *output* is an event of a stream that
bears something the model generated: text, reasoning, or a part of a tool call. Role-only and empty
first events, finish reasons, usage and `[DONE]` are none.

Every latency counts from the instant the request was *intended* to be sent, so that a generator or
an endpoint that holds requests up cannot hide it (coordinated omission):

    TTFT = first output - intended            end-to-end = end of the reply - intended
    ITL  = gaps between successive outputs    TPOT = (last output - first output) / (tokens - 1)

TPOT is that of `vllm bench serve`. Tokens are what `usage` says. An endpoint that reports none has
its outputs counted instead: too few where an event bears several tokens, too many where a token is
spread over several events.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import msgspec

if TYPE_CHECKING:
    from loadtest.deltas import Usage


class Marks:
    """The instants of one request, taken down as they come."""

    __slots__ = ("ended_s", "intended_s", "outputs_s", "sent_s", "usage")

    def __init__(self, intended_s: float) -> None:
        self.intended_s = intended_s
        self.sent_s = intended_s
        self.ended_s = intended_s
        self.outputs_s: list[float] = []
        self.usage: Usage | None = None

    def shift(self, by_s: float) -> None:
        """Move all marks: from a clock's own zero to the start of the run."""
        self.intended_s += by_s
        self.sent_s += by_s
        self.ended_s += by_s
        self.outputs_s = [at_s + by_s for at_s in self.outputs_s]

    def __repr__(self) -> str:
        return f"<Marks {self.intended_s:.3f} s, {len(self.outputs_s)} outputs>"


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One request and what became of it. Small and flat: workers send them to their master."""

    label: str
    tenant: str
    intended_s: float
    lag_s: float
    """How much later than intended it was sent: the generator's own doing."""
    e2e_s: float
    ttft_s: float | None = None
    last_output_s: float | None = None
    """Intended to the last output."""
    gaps_s: list[float] = []
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    are_tokens_counted: bool = False
    """Whether `output_tokens` is our count of outputs: the endpoint reported none."""
    error: str | None = None
    """What went wrong, of a small set of words; None where the reply came whole."""

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None below two tokens."""
        tokens = self.output_tokens
        if tokens is None or tokens < 2 or self.ttft_s is None or self.last_output_s is None:
            return None
        return (self.last_output_s - self.ttft_s) / (tokens - 1)

    @property
    def ended_s(self) -> float:
        """When the reply was whole, since the start of the run."""
        return self.intended_s + self.e2e_s

    def gap_ends_s(self) -> list[float]:
        """When each gap was over, since the start of the run."""
        at_s = self.intended_s + (self.ttft_s or 0.0)
        return [at_s := at_s + gap_s for gap_s in self.gaps_s]


def sample_of(marks: Marks, label: str, tenant: str = "", error: str | None = None) -> Sample:
    """What the marks of an ended request come to."""
    start_s, outputs_s, usage = marks.intended_s, marks.outputs_s, marks.usage
    tokens = None if usage is None else usage.output_tokens
    is_counted = tokens is None and bool(outputs_s)
    return Sample(
        label=label,
        tenant=tenant,
        intended_s=start_s,
        lag_s=max(0.0, marks.sent_s - start_s),
        e2e_s=marks.ended_s - start_s,
        ttft_s=outputs_s[0] - start_s if outputs_s else None,
        last_output_s=outputs_s[-1] - start_s if outputs_s else None,
        gaps_s=[after - before for before, after in pairwise(outputs_s)],
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        cached_tokens=None if usage is None else usage.cached_tokens,
        output_tokens=len(outputs_s) if is_counted else tokens,
        are_tokens_counted=is_counted,
        error=error,
    )


_Limit = Annotated[float, msgspec.Meta(gt=0)]


class Objectives(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user is promised of each request; None promises nothing."""

    ttft_s: _Limit | None = None
    tpot_s: _Limit | None = None
    longest_gap_s: _Limit | None = None
    e2e_s: _Limit | None = None
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.95
    """So many of all requests (0..1] must be good for a rate to count as met."""

    def met_by(self, sample: Sample) -> bool:
        """Whether this request came whole and kept every promise that applies to it.

        A promise about streams does not apply to a reply that was none.
        """
        if sample.error is not None:
            return False
        longest_s = max(sample.gaps_s, default=None)
        return (
            _within(sample.ttft_s, self.ttft_s)
            and _within(sample.tpot_s, self.tpot_s)
            and _within(longest_s, self.longest_gap_s)
            and _within(sample.e2e_s, self.e2e_s)
        )

    def __str__(self) -> str:
        limits = (
            ("TTFT", self.ttft_s),
            ("TPOT", self.tpot_s),
            ("longest gap", self.longest_gap_s),
            ("end to end", self.e2e_s),
        )
        said = [f"{name} ≤ {limit * 1e3:g} ms" for name, limit in limits if limit is not None]
        return ", ".join(said) or "a whole reply"


def _within(value: float | None, limit: float | None) -> bool:
    return value is None or limit is None or value <= limit
