"""Which replicas are there? From Kubernetes: pods, endpoint slices, and the models' workloads.

One task per kind and namespace lists and then watches (`watching` holds the law, `kubernetes_api`
the wire, `pods` the meaning). After every change the roster is told the whole truth, in the same
tick that the change was read: a pod that is being deleted is given nothing more from then on.
While the API server cannot be reached the last good answer stands.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.fleet.kubernetes_access import Access
from gateway.fleet.kubernetes_api import KubernetesApi, Refused, Unreachable
from gateway.fleet.kubernetes_objects import (
    read_event,
    read_metadata,
    read_page,
    read_status,
    read_version,
)
from gateway.fleet.kubernetes_rights import (
    DEPLOYMENTS,
    LEADER_WORKER_SETS,
    PODS,
    SLICES,
    Resource,
)
from gateway.fleet.pod_prices import Caches, PodPrices
from gateway.fleet.pods import (
    Sighting,
    UsualPort,
    models_in,
    read_pod,
    read_slice,
    read_workload,
    replicas_of,
    unplaced_in,
)
from gateway.fleet.watching import Key, List, Wait, Watch, Watching
from gateway.settings import ModelSettings

if TYPE_CHECKING:
    from gateway.clock import Clock
    from gateway.fleet.roster import Roster
    from gateway.settings import KubernetesSettings
    from gateway.vocabulary import ModelName

PAGE: Final = "250"
SOURCE: Final = "kubernetes"

log = logging.getLogger(__name__)

Read = Callable[[msgspec.Raw, UsualPort], tuple[Sighting, ...]]

READERS: Final[dict[Resource, Read]] = {
    PODS: read_pod,
    SLICES: read_slice,
    DEPLOYMENTS: read_workload,
    LEADER_WORKER_SETS: read_workload,
}


class KubernetesDiscovery:
    """Follows what the settings name, and keeps the roster told."""

    def __init__(
        self,
        settings: KubernetesSettings,
        roster: Roster,
        caches: Caches,
        clock: Clock,
        rng: Random,
    ) -> None:
        """Raises SettingsError where there is no way to an API server."""
        access = Access(settings.kubeconfig)
        self._api = KubernetesApi(access)
        self._roster = roster
        self._models: tuple[ModelName, ...] = ()
        namespaces = settings.namespaces or (access.namespace,)
        self._follows = [
            Follow(resource, namespace, settings, clock, rng)
            for resource in _resources(settings)
            for namespace in namespaces
        ]
        self._prices = None
        if settings.deletion_cost:
            self._prices = PodPrices(
                self._api, caches, lambda: roster.replicas, self._sightings, rng
            )

    def __repr__(self) -> str:
        return f"<KubernetesDiscovery {self._follows!r}>"

    async def run(self) -> None:
        """Follow, and tell, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for follow in self._follows:
                tasks.create_task(follow.run(self._api, self._tell), name=repr(follow))
            if self._prices is not None:
                tasks.create_task(self._prices.run(), name="pod prices")

    def _tell(self) -> None:
        """Models first: one whose last replica leaves is not unknown for a moment."""
        models = models_in(self._sightings())
        if models != self._models:
            self._models = models
            self._roster.declare([ModelSettings(name=name) for name in models], SOURCE)
        self._roster.unplaced = unplaced_in(self._sightings())
        self._roster.apply(replicas_of(self._sightings()), SOURCE)
        if all(follow.has_answered for follow in self._follows):
            self._roster.know_all()

    def _sightings(self) -> Iterable[Sighting]:
        for follow in self._follows:
            for sightings in follow.watching.objects.values():
                yield from sightings


def _resources(settings: KubernetesSettings) -> list[Resource]:
    """Pods first: what they say of themselves goes before what a Service says of them."""
    found = [PODS] if settings.follows_pods else []
    if settings.follows_slices:
        found.append(SLICES)
    return [*found, DEPLOYMENTS, LEADER_WORKER_SETS]


class Follow:
    """One kind in one namespace."""

    def __init__(
        self,
        resource: Resource,
        namespace: str,
        settings: KubernetesSettings,
        clock: Clock,
        rng: Random,
    ) -> None:
        self.watching = Watching[tuple[Sighting, ...]](settings.resync_s, rng.random)
        self._path = resource.path(namespace)
        self._name = f"kubernetes {namespace}/{resource.plural}"
        self._query = {"labelSelector": settings.selector}
        self._read = READERS[resource]
        self._usual = UsualPort(settings.port_name, settings.port)
        self._clock = clock
        self._trouble: str | None = None
        self._unreadable: dict[Key, str] = {}
        self.has_answered = False
        """What there is has been told once; where nobody knows the kind, that is nothing."""

    def __repr__(self) -> str:
        return f"<Follow {self._name}: {self.watching!r}>"

    async def run(self, api: KubernetesApi, tell: Callable[[], None]) -> None:
        """Until cancelled; `tell` is called when anything is not what it was."""
        while True:
            step = self.watching.step(self._clock())
            try:
                await self._do(step, api, tell)
            except Refused as error:
                if error.status == 404:
                    self._complain("not known to this cluster", logging.INFO)
                    self.has_answered = True
                    tell()
                else:
                    self._complain(str(error))
                self.watching.refused(error.status, error.retry_after_s, self._clock())
                if error.status == 401:
                    await self._renew(api)
            except (Unreachable, ValueError) as error:
                # Watches break; that is worth a warning where the list that follows fails too.
                level = logging.INFO if isinstance(step, Watch) else logging.WARNING
                self._complain(str(error), level)
                self.watching.dropped(self._clock())
            except Exception:
                log.exception("%s: discovery has a bug", self._name)
                self.watching.dropped(self._clock())

    async def _do(
        self, step: List | Watch | Wait, api: KubernetesApi, tell: Callable[[], None]
    ) -> None:
        match step:
            case Wait(lasting_s):
                await asyncio.sleep(lasting_s)
            case List(continue_from):
                query = {**self._query, "limit": PAGE}
                if continue_from is not None:
                    query["continue"] = continue_from
                if self._take_page(await api.get(self._path, query)):
                    tell()
            case Watch(version, lasting_s):
                query = {
                    **self._query,
                    "watch": "true",
                    "allowWatchBookmarks": "true",
                    "resourceVersion": version,
                    "timeoutSeconds": str(max(1, round(lasting_s))),
                }
                take = partial(self._take_lines, tell=tell)
                await api.watch(self._path, query, lasting_s, take)
                self.watching.ended(self._clock())

    async def _renew(self, api: KubernetesApi) -> None:
        try:
            await api.renew()
        except Unreachable as error:
            self._complain(str(error))

    def _take_page(self, body: bytes) -> bool:
        """True if anything is not what it was. Raises ValueError."""
        page = read_page(body)
        found: dict[Key, tuple[Sighting, ...]] = {}
        for raw in page.items or ():
            key = read_metadata(raw).key
            found[key] = self._sighted(key, raw)
        following = page.metadata.continue_from or None
        is_news = self.watching.listed(found, page.metadata.version, following, self._clock())
        if following is not None:
            return False
        self._unreadable = {
            key: wrong for key, wrong in self._unreadable.items() if key in self.watching.objects
        }
        if self._trouble is not None:
            self._trouble = None
            log.info("%s: readable again", self._name)
        is_first, self.has_answered = not self.has_answered, True
        return is_news or is_first

    def _take_lines(self, lines: list[bytes], tell: Callable[[], None]) -> None:
        """Some lines of a watch; `tell` is called once for all. Raises ValueError, Refused."""
        is_news = False
        try:
            for line in lines:
                if line:
                    is_news |= self._take_line(line)
        finally:
            if is_news:
                tell()

    def _take_line(self, line: bytes) -> bool:
        """True if anything is not what it was."""
        event = read_event(line)
        if event.type == "ERROR":
            status = read_status(event.object)
            raise Refused(status.code or 500, status.message or "", status.retry_after_s)
        if event.type == "BOOKMARK":
            self.watching.marked(read_version(event.object))
            return False
        meta = read_metadata(event.object)
        if event.type == "DELETED":
            self._unreadable.pop(meta.key, None)
            return self.watching.deleted(meta.key, meta.version)
        return self.watching.put(meta.key, self._sighted(meta.key, event.object), meta.version)

    def _sighted(self, key: Key, raw: msgspec.Raw) -> tuple[Sighting, ...]:
        """What an object tells; nothing where that cannot be read, which is said once."""
        try:
            sightings = self._read(raw, self._usual)
        except ValueError as error:
            if self._unreadable.get(key) != str(error):
                self._unreadable[key] = str(error)
                log.warning("%s: %s is left out: %s", self._name, key.name, error)
            return ()
        self._unreadable.pop(key, None)
        return sightings

    def _complain(self, trouble: str, level: int = logging.WARNING) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            log.log(level, "%s: %s; the last good answer stands", self._name, trouble)
