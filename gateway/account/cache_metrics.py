"""What Prometheus reads of caches: what we believe they hold, and how often that was right.

The hit rate achieved is `gateway_cached_tokens_total / gateway_prompt_tokens_total`; these say
whether it was foreseen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from gateway.vocabulary import ReplicaId, Tokens

GRADES: Final = ("exact", "partial", "approximate")


class Tally(Protocol):
    """Hits foretold and found."""

    exact: int
    over: int
    under: int
    error_tokens: Tokens


class Audit(Protocol):
    """The verdicts on one replica."""

    @property
    def predicted(self) -> Tally: ...
    @property
    def settled(self) -> Tally: ...


class CacheState(Protocol):
    """What is known of one replica's cache."""

    @property
    def blocks(self) -> int: ...
    @property
    def grade(self) -> str: ...
    @property
    def audit(self) -> Audit: ...


_TALLIES: Final[tuple[tuple[str, Callable[[Audit], Tally]], ...]] = (
    ("chosen", lambda audit: audit.predicted),
    ("events", lambda audit: audit.settled),
)


class CacheCollector(Collector):
    """Reads the policy's beliefs when Prometheus asks."""

    def __init__(self, caches: Callable[[], Mapping[ReplicaId, CacheState]]) -> None:
        self._caches = caches

    def collect(self) -> Iterator[Metric]:
        """Every family, those without samples too."""
        caches = self._caches()
        blocks = GaugeMetricFamily(
            "gateway_cache_blocks",
            "KV blocks a replica holds, by its events.",
            labels=("replica",),
        )
        grade = GaugeMetricFamily(
            "gateway_cache_grade",
            "1 for how a replica's cache is known, 0 for the others.",
            labels=("replica", "grade"),
        )
        for replica, cache in caches.items():
            blocks.add_metric((replica,), cache.blocks)
            for each in GRADES:
                grade.add_metric((replica, each), float(cache.grade == each))
        yield from (blocks, grade, *self._audits(caches))

    def _audits(self, caches: Mapping[ReplicaId, CacheState]) -> Iterator[Metric]:
        verdicts = CounterMetricFamily(
            "gateway_cache_audits",
            "Responses that told their cached tokens, by whether as many had been predicted: when "
            "the replica was chosen, or by its events once the prompt was tokenised.",
            labels=("replica", "prediction", "verdict"),
        )
        errors = CounterMetricFamily(
            "gateway_cache_audit_error_tokens",
            "Cached tokens predicted and not found, or found and not predicted.",
            labels=("replica", "prediction"),
        )
        for replica, cache in caches.items():
            for name, tally_of in _TALLIES:
                tally = tally_of(cache.audit)
                verdicts.add_metric((replica, name, "exact"), tally.exact)
                verdicts.add_metric((replica, name, "over"), tally.over)
                verdicts.add_metric((replica, name, "under"), tally.under)
                errors.add_metric((replica, name), tally.error_tokens)
        yield from (verdicts, errors)
