"""Cancellation is an input: it comes at every await of a request's life, and nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest

from gateway.vocabulary import Health, Outcome
from tests.builders import a_chat, a_post
from tests.house import RunningHouse, run, running_house, until
from tests.misbehaving import EVENT, RARELY, script
from tests.scripted import STREAM_HEAD, Scripted, a_reply, chunked

Settings = dict[str, dict[str, Any]]


class CancelledAt:
    """Runs a coroutine, and cancels the task it runs in at its nth await."""

    def __init__(self, work: Coroutine[Any, Any, Any], await_number: int) -> None:
        self._work = work
        self._await_number = await_number
        self.awaits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        """Pass on what the work waits for."""
        waiting = self._work.__await__()
        send: Any = waiting.send
        value: Any = None
        while True:
            try:
                future = send(value)
            except StopIteration as end:
                return end.value
            self.awaits += 1
            if self.awaits == self._await_number:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                value = yield future
                send = waiting.send
            except BaseException as error:
                send, value = waiting.throw, error


LIVES: Final = ("Door.serve", "serve_Door_gen")
"""What a life is called, as Python and compiled."""


def _name(work: object) -> str:
    return getattr(work, "__qualname__", type(work).__name__)


class Injector:
    """A task factory that makes the next request's life a cancelled one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.await_number = 0
        self.lives: list[CancelledAt] = []
        loop.set_task_factory(self._make)

    def _make(self, loop: asyncio.AbstractEventLoop, work: Any, **named: Any) -> asyncio.Task[Any]:
        if self.await_number and _name(work) in LIVES:
            life = CancelledAt(work, self.await_number)
            self.lives.append(life)

            async def cancelled() -> Any:
                return await life

            work = cancelled()
        return asyncio.Task(work, loop=loop, **named)


async def cancelled_everywhere(
    running: RunningHouse, post: bytes, replicas: tuple[Scripted, ...]
) -> int:
    """Cancel at the first await, then at the second, until a request passes untouched."""
    injector = Injector(asyncio.get_running_loop())
    for await_number in range(1, 60):
        injector.await_number = await_number
        running.house.relay.close()  # so that every life opens its own connections
        async with running.wire() as wire:
            await wire.send(post)
            answer = await wire.rest()
        injector.await_number = 0
        life = injector.lives[-1]
        await running.until_quiet()
        await until(lambda: sum(replica.open for replica in replicas) <= idle(running))
        if life.awaits < await_number:
            assert answer.startswith(b"HTTP/1.1 200 ")
            return await_number - 1
        if not answer.startswith(b"HTTP/1.1 200 "):
            assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"cut_short" in answer
    raise AssertionError("a life with no end of awaits")


def idle(running: RunningHouse) -> int:
    """Connections that wait for their next request."""
    return len(running.house.relay._pool)


CASES = {
    "unary": ((script(0.01, a_reply()),), a_post(headers=[("connection", "close")])),
    "stream": (
        (script(0.01, STREAM_HEAD, chunked(EVENT, end=False), 0.02, b"0\r\n\r\n"),),
        a_post(a_chat(stream=True), headers=[("connection", "close")]),
    ),
    "retried": (
        (script(0.01, a_reply(status=503)), script(0.01, a_reply())),
        a_post(headers=[("connection", "close")]),
    ),
}


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("case", CASES)
def test_wherever_a_life_is_cancelled_it_has_one_outcome_and_gives_everything_back(
    case: str, loop: str
) -> None:
    answers, post = CASES[case]

    async def law() -> None:
        async with AsyncExitStack() as stack:
            replicas = tuple(Scripted(answer) for answer in answers)
            for replica in replicas:
                await stack.enter_async_context(replica.running())
            settings: Settings = {**RARELY, "choose": {"policy": "round-robin"}}
            urls = [replica.url for replica in replicas]
            running = await stack.enter_async_context(running_house(settings, urls))
            await until(lambda: all(one.takes_work for one in running.replicas))
            awaits = await cancelled_everywhere(running, post, replicas)
            assert awaits >= 2, "a connection, and its answer"
            assert running.outcomes[Outcome.FAILED] == awaits
            assert running.reasons == {"cut_short": awaits}
            assert running.house.admission.open_requests == 0

    run(law(), loop=loop)


def test_a_life_that_is_cut_short_is_no_fault_of_its_replica() -> None:
    async def law() -> None:
        async with (
            Scripted(script("hang")).running() as replica,
            running_house(RARELY, [replica.url]) as running,
        ):
            await until(lambda: running.replicas[0].takes_work)
            injector = Injector(asyncio.get_running_loop())
            injector.await_number = 2
            assert (await running.ask(a_post())).code == "cut_short"
            assert running.replicas[0].health is Health.HEALTHY
            await running.until_quiet()

    run(law())
