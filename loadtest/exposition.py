"""The few lines we need of a `/metrics` page: those of vLLM, and of the gateway.

Pure. Reads lines, not families: a page of a busy fleet is long, and the generator has better to do.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_WANTED: Final = re.compile(
    rb"^(vllm:[a-z0-9_]+|gateway_[a-z0-9_]+)(?:\{[^\n]*\})? ([-+0-9.eE]+)(?: [0-9.]+)?$",
    re.MULTILINE,
)


def sums(page: bytes) -> dict[str, float]:
    """Each metric's samples added up over all labels. Buckets and what is not ours are left out."""
    found: dict[str, float] = {}
    for name, value in _WANTED.findall(page):
        text = name.decode()
        if not text.endswith(("_bucket", "_created")):
            found[text] = found.get(text, 0.0) + float(value)
    return found


class Sums(msgspec.Struct, frozen=True):
    """What one page counted between two readings."""

    before: dict[str, float]
    after: dict[str, float]

    def count(self, name: str) -> float:
        """By how much a counter grew; 0 where there is none."""
        return self.after.get(name, 0.0) - self.before.get(name, 0.0)

    def mean(self, histogram: str) -> float | None:
        """Of what a histogram saw meanwhile; None where it saw nothing."""
        seen = self.count(f"{histogram}_count")
        return self.count(f"{histogram}_sum") / seen if seen > 0 else None
