"""Small calls wait for each other only while others of their kind are under way.

Asked: does this call go alone, now, or what is its answer? A call that finds nothing of its kind
under way goes on at once, as it is: an idle system adds no latency. What comes while one is under
way waits, and goes together when that one has ended, up to a number of tokens. So batches grow with
load, by themselves (Nagle's rule, RFC 896, with calls for bytes).

A list too long for one replica to be quick about is asked for in pieces, one for each replica.

Invariants. Every caller gets exactly one of: an answer of its own, or the word to go alone. One
caller's bad input fails nobody else: a merged call that is refused is asked again, each alone. An
answer whose tokens are not those we counted is not dealt out, and that model's calls are merged no
more. Nobody waits longer than what was under way when they came, and one batch before them.
A caller that leaves is out at once; a batch that nobody waits for any more is cancelled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

import msgspec

from gateway.clock import Clock
from gateway.merge.calls import Call, Item, in_pieces, merged_body, put_together, taken_apart
from gateway.settings import MergeSettings
from gateway.vocabulary import ModelName, Route, Seconds, Tokens

T = TypeVar("T")

TOO_MANY_REQUESTS: Final = 429


class Answer(Protocol):
    """What a call of our own came to."""

    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes: ...


Ask = Callable[[Route, bytes], Awaitable[Answer]]
"""Carries a call of our own to a replica."""


class Counting(Protocol):
    """Counts tokens as the engine does."""

    def can_count(self, model: ModelName) -> bool: ...

    async def count(self, model: ModelName, items: Sequence[Item]) -> Sequence[Tokens]:
        """Of each item, special tokens included; nothing where that cannot be said after all."""


class Place:
    """A caller's place: an answer, or leave to go alone for as long as the `with` lasts."""

    __slots__ = ("_line", "answer")

    def __init__(self, line: Line | None, answer: Own | None) -> None:
        self._line = line  # set if going alone counts as being under way
        self.answer = answer

    def __repr__(self) -> str:
        return f"<Place {'alone' if self.answer is None else 'answered'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.landed()


class Own(msgspec.Struct, frozen=True):
    """An answer that is one caller's own."""

    status: int
    body: bytes
    sent_at: Seconds
    """When the upstream call began."""
    shared_by: int
    """How many callers it was for."""


class _Waiter:
    """One caller in a line. Its future is given an answer, or None: go alone."""

    __slots__ = ("call", "future", "tokens")

    def __init__(self, call: Call, tokens: Tokens) -> None:
        self.call = call
        self.tokens = tokens
        self.future: asyncio.Future[Own | None] = asyncio.get_running_loop().create_future()


class Line:
    """Calls of one kind: how many are under way, and who waits."""

    __slots__ = ("_merger", "flying", "key", "route", "waiting")

    def __init__(self, merger: Merger, key: bytes, route: Route) -> None:
        self._merger = merger
        self.key = key
        self.route = route
        self.flying = 0
        self.waiting: deque[_Waiter] = deque()

    def __repr__(self) -> str:
        return f"<Line {self.route.path}: {self.flying} under way, {len(self.waiting)} waiting>"

    def landed(self) -> None:
        """One that was under way has ended."""
        self.flying -= 1
        self._merger.next_of(self)


class Merger:
    """The lines, by what calls must have in common."""

    __slots__ = (
        "_ask", "_clock", "_counting", "_lines", "_replicas", "_settings", "_tasks", "_untrusted",
        "merged_calls", "upstream_calls",
    )  # fmt: skip

    def __init__(
        self,
        settings: MergeSettings,
        ask: Ask,
        counting: Counting,
        replicas: Callable[[ModelName], int],
        clock: Clock,
    ) -> None:
        """`replicas`: how many take work for a model, at least one; so many calls of a kind are
        under way before others wait."""
        self._settings = settings
        self._ask = ask
        self._counting = counting
        self._replicas = replicas
        self._clock = clock
        self._lines: dict[bytes, Line] = {}
        self._untrusted: set[ModelName] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.merged_calls = 0  # that were answered out of a shared one
        self.upstream_calls = 0  # that were shared

    def __repr__(self) -> str:
        return f"<Merger {list(self._lines.values())}>"

    @property
    def waiting(self) -> int:
        """Callers that wait."""
        return sum(len(line.waiting) for line in self._lines.values())

    async def place(self, route: Route, call: Call, tokens: Tokens) -> Place:
        """Enter the result by `with`. `tokens` is the estimate for the whole call."""
        if len(call.items) > self._settings.max_items:
            return Place(None, await self._in_pieces(route, call))
        if call.model in self._untrusted or not self._can_count(call):
            return Place(None, None)
        line = self._lines.get(call.key)
        if line is None:
            line = self._lines[call.key] = Line(self, call.key, route)
        if line.flying < self._replicas(call.model) and not line.waiting:
            line.flying += 1
            return Place(line, None)
        waiter = _Waiter(call, tokens)
        line.waiting.append(waiter)
        try:
            answer = await waiter.future
        except asyncio.CancelledError:
            self._left(line, waiter)
            raise
        return Place(line if answer is None else None, answer)

    def _can_count(self, call: Call) -> bool:
        """Tokens count themselves."""
        is_text = isinstance(call.items[0], str | tuple)
        return not is_text or self._counting.can_count(call.model)

    def _left(self, line: Line, waiter: _Waiter) -> None:
        """A caller has gone, at whatever stage."""
        if waiter in line.waiting:
            line.waiting.remove(waiter)
            self._forget_if_idle(line)
        elif not waiter.future.cancelled() and waiter.future.result() is None:
            line.landed()  # it had leave to go alone, and will not

    def next_of(self, line: Line) -> None:
        """Send on what waits, as far as there is room."""
        while line.waiting and line.flying < self._replicas(line.waiting[0].call.model):
            batch = self._batch(line)
            if not batch:
                break  # all who waited have just left
            line.flying += 1
            if len(batch) == 1:
                batch[0].future.set_result(None)
                continue
            task = asyncio.get_running_loop().create_task(self._fly(line, batch), name="merged")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            for waiter in batch:
                waiter.future.add_done_callback(_Abandon(task, batch))
        self._forget_if_idle(line)

    def _forget_if_idle(self, line: Line) -> None:
        if not line.flying and not line.waiting:
            self._lines.pop(line.key, None)

    def _batch(self, line: Line) -> list[_Waiter]:
        """The first who wait and have not left, as many as go together."""
        batch: list[_Waiter] = []
        tokens = items = 0
        while line.waiting:
            waiter = line.waiting[0]
            tokens += waiter.tokens
            items += len(waiter.call.items)
            if batch and (tokens > self._settings.max_tokens or items > self._settings.max_items):
                break
            line.waiting.popleft()
            if not waiter.future.done():
                batch.append(waiter)
        return batch

    async def _fly(self, line: Line, batch: list[_Waiter]) -> None:
        """One upstream call for several callers."""
        try:
            answers = await self._answers(line.route, [waiter.call for waiter in batch])
            for waiter, answer in zip(batch, answers, strict=True):
                if not waiter.future.done():
                    line.flying += answer is None  # each that goes alone is under way by itself
                    waiter.future.set_result(answer)
        finally:
            for waiter in batch:  # whatever happened here, nobody is left waiting
                if not waiter.future.done():
                    line.flying += 1
                    waiter.future.set_result(None)
            line.landed()

    async def _answers(self, route: Route, calls: Sequence[Call]) -> Sequence[Own | None]:
        model = calls[0].model
        items = [item for call in calls for item in call.items]
        sent_at = self._clock()
        async with asyncio.TaskGroup() as tasks:
            counting = tasks.create_task(_awaited(self._counting.count(model, items)))
            answer = await self._ask(route, merged_body(calls))
        self.upstream_calls += 1
        nobody: Sequence[Own | None] = [None] * len(calls)
        if 400 <= answer.status < 500 and answer.status != TOO_MANY_REQUESTS:
            return nobody  # somebody's input is bad; each alone finds out whose
        self.merged_calls += len(calls)
        if answer.status != 200:
            return [Own(answer.status, answer.body, sent_at, len(calls))] * len(calls)
        try:
            bodies = taken_apart(calls, answer.body, counting.result())
        except ValueError:
            self._untrusted.add(model)
            return nobody
        return [Own(200, body, sent_at, len(calls)) for body in bodies]

    async def _in_pieces(self, route: Route, call: Call) -> Own | None:
        """A long list, asked for by all replicas at once. None: it goes alone after all."""
        wanted = -(-len(call.items) // self._settings.max_items)
        pieces = in_pieces(call, min(wanted, self._replicas(call.model)))
        if len(pieces) < 2:
            return None
        sent_at = self._clock()
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(_awaited(self._ask(route, merged_body([piece]))))
                for piece in pieces
            ]
        answers = [task.result() for task in asked]
        if any(answer.status != 200 for answer in answers):
            return None  # what is wrong with it is told of the whole, not of a piece
        try:
            body = put_together(pieces, [answer.body for answer in answers])
        except ValueError:
            return None
        return Own(200, body, sent_at, 1)


class _Abandon:
    """Cancels a batch when the last who waited for it has gone."""

    __slots__ = ("_batch", "_task")

    def __init__(self, task: asyncio.Task[None], batch: Sequence[_Waiter]) -> None:
        self._task = task
        self._batch = batch

    def __call__(self, _: asyncio.Future[Own | None]) -> None:
        if all(waiter.future.cancelled() for waiter in self._batch):
            self._task.cancel()


async def _awaited(what: Awaitable[T]) -> T:
    return await what
