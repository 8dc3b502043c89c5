"""Callers that share calls: random arrivals, answers, refusals and departures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.merge.calls import Call, Item, read_call
from gateway.merge.merger import Merger, Own
from gateway.settings import MergeSettings
from gateway.vocabulary import ROUTES, ModelName, Route, Tokens

ROUTE: Route = next(each for each in ROUTES if each.path == "/v1/embeddings")
BAD = "bad"
LIMIT_S = 10.0


class Reply(msgspec.Struct, frozen=True):
    status: int
    body: bytes


def tokens_of(item: object) -> int:
    return len(str(item)) + 2


def answered(body: bytes) -> Reply:
    """What an engine says to a call, merged or not: a bad input spoils the whole of it."""
    texts = json.loads(body)["input"]
    texts = [texts] if isinstance(texts, str) else texts
    if BAD in texts:
        return Reply(400, b'{"error": "bad input"}')
    tokens = sum(map(tokens_of, texts))
    data = [{"index": index, "embedding": [each]} for index, each in enumerate(texts)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Reply(200, json.dumps({"data": data, "usage": usage}).encode())


class Upstream:
    """Answers after a while, and counts tokens; may be wrong about either."""

    def __init__(self, rng: Random, *, fails: float = 0.0, miscounts: bool = False) -> None:
        self.rng = rng
        self.fails = fails
        self.miscounts = miscounts
        self.flying = 0
        self.most_flying = 0
        self.bodies: list[bytes] = []

    async def __call__(self, route: Route, body: bytes) -> Reply:
        assert route is ROUTE
        self.flying += 1
        self.most_flying = max(self.most_flying, self.flying)
        self.bodies.append(body)
        try:
            for _ in range(self.rng.randrange(6)):
                await asyncio.sleep(0)
            if self.rng.random() < self.fails:
                return Reply(503, b'{"error": "no replica"}')
            return answered(body)
        finally:
            self.flying -= 1

    def can_count(self, model: ModelName) -> bool:
        return model == "m"

    async def count(self, model: ModelName, items: Sequence[Item]) -> Sequence[Tokens]:
        await asyncio.sleep(0)
        return [tokens_of(item) + self.miscounts for item in items]


def call_of(texts: list[str] | str, model: str = "m") -> Call:
    call = read_call(ROUTE.path, json.dumps({"model": model, "input": texts}).encode())
    assert call is not None
    return call


async def caller(merger: Merger, upstream: Upstream, texts: list[str], model: str = "m") -> Reply:
    """As the corridor does it: an answer of its own, or alone."""
    call = call_of(texts, model)
    with await merger.place(ROUTE, call, sum(map(tokens_of, texts))) as place:
        if place.answer is None:
            body = json.dumps({"model": model, "input": texts}).encode()
            return await upstream(ROUTE, body)
        return Reply(place.answer.status, place.answer.body)


def is_right(reply: Reply, texts: list[str], *, may_fail: bool) -> bool:
    alone = answered(json.dumps({"input": texts}).encode())
    if reply.status == 503:
        return may_fail
    return reply.status == alone.status and json.loads(reply.body) == json.loads(alone.body)


def idle(merger: Merger) -> bool:
    return not merger.waiting and not merger._lines


texts_of_one = st.lists(st.sampled_from(["a", "bb", "ccc", BAD]), min_size=1, max_size=4)


@settings(deadline=None)
@given(
    everybody=st.lists(texts_of_one, min_size=1, max_size=24),
    seed=st.integers(0, 2**32),
    replicas=st.integers(1, 3),
    fails=st.sampled_from([0.0, 0.3]),
    miscounts=st.booleans(),
)
def test_everybody_gets_their_own_whatever_the_others_send_and_whoever_leaves(
    everybody: list[list[str]], seed: int, replicas: int, fails: float, miscounts: bool
) -> None:
    rng = Random(seed)

    async def main() -> None:
        upstream = Upstream(rng, fails=fails, miscounts=miscounts)
        merger = Merger(
            MergeSettings(max_tokens=20, max_items=6), upstream, upstream, lambda _: replicas, float
        )
        tasks: list[tuple[list[str], asyncio.Task[Reply]]] = []
        for texts in everybody:
            tasks.append((texts, asyncio.create_task(caller(merger, upstream, texts))))
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            if rng.random() < 0.25:
                rng.choice(tasks)[1].cancel()
        replies = await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
        for (texts, _), reply in zip(tasks, replies, strict=True):
            if isinstance(reply, asyncio.CancelledError):
                continue
            assert isinstance(reply, Reply), reply
            assert is_right(reply, texts, may_fail=fails > 0.0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert idle(merger)
        assert upstream.flying == 0

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def run(everybody: list[list[str]], **settings_of: Any) -> tuple[Merger, Upstream, list[Reply]]:
    """All at once, none leaving."""

    async def main() -> tuple[Merger, Upstream, list[Reply]]:
        upstream = Upstream(Random(1))
        merger = Merger(MergeSettings(**settings_of), upstream, upstream, lambda _: 1, float)
        replies = await asyncio.gather(*(caller(merger, upstream, each) for each in everybody))
        return merger, upstream, replies

    return asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def test_the_first_goes_at_once_and_the_rest_go_together() -> None:
    merger, upstream, replies = run([["a"]] * 9)
    assert [json.loads(body)["input"] for body in upstream.bodies] == [["a"], ["a"] * 8]
    assert all(is_right(reply, ["a"], may_fail=False) for reply in replies)
    assert (merger.upstream_calls, merger.merged_calls) == (1, 8)
    assert upstream.most_flying == 1


def test_a_batch_has_no_more_tokens_than_it_may() -> None:
    _, upstream, _ = run([["a"]] * 9, max_tokens=3 * tokens_of("a"))
    assert [len(json.loads(body)["input"]) for body in upstream.bodies] == [1, 3, 3, 2]


def test_a_bad_input_fails_its_own_caller_alone() -> None:
    _, _, replies = run([["a"], ["b"], [BAD], ["c"]])
    assert [reply.status for reply in replies] == [200, 200, 400, 200]


def test_an_uncountable_model_is_never_merged() -> None:
    async def main() -> None:
        upstream = Upstream(Random(1))
        merger = Merger(MergeSettings(), upstream, upstream, lambda _: 1, float)
        await asyncio.gather(*(caller(merger, upstream, ["a"], "n") for _ in range(4)))
        assert len(upstream.bodies) == 4

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def test_what_is_counted_otherwise_is_merged_no_more() -> None:
    async def main() -> None:
        upstream = Upstream(Random(1), miscounts=True)
        merger = Merger(MergeSettings(), upstream, upstream, lambda _: 1, float)
        for _ in range(2):
            replies = await asyncio.gather(*(caller(merger, upstream, ["a"]) for _ in range(4)))
            assert all(is_right(reply, ["a"], may_fail=False) for reply in replies)
        assert merger.upstream_calls == 1

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def test_a_long_list_is_asked_of_all_replicas_at_once() -> None:
    async def main() -> None:
        upstream = Upstream(Random(1))
        merger = Merger(MergeSettings(max_items=4), upstream, upstream, lambda _: 3, float)
        texts = [f"text {number}" for number in range(32)]
        reply = await caller(merger, upstream, texts)
        assert is_right(reply, texts, may_fail=False)
        assert len(upstream.bodies) == upstream.most_flying == 3

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def test_a_batch_that_nobody_waits_for_is_stopped() -> None:
    async def main() -> None:
        never = asyncio.Event()

        async def stuck(route: Route, body: bytes) -> Reply:
            await never.wait()
            raise AssertionError

        upstream = Upstream(Random(1))
        merger = Merger(MergeSettings(), stuck, upstream, lambda _: 1, float)
        with await merger.place(ROUTE, call_of("a"), 3) as place:
            assert place.answer is None
            waiters = [asyncio.create_task(merger.place(ROUTE, call_of("a"), 3)) for _ in range(3)]
            await asyncio.sleep(0)
            assert merger.waiting == 3
        await asyncio.sleep(0.01)
        assert not merger.waiting
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert idle(merger)

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_upstream_is_everybodys(status: int) -> None:
    async def main() -> None:
        async def refuse(route: Route, body: bytes) -> Reply:
            await asyncio.sleep(0)
            return Reply(status, b"{}")

        merger = Merger(MergeSettings(), refuse, Upstream(Random(1)), lambda _: 1, float)
        with await merger.place(ROUTE, call_of("a"), 3):
            waiters = [asyncio.create_task(merger.place(ROUTE, call_of("a"), 3)) for _ in range(3)]
            await asyncio.sleep(0)
        places = await asyncio.gather(*waiters)
        assert {place.answer for place in places} == {Own(status, b"{}", 0.0, 3)}

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))
