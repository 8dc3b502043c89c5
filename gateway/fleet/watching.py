"""What a watched collection of Kubernetes objects holds: list, then watch, as a machine of states.

Asked: what is to be done next (`step`), and which objects are there (`objects`)? Told: what came of
it. Pure: time is told, and chance is an argument.

    LIST, page by page --whole--> WATCH from the list's version --ended in order--> WATCH on
      ^                             |  events change the objects one by one
      +---- 410 Gone, a drop, an error in the stream, or the list is `resync_s` old ----+
    Whatever fails twice in a row WAITS first: jittered, doubling, and as long as was asked for.

Invariants.
- `objects` is what the server held at one version or, between two versions, is told by its events:
  a list replaces all at once, when its last page is here, so an object whose DELETED was missed
  ends with the next list. There is one at least every `resync_s`.
- While nothing can be had, the last that was known stands.
- Versions are opaque: they are handed back, never compared.
- A failure is forgiven only by a watch that has told something, not by a list: a server whose
  watches all fail is asked ever more slowly.
Source: the Kubernetes API's documented behaviour (efficient detection of changes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

from gateway.vocabulary import Seconds

BACK_OFF_S: Final = 0.25
BACK_OFF_MAX_S: Final = 30.0
HOPELESS_S: Final = 30.0
"""How soon what is forbidden or unknown there is asked for again: somebody has to act first."""
IN_HASTE_S: Final = 1.0
"""What ends sooner is not begun again at once."""
WATCH_S: Final = 60.0
"""How long one watch is to last, ± half. A connection that has died unseen is found out so soon."""

T = TypeVar("T")


class Key(NamedTuple):
    """An object's place in its collection."""

    namespace: str
    name: str


class List(msgspec.Struct, frozen=True):
    """Ask for a page: the first, or the one that `continue_from` names."""

    continue_from: str | None


class Watch(msgspec.Struct, frozen=True):
    """Ask for what has happened since `version`, for so long."""

    version: str
    lasting_s: Seconds


class Wait(msgspec.Struct, frozen=True):
    """Do nothing for so long."""

    lasting_s: Seconds


Step = List | Watch | Wait


class Watching(Generic[T]):
    """One collection: objects of one kind in one namespace, as values of T."""

    def __init__(self, resync_s: Seconds, chance: Callable[[], float]) -> None:
        """`chance` gives numbers from 0 to 1."""
        self._resync_s = resync_s
        self._chance = chance
        self._objects: dict[Key, T] = {}
        self.objects: Mapping[Key, T] = MappingProxyType(self._objects)
        self._pages: dict[Key, T] = {}  # of the list under way
        self._continue_from: str | None = None
        self._version: str | None = None  # None: to be listed
        self._list_due: Seconds = 0.0
        self._listed_at: Seconds = -IN_HASTE_S
        self._watched_at: Seconds = 0.0
        self._not_before: Seconds = 0.0
        self._failures = 0  # in a row

    def __repr__(self) -> str:
        return f"<Watching {len(self._objects)} objects, {self._failures} failures in a row>"

    def step(self, now: Seconds) -> Step:
        """What is to be done now; asked again when that is over."""
        if now < self._not_before:
            return Wait(self._not_before - now)
        if self._version is None or now >= self._list_due:
            self._version = None
            return List(self._continue_from)
        self._watched_at = now
        lasting_s = WATCH_S * (0.5 + self._chance())
        return Watch(self._version, min(lasting_s, self._list_due - now))

    # What came of it

    def listed(
        self, page: Mapping[Key, T], version: str, continue_from: str | None, now: Seconds
    ) -> bool:
        """A page of the list. True if it was the last and the objects are not what they were."""
        self._pages.update(page)
        self._continue_from = continue_from
        if continue_from is not None:
            return False
        pages, self._pages = self._pages, {}
        is_news = pages != self._objects
        self._objects = pages
        self.objects = MappingProxyType(pages)
        self._version = version
        self._listed_at = now
        self._list_due = now + self._resync_s * (0.75 + 0.5 * self._chance())
        return is_news

    def put(self, key: Key, value: T, version: str) -> bool:
        """It is new, or changed. True if it is not what it was."""
        self.marked(version)
        if self._objects.get(key) == value:
            return False
        self._objects[key] = value
        return True

    def deleted(self, key: Key, version: str) -> bool:
        """It is gone. True if it was there."""
        self.marked(version)
        return self._objects.pop(key, None) is not None

    def marked(self, version: str) -> None:
        """All up to this version has been told: a bookmark."""
        self._version = version
        self._failures = 0

    def ended(self, now: Seconds) -> None:
        """The watch was closed in order."""
        if now - self._watched_at < IN_HASTE_S:
            self._back_off(now, 0.0)

    def dropped(self, now: Seconds) -> None:
        """The connection broke, or there was none, or what came made no sense: list anew."""
        self._begin_anew()
        self._back_off(now, 0.0)

    def refused(self, status: int, retry_after_s: Seconds, now: Seconds) -> None:
        """It was answered with an error, in place of an answer or in the stream."""
        if status == 410:
            self._begin_anew()
            if not self._failures and now - self._listed_at >= IN_HASTE_S:
                self._failures = 1
                return  # once, that is how a long silence ends, and no reason to wait
        hopeless_s = HOPELESS_S if status in (403, 404) else 0.0
        self._back_off(now, max(retry_after_s, hopeless_s))

    def _begin_anew(self) -> None:
        self._version = None
        self._continue_from = None
        self._pages = {}

    def _back_off(self, now: Seconds, at_least_s: Seconds) -> None:
        self._failures += 1
        doubled = BACK_OFF_S * 2.0 ** min(self._failures - 1, 16)
        self._not_before = now + max(
            min(doubled, BACK_OFF_MAX_S) * (0.5 + 0.5 * self._chance()),
            at_least_s * (1.0 + 0.1 * self._chance()),
        )
