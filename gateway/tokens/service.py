"""The room's door: a request in, the tokens its engine reads out, off the event loop.

One thread reads prompts, one after another, with the model's own files where they are at hand;
otherwise a replica is asked. Nothing waits for it: a prompt's tokens are told when they are known,
on the event loop, and a prompt for which there is no room is left out and counted.

Invariants: `then` is called exactly once for every prompt submitted, on the event loop, with None
where its tokens are not known; the prompts that wait hold at most `queue_bytes`, beyond one that
finds nobody waiting. A request, and with it its body, is let go of once it has been read.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.kv_cache import Tokenised
from gateway.request import GenerationRequest
from gateway.tokens.prompts import Unreadable
from gateway.tokens.remote import NotTold, Remote
from gateway.vocabulary import ModelCard, ModelName, ReplicaAddress, Seconds

if TYPE_CHECKING:
    from ssl import SSLContext

    from gateway.settings import TokensSettings
    from gateway.tokens.counter import TokenCounter
    from gateway.tokens.reader import Reader

SWITCH_S: Final[Seconds] = 0.0005

Then = Callable[[Tokenised | None], None]
Card = Callable[[ModelName], ModelCard | None]


def _nobody(tokenised: Tokenised) -> None:
    """Nobody wants to be told early."""


class Statistics(msgspec.Struct):
    """Counts since the start: `failed` are prompts that were read in vain, `seconds` the thread's
    time, or a replica's, for those that were `done`."""

    done: int = 0
    failed: int = 0
    dropped: int = 0
    seconds: Seconds = 0.0


class Tokens:
    """Reads prompts of any model the fleet serves. `card` is what is known of a model."""

    def __init__(self, settings: TokensSettings, card: Card, tls: SSLContext | None = None) -> None:
        self._settings = settings
        self._card = card
        self._thread = ThreadPoolExecutor(1, "tokens")
        self._remote = Remote(settings.ask_timeout_s, tls, self._thread)
        self._readers: dict[Path, Reader] = {}
        self._counters: dict[Path, TokenCounter] = {}
        self._damaged: dict[Path, str] = {}
        self._roots: dict[str, Path | None] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._waiting_bytes = 0
        self.statistics = Statistics()
        self.wrong: dict[ModelName, str] = {}
        """Why the latest prompt of a model could not be read, where it could not."""

    def submit(
        self,
        request: GenerationRequest,
        then: Then,
        replica: ReplicaAddress | None = None,
        early: Callable[[Tokenised], None] = _nobody,
    ) -> None:
        """Have a prompt read; `replica` may be asked where the model's files are not here: then
        `early` is told the tokens first, and `then` what is known of their places."""
        size = len(request.prompt)
        if self._waiting_bytes and self._waiting_bytes + size > self._settings.queue_bytes:
            self.statistics.dropped += 1
            asyncio.get_running_loop().call_soon(then, None)
            return
        self._waiting_bytes += size
        loop = asyncio.get_running_loop()
        told = partial(self._told, request.model, size, then)
        folder = self._folder(request.model)
        if folder is None and replica is not None:
            task = loop.create_task(self._ask(request, replica, told, early), name="tokenize")
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
            return
        job = self._thread.submit(self._read, request, folder, self._adapter(request.model))

        def done(job: Future[_Read]) -> None:
            if job.cancelled():
                return
            with suppress(RuntimeError):  # the loop has ended: nobody is left to be told
                loop.call_soon_threadsafe(told, job.result())

        job.add_done_callback(done)

    async def tokenised(
        self,
        request: GenerationRequest,
        within_s: Seconds,
        replica: ReplicaAddress | None = None,
    ) -> Tokenised | None:
        """A prompt's tokens, or None where they are not known in time."""
        answer: asyncio.Future[Tokenised | None] = asyncio.get_running_loop().create_future()

        def then(tokenised: Tokenised | None) -> None:
            if not answer.done():
                answer.set_result(tokenised)

        self.submit(request, then, replica)
        try:
            return await asyncio.wait_for(answer, within_s)
        except TimeoutError:
            return None

    def read_sync(self, request: GenerationRequest) -> Tokenised:
        """Waits for it. Raises Unreadable. For commands, which have no event loop to keep."""
        model = request.model
        job = self._thread.submit(self._read, request, self._folder(model), self._adapter(model))
        read = job.result()
        if read.tokenised is None:
            raise Unreadable(read.wrong)
        return read.tokenised

    def can_count(self, model: ModelName) -> bool:
        """Are the model's files at hand?"""
        folder = self._folder(model)
        return folder is not None and folder not in self._damaged

    async def count(
        self, model: ModelName, items: Sequence[str | Sequence[int] | tuple[str, str]]
    ) -> Sequence[int]:
        """Tokens of each item as a model that only reads takes it in; nothing where that cannot be
        said."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._count, self._folder(model), items)

    def close(self) -> None:
        """Nothing more is read. What waits is forgotten, and not told of."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        for task in self._asking:
            task.cancel()

    def _folder(self, model: ModelName) -> Path | None:
        """Where the model's files are: as the settings say, else where its replica has them."""
        card = self._card(model)
        base = self._card(ModelName(card.parent)) if card is not None and card.parent else card
        for name in (model, *([base.id] if base is not None else [])):
            if name in self._settings.folders:
                return Path(self._settings.folders[name])
        if self._settings.folder is not None:
            return Path(self._settings.folder)
        if base is None or base.root is None:
            return None
        if base.root not in self._roots:  # looked for once: the loop should not wait for disks
            root = Path(base.root)
            self._roots[base.root] = root if (root / "tokenizer.json").is_file() else None
        return self._roots[base.root]

    def _adapter(self, model: ModelName) -> str | None:
        card = self._card(model)
        return model if card is not None and card.parent else None

    def _told(self, model: ModelName, size: int, then: Then, read: _Read) -> None:
        self._waiting_bytes -= size
        if read.tokenised is None:
            self.statistics.failed += 1
            self.wrong[model] = read.wrong
        else:
            self.statistics.done += 1
            self.statistics.seconds += read.seconds
            self.wrong.pop(model, None)
        then(read.tokenised)

    # On the thread

    def _read(self, request: GenerationRequest, folder: Path | None, adapter: str | None) -> _Read:
        """One prompt's bug, or one damaged file, is one prompt that is not known."""
        if folder is None:
            return _Read(None, "the model's folder is not here: name it in tokens.folders", 0.0)
        if folder in self._damaged:
            return _Read(None, self._damaged[folder], 0.0)
        begun = time.perf_counter()
        reader = self._readers.get(folder)
        try:
            if reader is None:
                reader = self._readers[folder] = self._opened(folder)
            tokenised = reader.read(request, adapter)
        except Unreadable as error:
            wrong = str(error)
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        else:
            return _Read(tokenised, "", time.perf_counter() - begun)
        if reader is None:  # files are looked at once: to try again would cost a second each time
            self._damaged[folder] = wrong
        return _Read(None, wrong, 0.0)

    def _count(
        self, folder: Path | None, items: Sequence[str | Sequence[int] | tuple[str, str]]
    ) -> Sequence[int]:
        if not any(isinstance(item, str | tuple) for item in items):
            return [len(item) for item in items]
        if folder is None:
            return ()
        try:
            counter = self._counters.get(folder)
            if counter is None:
                from gateway.tokens.counter import TokenCounter  # heavy

                counter = self._counters[folder] = TokenCounter(folder)
            return counter.count(items)
        except Exception as error:
            self._damaged[folder] = f"{type(error).__name__}: {error}"
            return ()

    def _opened(self, folder: Path) -> Reader:
        # The library would otherwise take every core for itself, the event loop's too; and the
        # loop, where it waits for this thread to give way, should not wait for 5 ms.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
        from gateway.tokens.reader import Reader  # heavy, and not everybody needs it

        return Reader(folder, self._settings.cache_bytes)

    # From a replica

    async def _ask(
        self,
        request: GenerationRequest,
        replica: ReplicaAddress,
        told: Callable[[_Read], None],
        early: Callable[[Tokenised], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        url, adapter = f"{replica.url}/tokenize", self._adapter(request.model)
        try:
            tokenised = await self._remote.read(request, url, adapter, early)
        except (Unreadable, NotTold) as error:
            told(_Read(None, str(error), 0.0))
        else:
            told(_Read(tokenised, "", loop.time() - begun))


class _Read(msgspec.Struct, frozen=True):
    """How it went with one prompt."""

    tokenised: Tokenised | None
    wrong: str
    seconds: Seconds
