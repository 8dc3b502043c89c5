"""Is an engine idle, and is it alive? Read from its /metrics; pure.

An engine whose core hangs still answers /health, for another process of it does. What tells is
that requests run and no token is made. `Vitals` is asked at every look: how long has nothing moved?

Names: vLLM 0.32, v1/metrics/loggers.py; SGLang 0.5, srt/observability/metrics_collector.py.
Invariant: any bytes give a Load.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_SAMPLE: Final = re.compile(rb"^(vllm|sglang):([a-z_]+)(?:\{[^}\n]*\})? ([0-9.e+]+)", re.MULTILINE)
_WAITING: Final = frozenset({b"num_requests_waiting", b"num_queue_reqs"})
_RUNNING: Final = frozenset({b"num_requests_running", b"num_running_reqs"})
_MADE: Final = frozenset({b"prompt_tokens_total", b"generation_tokens_total"})


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine has to do, and what it has done."""

    requests: float
    """Running and waiting."""
    tokens: float
    """Read and made since it started."""


def read_load(page: bytes) -> Load:
    """The sums over a page's models and ranks; what is not there counts as 0."""
    requests = tokens = 0.0
    for _, name, value in _SAMPLE.findall(page):
        try:
            number = float(value)
        except ValueError:
            continue
        if name in _RUNNING or name in _WAITING:
            requests += number
        elif name in _MADE:
            tokens += number
    return Load(requests, tokens)


class Vitals:
    """When did an engine last show life? One per run of an engine."""

    __slots__ = ("_moved_at", "_tokens")

    def __init__(self, now: float) -> None:
        self._moved_at = now
        self._tokens = -1.0

    def __repr__(self) -> str:
        return f"<Vitals moved at {self._moved_at:.1f}>"

    def look(self, load: Load | None, now: float) -> float:
        """Seconds without life, after one more look; None: it did not answer.

        Life is an answer that either owes nothing or has other tokens than the last.
        """
        if load is not None and (load.requests == 0.0 or load.tokens != self._tokens):
            self._moved_at = now
            self._tokens = load.tokens
        return now - self._moved_at
