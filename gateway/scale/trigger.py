"""What a KEDA trigger asks for, read from its metadata. Pure.

    model     of which model; needed
    metric    `replicas_needed` (what it is without), or one of the plain figures of `Demand`
    target    how much of it one replica stands for; 1 for `replicas_needed`, needed for the others

Whatever else stands there was written by somebody who meant something by it: only what KEDA itself
reads there is let pass. The name of a metric tells nothing of the model, for Kubernetes makes it
part of a path, and models have slashes in their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from gateway.demand import Demand
from gateway.vocabulary import ModelName

NEEDED: Final = "replicas_needed"

METRICS: Final[Mapping[str, Callable[[Demand], float]]] = MappingProxyType(
    {
        NEEDED: lambda demand: demand.replicas_needed,
        "queued_requests": lambda demand: demand.queued_requests,
        "queued_tokens": lambda demand: demand.queued_tokens,
        "inflight_requests": lambda demand: demand.inflight_requests,
        "inflight_tokens": lambda demand: demand.inflight_tokens,
    }
)

OURS: Final = ("model", "metric", "target")

KEDAS: Final = frozenset(
    {
        "scalerAddress", "enableTLS", "unsafeSsl", "tlsCertFile", "caCert", "tlsClientCert",
        "tlsClientKey",
    }
)  # fmt: skip

_LARGEST: Final = 1e15


class BadTrigger(ValueError):
    """The metadata cannot be used; the message says what to change."""


class Trigger(msgspec.Struct, frozen=True):
    """A model, what is told of it, and how much of that one replica stands for."""

    model: ModelName
    metric: str
    target: float

    @property
    def metric_name(self) -> str:
        """What it is called in Kubernetes."""
        return "headrace-" + self.metric.replace("_", "-")

    def value(self, demand: Demand) -> float:
        """What is told."""
        return METRICS[self.metric](demand)


def read_trigger(metadata: Mapping[str, str]) -> Trigger:
    """Raises BadTrigger."""
    unknown = sorted(set(metadata) - set(OURS) - KEDAS)
    if unknown:
        raise BadTrigger(f"unknown metadata: {', '.join(unknown)}; known are {', '.join(OURS)}")
    model = metadata.get("model", "")
    if not model:
        raise BadTrigger("`model` is missing: the name that clients ask for")
    metric = metadata.get("metric", NEEDED)
    if metric not in METRICS:
        raise BadTrigger(f"`metric` is `{metric}`; it must be one of {', '.join(METRICS)}")
    target = metadata.get("target", "1" if metric == NEEDED else None)
    if target is None:
        raise BadTrigger(f"`target` is missing: how many {metric} one replica stands for")
    return Trigger(ModelName(model), metric, _positive(target))


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= _LARGEST:
        raise BadTrigger(f"`target` is `{text}`; it must be a number above 0")
    return number
