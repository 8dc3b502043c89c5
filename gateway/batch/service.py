"""The room's keeper: claims batches that are nobody's, works on them, and gives them back.

Owns the store, the files, the threads in which both are used, and the works.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import SQLAlchemyError

from gateway.batch.dispatch import Dispatcher
from gateway.batch.files import Files
from gateway.batch.metrics import BatchCollector
from gateway.batch.routes import batch_routes, uploads
from gateway.batch.store import Fenced, Store
from gateway.batch.work import Work
from gateway.loops import kept
from gateway.section import SettingsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Mapping

    from prometheus_client import CollectorRegistry
    from starlette.routing import Route

    from gateway.batch.dispatch import Fleet, Sender
    from gateway.batch.nouns import Claim, Status
    from gateway.clock import Clock
    from gateway.settings import BatchSettings

_log = logging.getLogger("headrace")

LOOK_EVERY_S: Final = 1.0  # for batches that other gateways have made or lost
THREADS: Final = 4
STOP_WITHIN_S: Final = 5.0


class Batches:
    """The Batch API of one gateway. A `work.Desk`."""

    def __init__(
        self,
        settings: BatchSettings,
        sender: Sender,
        fleet: Fleet,
        models: Callable[[], Container[str]],
        clocks: tuple[Clock, Callable[[], float]],
    ) -> None:
        """`clocks` are the monotonic one and the wall's. Raises SettingsError."""
        self.settings = settings
        self.store, self.files = _opened(settings)
        clock, self.wall = clocks
        self.models = models
        self.dispatcher = Dispatcher(settings, sender, fleet, clock)
        self.store_failures = 0
        self.census: Mapping[Status, int] = {}  # of the store, at the last look
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="batch")
        self._works: dict[asyncio.Task[None], Work] = {}
        self._news = asyncio.Event()
        self._is_stopping = False

    def __repr__(self) -> str:
        return f"<Batches {list(self._works.values())}, {self.dispatcher!r}>"

    def attach(self, registry: CollectorRegistry, bodies: dict[bytes, int]) -> list[Route]:
        """Show ourselves: to Prometheus, by routes, and in how large a body may be where."""
        registry.register(BatchCollector(self))
        bodies |= uploads(self.settings)
        return batch_routes(self)

    def blocking(self, work: Callable[..., Any], *args: Any, **named: Any) -> Awaitable[Any]:
        """Run what would block the loop in a thread of the room."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._threads, partial(work, *args, **named))

    def wake(self) -> None:
        """There is news: look for batches now."""
        self._news.set()

    async def run(self) -> None:
        """The background loop: claims batches while there is somebody to answer them."""
        look = asyncio.create_task(kept("batch lines", self.dispatcher.look), name="batch lines")
        try:
            while not self._is_stopping:
                self._news.clear()  # what is told from here on is looked at next
                try:
                    await self._claim_some()
                except SQLAlchemyError:
                    self.store_failures += 1
                    _log.warning("the store of batches cannot be reached", exc_info=True)
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._news.wait()
                except TimeoutError:
                    continue
        finally:
            look.cancel()
            for task in self._works:
                task.cancel()

    async def _claim_some(self) -> None:
        self.census = await self.blocking(self.store.census)
        while self.models() and len(self._works) < self.settings.running:
            claim: Claim | None = await self.blocking(
                self.store.claim, self.wall(), self.settings.lease_s
            )
            if claim is None or self._is_stopping:
                return
            work = Work(self, claim)
            task = asyncio.create_task(self._work(work), name=f"batch {claim.batch.id}")
            self._works[task] = work
            task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        del self._works[task]
        self.wake()

    async def _work(self, work: Work) -> None:
        """One batch; what goes wrong is taken up again when its lease has run out."""
        try:
            await work.run()
        except Fenced:
            _log.info("%s was taken over by another gateway", work.batch.id)
        except Exception as error:
            self.store_failures += isinstance(error, SQLAlchemyError)
            _log.exception("%s could not be worked on; it will be tried again", work.batch.id)

    async def stop(self) -> None:
        """Take no more; write down what is done, and let others have the rest."""
        self._is_stopping = True
        self.wake()
        for work in self._works.values():
            work.is_stopping = True
        if self._works:
            await asyncio.wait(tuple(self._works), timeout=STOP_WITHIN_S)

    def close(self) -> None:
        """The end: what still runs in threads ends by itself."""
        self._threads.shutdown(wait=False)
        self.store.close()


def _opened(settings: BatchSettings) -> tuple[Store, Files]:
    try:
        return Store(settings.store_url), Files(settings.files_url)
    except (SQLAlchemyError, ImportError, ValueError, OSError) as error:
        raise SettingsError(f"batch: the store or the files cannot be opened: {error}") from error
