"""One snapshot a second to all who watch; nothing while nobody does.

A watcher has room for one frame: who reads slowly misses some, and holds nobody up. Invariants.
There are never more than `most` watchers; one that leaves, however it leaves, is forgotten. Each
frame is encoded once for those who are shown tenants' names and once for the others, where there
are any of either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from gateway.console.snapshot import Snapshot, snapshot, without_names
from gateway.errors import TooManyWatchers

if TYPE_CHECKING:
    from gateway.console.recent import Recent
    from gateway.console.snapshot import Owners
    from gateway.settings import ConsoleSettings

log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class Watcher:
    """One open page, for as long as its `with` lasts. Entering raises TooManyWatchers."""

    __slots__ = ("_broadcast", "_frame", "_news", "sees_names")

    def __init__(self, broadcast: Broadcast, *, sees_names: bool) -> None:
        self._broadcast = broadcast
        self._frame: bytes | None = None
        self._news = asyncio.Event()
        self.sees_names = sees_names

    def __repr__(self) -> str:
        return f"<Watcher {'of all' if self.sees_names else 'without names'}>"

    def __enter__(self) -> Self:
        self._broadcast.join(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._broadcast.leave(self)

    def show(self, frame: bytes | None) -> None:
        """The newest frame; None: there will be no more."""
        self._frame = frame
        self._news.set()

    async def frames(self) -> AsyncIterator[bytes]:
        """Server-sent events: the newest whenever there is a new one."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._frame is None:
                return
            yield self._frame


class Broadcast:
    """Owns the watchers."""

    __slots__ = ("_is_over", "_number", "_owners", "_recent", "_settings", "_wanted", "_watchers")

    def __init__(self, settings: ConsoleSettings, owners: Owners, recent: Recent) -> None:
        self._settings = settings
        self._owners = owners
        self._recent = recent
        self._watchers: set[Watcher] = set()
        self._wanted = asyncio.Event()
        self._number = 0
        self._is_over = False

    def __repr__(self) -> str:
        return f"<Broadcast to {len(self._watchers)}, {self._number} frames so far>"

    def __len__(self) -> int:
        """How many watch."""
        return len(self._watchers)

    def join(self, watcher: Watcher) -> None:
        """It is shown what comes. Raises TooManyWatchers, where we are about to stop too."""
        if self._is_over or len(self._watchers) >= self._settings.max_watchers:
            raise TooManyWatchers(retry_after_s=10.0)
        self._watchers.add(watcher)
        self._recent.is_wanted = True
        self._wanted.set()

    def leave(self, watcher: Watcher) -> None:
        """It is gone."""
        self._watchers.discard(watcher)
        if not self._watchers:
            self._wanted.clear()
            self._recent.clear()

    def close(self) -> None:
        """Nobody is shown anything any more."""
        self._is_over = True
        for watcher in self._watchers:
            watcher.show(None)

    async def run(self) -> None:
        """Tell whoever watches, until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                if not self._is_over:
                    self.tell()
            except Exception:
                log.exception("the console has a bug")
            await asyncio.sleep(self._settings.every_s)

    def tell(self) -> None:
        """One frame to each."""
        self._number += 1
        whole = snapshot(self._owners, self._recent, self._number)
        frames: dict[bool, bytes] = {}
        for watcher in self._watchers:
            frame = frames.get(watcher.sees_names)
            if frame is None:
                shown = whole if watcher.sees_names else without_names(whole)
                frame = frames[watcher.sees_names] = _event(shown)
            watcher.show(frame)


def _event(shown: Snapshot) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (shown.number, _encode(shown))


Viewer = Callable[[dict[bytes, bytes]], bool]
"""Is whoever sends a head with these fields shown tenants' names? Raises InvalidKey where it is to
be shown nothing."""
