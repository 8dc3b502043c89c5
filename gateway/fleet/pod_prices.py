"""Tells Kubernetes which pods to delete first: writes their deletion costs, now and then.

Looked at every `LOOK_EVERY_S`, ± a fifth, and at most `AT_ONCE` pods are written at a time; what
has to be written, `deletion_cost` says. Several gateways may do this side by side: each reads what
is written there from its own watch, and adds nothing to what is right.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from gateway.fleet.deletion_cost import Priced, to_be_written, worth_of
from gateway.fleet.kubernetes_api import KubernetesApi, Refused, Unreachable
from gateway.fleet.kubernetes_rights import PODS
from gateway.fleet.pods import DELETION_COST, Sighting, Stage
from gateway.vocabulary import ReplicaId, ReplicaView, Seconds, Tokens

if TYPE_CHECKING:
    from random import Random

    from gateway.fleet.watching import Key

LOOK_EVERY_S: Final[Seconds] = 10.0
AT_ONCE: Final = 20

log = logging.getLogger(__name__)


class Caches(Protocol):
    """Whoever knows what the replicas' caches hold."""

    def held_tokens(self, replica: ReplicaId) -> Tokens:
        """About so many tokens; 0 where nothing is known."""


class PodPrices:
    """Writes them."""

    def __init__(
        self,
        api: KubernetesApi,
        caches: Caches,
        replicas: Callable[[], Iterable[ReplicaView]],
        pods: Callable[[], Iterable[Sighting]],
        rng: Random,
    ) -> None:
        """`pods` are as they were last seen."""
        self._api = api
        self._caches = caches
        self._replicas = replicas
        self._pods = pods
        self._rng = rng
        self._trouble: str | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S * self._rng.uniform(0.8, 1.2))
            pause_s = 0.0
            try:
                await self._write(to_be_written(self._priced()))
            except Refused as error:
                pause_s = error.retry_after_s
                self._complain(str(error))
            except Unreachable as error:
                self._complain(str(error))
            except Exception:
                log.exception("kubernetes: pricing pods has a bug")
            await asyncio.sleep(pause_s)

    def _priced(self) -> Iterable[Priced]:
        by_id = {replica.id: replica for replica in self._replicas()}
        for pod in self._pods():
            if pod.pod is None or pod.controller is None or pod.stage is not Stage.READY:
                continue  # those that are not ready go first, whatever they cost
            ranks = [by_id[each.id] for each in pod.addresses if each.id in by_id]
            worth = sum(worth_of(self._caches.held_tokens(each.id), each) for each in ranks)
            yield Priced(pod.pod, pod.controller, pod.cost, worth)

    async def _write(self, costs: Mapping[Key, int]) -> None:
        """Raises Refused, Unreachable."""
        for pod, cost in islice(costs.items(), AT_ONCE):
            patch = {"metadata": {"annotations": {DELETION_COST: str(cost)}}}
            try:
                path = PODS.path(pod.namespace, pod.name)
                await self._api.merge(path, msgspec.json.encode(patch))
            except Refused as error:
                if error.status != 404:  # it is gone already
                    raise
        self._trouble = None

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("kubernetes: deletion costs cannot be written: %s", trouble)
