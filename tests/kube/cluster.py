"""What a cluster holds: objects of any kind, their versions, and the history that watches follow.

Invariants. Every change has a version of its own, greater than all before. A watch from a version
tells every later change of what it selects, once and in order, or says 410: what has been compacted
cannot be told. What begins to match a watch's selector is ADDED for it, what ceases to is DELETED.
"""

from __future__ import annotations

import asyncio
import copy
import datetime
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.kube.merging import merged

Object = dict[str, Any]
Matches = Callable[[Object], bool]


class Place(NamedTuple):
    """Of a collection, or of what a watch looks at: namespace None is all of them."""

    group: str
    plural: str
    namespace: str | None = None


class Key(NamedTuple):
    """Of an object; the namespace of one that is in none is empty."""

    group: str
    plural: str
    namespace: str
    name: str


class Trouble(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s

    def document(self) -> Object:
        """The Status object that says so."""
        details = {"retryAfterSeconds": self.retry_after_s} if self.retry_after_s else {}
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": str(self), "reason": self.reason, "details": details, "code": self.status,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """One step of the history: None before it was there, None after it is gone."""

    version: int
    key: Key
    before: Object | None
    after: Object | None


@dataclass(eq=False)
class Follower:
    """A watch that is open: what it has still to tell."""

    place: Place
    matches: Matches
    pending: deque[Object] = field(default_factory=deque)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    is_cut: bool = False
    is_over: bool = False

    def hears(self, change: Change) -> None:
        """Take note of a change, if it is of what is watched."""
        key, place = change.key, self.place
        if key[:2] != place[:2] or place.namespace not in (None, key.namespace):
            return
        was = change.before is not None and self.matches(change.before)
        now = change.after is not None and self.matches(change.after)
        if now:
            self._tell("MODIFIED" if was else "ADDED", change.after)
        elif was:
            self._tell("DELETED", change.after or change.before, change.version)

    def _tell(self, kind: str, found: Object | None, version: int | None = None) -> None:
        told = copy.deepcopy(found) or {}
        if version is not None:
            told["metadata"]["resourceVersion"] = str(version)
        self.pending.append({"type": kind, "object": told})
        self.woken.set()

    def cut(self) -> None:
        """Break its connection, whatever it had still to tell."""
        self.is_cut = True
        self.woken.set()


def now_text() -> str:
    """As times are written in objects."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Cluster:
    """The objects, and the trouble that is to be made with them."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.version = 100
        self.followers: list[Follower] = []
        self.lose_next = 0
        """So many changes to come are told to no watch: they are found by listing alone."""
        self.departs: set[str] = set()
        """Plurals of kinds whose objects are only marked when they are deleted: somebody else takes
        them away once what they stand for has ended."""
        self._history: list[Change] = []
        self._compacted = self.version
        self._pages: dict[str, tuple[int, list[Object]]] = {}  # continue token -> what is left

    def __repr__(self) -> str:
        return f"<Cluster of {len(self.objects)} objects at {self.version}>"

    # Reading

    def get(self, key: Key) -> Object:
        """Raises Trouble, 404."""
        found = self.objects.get(key)
        if found is None:
            raise Trouble(404, "NotFound", f'{key.plural} "{key.name}" not found')
        return found

    def select(self, place: Place, matches: Matches = lambda _: True) -> Iterator[Object]:
        """In the order of namespace and name."""
        for key, found in sorted(self.objects.items()):
            is_there = key[:2] == place[:2] and place.namespace in (None, key.namespace)
            if is_there and matches(found):
                yield found

    def page(
        self, place: Place, matches: Matches, limit: int, token: str | None
    ) -> tuple[int, list[Object], str | None]:
        """A page as of one version: that, its objects, and the token of the next.

        Raises Trouble, 410, for a token that compaction has taken.
        """
        if token is None:
            version, left = self.version, copy.deepcopy(list(self.select(place, matches)))
        elif token in self._pages:
            version, left = self._pages.pop(token)
        else:
            raise Trouble(410, "Expired", "the provided continue parameter is too old")
        if not limit or len(left) <= limit:
            return version, left, None
        following = uuid.uuid4().hex
        self._pages[following] = (version, left[limit:])
        return version, left[:limit], following

    def follow(self, place: Place, matches: Matches, since: int | None) -> Follower:
        """A watch that is told what has changed since. None: begins with what is there.

        Raises Trouble, 410. To be given back with `unfollow`.
        """
        follower = Follower(place, matches)
        if since is None:
            for found in self.select(place, matches):
                follower.pending.append({"type": "ADDED", "object": copy.deepcopy(found)})
        elif since < self._compacted:
            raise Trouble(410, "Expired", f"too old resource version: {since} ({self._compacted})")
        for change in self._history if since is not None else ():
            if change.version > (since or 0):
                follower.hears(change)
        self.followers.append(follower)
        return follower

    def unfollow(self, follower: Follower) -> None:
        """It is over."""
        self.followers.remove(follower)

    # Changing

    def create(self, key: Key, new: Object) -> Object:
        """Raises Trouble, 409."""
        if key in self.objects:
            raise Trouble(409, "AlreadyExists", f'{key.plural} "{key.name}" already exists')
        meta = new.setdefault("metadata", {})
        meta.update(
            name=key.name, uid=str(uuid.uuid4()), creationTimestamp=now_text(), generation=1
        )
        if key.namespace:
            meta["namespace"] = key.namespace
        return self._write(key, new)

    def replace(self, key: Key, new: Object) -> Object:
        """Raises Trouble: 404, or 409 where another version than the present is meant."""
        was = self.get(key)
        meta, old = new.setdefault("metadata", {}), was["metadata"]
        meant = meta.get("resourceVersion")
        if meant and meant != old["resourceVersion"]:
            raise Trouble(409, "Conflict", "the object has been modified; apply to the latest")
        for name in ("name", "namespace", "uid", "creationTimestamp"):
            if name in old:
                meta[name] = old[name]
        meta["generation"] = old["generation"] + (was.get("spec") != new.get("spec"))
        if {**new, "metadata": {**meta, "resourceVersion": ""}} == {
            **was,
            "metadata": {**old, "resourceVersion": ""},
        }:
            return was  # nothing was changed, and there is nothing to tell
        return self._write(key, new)

    def merge(self, key: Key, patch: Object) -> Object:
        """A JSON merge patch (RFC 7386). Raises Trouble."""
        return self.replace(key, merged(copy.deepcopy(self.get(key)), patch))

    def delete(self, key: Key) -> Object:
        """Gone, or marked if its kind departs. Raises Trouble, 404."""
        was = self.get(key)
        if key.plural not in self.departs:
            return self.remove(key)
        if "deletionTimestamp" in was["metadata"]:
            return was
        marked = copy.deepcopy(was)
        marked["metadata"]["deletionTimestamp"] = now_text()
        return self.replace(key, marked)

    def remove(self, key: Key) -> Object:
        """Gone at once. Raises Trouble, 404."""
        was = self.get(key)
        self.version += 1
        del self.objects[key]
        self._tell(Change(self.version, key, was, None))
        return was

    def _write(self, key: Key, new: Object) -> Object:
        self.version += 1
        before = self.objects.get(key)
        new["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = new
        self._tell(Change(self.version, key, before, copy.deepcopy(new)))
        return new

    def _tell(self, change: Change) -> None:
        if self.lose_next:
            self.lose_next -= 1
            return
        self._history.append(change)
        for follower in self.followers:
            follower.hears(change)

    # Trouble

    def compact(self) -> None:
        """Forget the history, and lists under way: who goes on from before now is told 410."""
        self._history.clear()
        self._compacted = self.version
        self._pages.clear()

    def end_watches(self) -> None:
        """End every watch in order, as a server does when its time is up."""
        for follower in self.followers:
            follower.is_over = True
            follower.woken.set()

    def drop_watches(self) -> None:
        """Break the connection of every watch, without an end."""
        for follower in self.followers:
            follower.cut()
