"""The prober against replicas on loopback that behave as a test tells them to."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.clock import monotonic
from gateway.fetch import MAX_BODY_BYTES, FetchFailed, fetch
from gateway.fleet.health import Sign
from gateway.fleet.probe import Prober
from gateway.fleet.roster import Roster
from gateway.settings import FleetSettings
from gateway.vocabulary import Health, ModelName, ReplicaAddress

PAUSE = b"<pause>"  # in an answer: here it waits a moment, so that it arrives in pieces
MODELS = b'{"object": "list", "data": [{"id": "m"}, {"id": "lora", "parent": "m"}]}'
QUICK = FleetSettings(probe_every_s=0.03, probe_timeout_s=0.3, cool_down_s=0.1, failures_to_eject=2)


def ok(body: bytes = b"", status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


class Stub:
    """A replica that answers each path with the bytes set for it; None hangs until the end."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | None] = {"/health": ok(), "/v1/models": ok(MODELS)}
        self.asked: Counter[str] = Counter()
        self.open = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Stub]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode()
            self.asked[path] += 1
            answer = self.answers[path]
            if answer is None:
                await reader.read()
            else:
                for piece in answer.split(PAUSE):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.02 if PAUSE in answer else 0)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side has had enough
        finally:
            self.open -= 1
            writer.close()


async def until(is_true: Callable[[], bool], *, within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not is_true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def probing(
    *urls: str, settings: FleetSettings = QUICK, models: tuple[ModelName, ...] = ()
) -> AsyncIterator[Roster]:
    roster = Roster(settings)
    roster.apply([ReplicaAddress(url, models) for url in urls], "static")
    task = asyncio.create_task(Prober(roster, settings, monotonic, random.Random(1)).run())
    await asyncio.sleep(0)
    try:
        yield roster
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()
        assert not [each for each in asyncio.all_tasks() if each.get_name().startswith("probe ")]


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(bounded())


def health(roster: Roster) -> list[Health]:
    return [replica.health for replica in roster.replicas]


def test_a_fresh_replica_is_ready_at_once_and_says_what_it_serves() -> None:
    async def law() -> None:
        async with Stub().running() as stub, probing(stub.url) as roster:
            await until(lambda: roster.is_ready, within_s=0.5)
            assert sorted(roster.known_models()) == ["lora", "m"]
            assert roster.candidates(ModelName("lora")) == roster.replicas

    run(law())


def test_a_replica_that_comes_up_late_is_found_soon_even_if_probes_are_rare() -> None:
    async def law() -> None:
        stub = Stub()
        async with stub.running():
            pass  # now its port is known, and nobody listens there
        async with probing(stub.url, settings=FleetSettings(probe_every_s=60)) as roster:
            await asyncio.sleep(0.3)
            assert health(roster) == [Health.JOINING]
            async with stub.running():
                await until(lambda: roster.is_ready, within_s=1.0)

    run(law())


def test_adapters_that_come_and_go_are_seen() -> None:
    async def law() -> None:
        async with Stub().running() as stub, probing(stub.url) as roster:
            await until(lambda: len(roster.known_models()) == 2)
            stub.answers["/v1/models"] = ok(b'{"data": [{"id": "m"}, {"id": "a"}, {"id": "b"}]}')
            await until(lambda: len(roster.known_models()) == 3)
            assert stub.asked["/health"] >= 5
            await until(lambda: stub.asked["/health"] >= 20)
            assert stub.asked["/v1/models"] <= 6, "now and then, not every time"

    run(law())


def test_pinned_models_are_not_asked_for() -> None:
    async def law() -> None:
        async with (
            Stub().running() as stub,
            probing(stub.url, models=(ModelName("pinned"),)) as roster,
        ):
            await until(lambda: stub.asked["/health"] > 10)
            assert list(roster.known_models()) == ["pinned"]
            assert stub.asked["/v1/models"] == 0

    run(law())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(ok(status=503), id="503"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", id="not http"),
        pytest.param(b"", id="closed"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", id="half"),
        pytest.param(b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", id="upgrade"),
        pytest.param(None, id="hangs"),
    ],
)
def test_a_replica_whose_health_answer_is_bad_is_ejected_and_comes_back(
    answer: bytes | None,
) -> None:
    async def law() -> None:
        async with Stub().running() as stub, probing(stub.url) as roster:
            await until(lambda: roster.is_ready)
            stub.answers["/health"] = answer
            await until(lambda: health(roster) == [Health.EJECTED])
            stub.answers["/health"] = ok()
            await until(lambda: health(roster) == [Health.HEALTHY])

    run(law())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(ok(b"garbage"), id="garbage"),
        pytest.param(ok(b'{"data": [{"id": 1}]}'), id="no name"),
        pytest.param(ok(status=401), id="401"),
    ],
)
def test_a_replica_that_cannot_say_what_it_serves_never_joins(
    answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def law() -> None:
        stub = Stub()
        stub.answers["/v1/models"] = answer
        async with stub.running(), probing(stub.url) as roster:
            await until(lambda: stub.asked["/v1/models"] >= 3)
            assert health(roster) == [Health.JOINING]

    with caplog.at_level(logging.INFO, "gateway.fleet"):
        run(law())
    said = [line for line in caplog.messages if "not up yet" in line]
    assert len(said) == 1, "once, not per probe"


def test_an_answer_that_nests_too_deep_is_a_failed_probe() -> None:
    async def law() -> None:
        settings = FleetSettings(probe_every_s=0.02, sleep_mode=True, failures_to_eject=1)
        stub = Stub()
        stub.answers["/is_sleeping"] = ok(b'{"is_sleeping": false}')
        async with stub.running(), probing(stub.url, settings=settings) as roster:
            await until(lambda: roster.is_ready)
            stub.answers["/is_sleeping"] = ok(b'{"is_sleeping": false, "x": ' + b"[" * 100_000)
            await until(lambda: health(roster) == [Health.EJECTED])

    run(law())


def test_an_ejected_replica_is_left_alone_until_it_has_cooled_down() -> None:
    async def law() -> None:
        settings = FleetSettings(probe_every_s=0.02, cool_down_s=0.4, failures_to_eject=1)
        async with Stub().running() as stub, probing(stub.url, settings=settings) as roster:
            await until(lambda: roster.is_ready)
            roster.sign(roster.replicas[0], Sign.FAILURE, monotonic())
            began = time.monotonic()
            await asyncio.sleep(0.1)  # a probe under way at the ejection may still end
            asked = stub.asked["/health"]
            await until(lambda: stub.asked["/health"] > asked)
            assert time.monotonic() - began >= 0.39
            await until(lambda: roster.is_ready)
            assert stub.asked["/v1/models"] >= 2, "it may have come back as another"

    run(law())


def test_a_replica_that_hangs_delays_no_other() -> None:
    async def law() -> None:
        stuck, well = Stub(), Stub()
        stuck.answers["/health"] = None
        settings = FleetSettings(probe_every_s=0.02, probe_timeout_s=20)
        async with (
            stuck.running(),
            well.running(),
            probing(stuck.url, well.url, settings=settings) as roster,
        ):
            await until(lambda: stuck.asked["/health"] == 1)
            await until(lambda: well.asked["/health"] >= 10)
            assert health(roster) == [Health.JOINING, Health.HEALTHY]

    run(law())


def test_a_replica_that_joins_and_leaves_a_hundred_times_leaves_nothing_behind() -> None:
    async def law() -> None:
        stub = Stub()
        stub.answers["/health"] = None  # the worst moment to leave: while being asked
        async with stub.running(), probing() as roster:
            tasks = len(asyncio.all_tasks())
            for turn in range(100):
                roster.apply([ReplicaAddress(stub.url)], "static")
                await until(lambda asked=turn + 1: stub.asked["/health"] == asked)  # type: ignore[misc]
                roster.apply([], "static")
            await until(lambda: stub.open == 0)
            await until(lambda: len(asyncio.all_tasks()) == tasks)
            assert roster.replicas == ()

    run(law())


def test_a_draining_replica_is_not_probed_until_it_is_named_again() -> None:
    async def law() -> None:
        async with Stub().running() as stub, probing(stub.url) as roster:
            await until(lambda: roster.is_ready)
            with roster.replicas[0].lease(1):
                roster.apply([], "static")
                await asyncio.sleep(0.05)
                asked = stub.asked["/health"]
                await asyncio.sleep(0.15)
                assert stub.asked["/health"] == asked
                roster.apply([ReplicaAddress(stub.url)], "static")
                await until(lambda: roster.is_ready)

    run(law())


def test_a_bug_met_while_probing_is_logged_and_does_not_end_the_probing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        """A roster that fails as none of our code should."""

        def __init__(self, roster: Roster) -> None:
            self.roster = roster
            self.failures = 3

        def sign(self, *args: Any) -> None:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("a bug of ours")
            self.roster.sign(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.roster, name)

    async def law() -> None:
        async with Stub().running() as stub:
            roster = Roster(QUICK)
            roster.apply([ReplicaAddress(stub.url)], "static")
            broken: Any = Broken(roster)
            task = asyncio.create_task(Prober(broken, QUICK, monotonic, random.Random(1)).run())
            await until(lambda: roster.is_ready)
            task.cancel()
            await asyncio.wait([task])

    run(law())
    assert len([record for record in caplog.records if record.exc_info]) == 3


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (ok(b"hello"), 200, b"hello"),
        (ok(status=404), 404, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"hello"), 200, b"hello"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n<pause>" + ok(b"hello"), 200, b"hello"),
        (b"HTTP/1.0 200 OK\r\n\r\nto <pause>the end", 200, b"to the end"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            200,
            b"abcde",
        ),
        (ok(b"x" * MAX_BODY_BYTES), 200, b"x" * MAX_BODY_BYTES),
    ],
    ids=[
        "length",
        "404",
        "100 first",
        "103, later 200",
        "until closed",
        "chunked",
        "just small enough",
    ],
)
def test_a_fetch_returns_the_status_and_the_whole_body(
    answer: bytes, status: int, body: bytes
) -> None:
    async def law() -> None:
        stub = Stub()
        stub.answers["/health"] = answer
        async with stub.running():
            got = await fetch(stub.url + "/health", timeout_s=5, tls=None)
            assert got == (status, body)

    run(law())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "before the answer was complete"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfour", "before the answer was complete"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", "complete"),
        (b"\x16\x03\x01\x00\x00", "not HTTP"),
        (ok(b"x" * (MAX_BODY_BYTES + 1)), "larger than"),
        (None, "within 0.2 s"),
    ],
    ids=["closed", "too short", "chunk missing", "garbage", "too large", "silent"],
)
def test_whatever_goes_wrong_is_one_kind_of_error(answer: bytes | None, said: str) -> None:
    async def law() -> None:
        stub = Stub()
        stub.answers["/health"] = answer
        async with stub.running():
            with pytest.raises(FetchFailed, match=said):
                await fetch(stub.url + "/health", timeout_s=0.2 if answer is None else 5, tls=None)
            await until(lambda: stub.open == 0)
        with pytest.raises(FetchFailed, match="onnect"):
            await fetch(stub.url + "/health", timeout_s=5, tls=None)

    run(law())
