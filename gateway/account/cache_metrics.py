"""What Prometheus reads of caches: what we believe they hold, and how often that was right.

The hit rate achieved is `gateway_cached_tokens_total / gateway_prompt_tokens_total`; these say
whether it was foreseen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.kv_cache import Certainty

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


class Heard(Protocol):
    """What one replica has told of its KV cache."""

    batches: int
    blocks: int
    gaps: int
    replays: int
    certainty: Certainty


class CacheSource(Protocol):
    """Who knows of replicas' caches: what they have told, and what the policy believes."""

    @property
    def heard(self) -> Mapping[ReplicaId, Heard]: ...

    def caches(self) -> Mapping[ReplicaId, CacheState]: ...


_TALLIES: Final[tuple[tuple[str, Callable[[Audit], Tally]], ...]] = (
    ("chosen", lambda audit: audit.predicted),
    ("events", lambda audit: audit.settled),
)


_HEARD: Final[tuple[tuple[str, str, Callable[[Heard], int]], ...]] = (
    (
        "gateway_kv_event_batches",
        "Batches of KV-cache events a replica has told.",
        lambda heard: heard.batches,
    ),
    (
        "gateway_kv_event_blocks",
        "Blocks they said were stored.",
        lambda heard: heard.blocks,
    ),
    (
        "gateway_kv_event_gaps",
        "Times that batches were missing.",
        lambda heard: heard.gaps,
    ),
    (
        "gateway_kv_event_replays",
        "Times that it was asked to tell again.",
        lambda heard: heard.replays,
    ),
)


class CacheCollector(Collector):
    """Reads both when Prometheus asks."""

    def __init__(self, source: CacheSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Every family, those without samples too."""
        yield from self._kv_events()
        caches = self._source.caches()
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

    def _kv_events(self) -> Iterator[Metric]:
        heard = self._source.heard
        for name, text, count_of in _HEARD:
            counter = CounterMetricFamily(name, text, labels=("replica",))
            for replica, told in heard.items():
                counter.add_metric((replica,), count_of(told))
            yield counter
        state = GaugeMetricFamily(
            "gateway_kv_certainty",
            "1 for how far what a replica tells of its cache can be trusted, 0 for the others.",
            labels=("replica", "certainty"),
        )
        for replica, told in heard.items():
            for each in Certainty:
                state.add_metric((replica, each.value), float(told.certainty is each))
        yield state
