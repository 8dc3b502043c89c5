"""The harness holds itself to account: real loopback, two replicas, one client."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.bench.load import ClosedLoop, LoadFailed, Serials, Tally, closed_loop
from tests.bench.measure import check_counts, replica_counts
from tests.bench.processes import free_ports
from tests.bench.prompts import write_book
from tests.bench.upstream import EXTRA_EVENTS, serve

CHUNKS = 20
BRIEF = ClosedLoop(concurrency=4, warm_up_s=0.02, window_s=0.1)


@asynccontextmanager
async def replicas() -> AsyncIterator[int]:
    """The port of a replica that is up for as long as the block."""
    ports = free_ports(2)
    stop, ready = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(serve(ports, chunks=CHUNKS, step_s=0.002, stop=stop, ready=ready))
    try:
        await ready.wait()
        yield ports[0]
    finally:
        stop.set()
        await serving


async def run(*, is_stream: bool, meter: Callable[[], float]) -> tuple[Tally, dict[str, int]]:
    book = write_book(seed=3, size_bytes=2048, is_stream=is_stream, templates=8)
    async with replicas() as port:
        tally, _ = await closed_loop(port, book, BRIEF, serials=Serials(), meter=meter)
        return tally, await asyncio.to_thread(replica_counts, port)


def test_every_unary_request_the_client_sent_is_one_the_replicas_received() -> None:
    tally, counts = asyncio.run(run(is_stream=False, meter=lambda: 0.0))
    assert tally.finished == tally.sent == counts["requests"] >= 4
    assert counts["body_bytes"] == 2048 * tally.sent
    assert counts["streams"] == counts["events"] == tally.events == 0


def test_every_event_the_replicas_wrote_is_one_the_client_counted() -> None:
    tally, counts = asyncio.run(run(is_stream=True, meter=lambda: 0.0))
    assert tally.finished == tally.sent == counts["streams"] >= 4
    assert tally.events == counts["events"] == tally.sent * (CHUNKS + EXTRA_EVENTS)
    assert counts["broken_streams"] == 0


def test_events_of_a_stream_that_is_read_in_time_never_share_a_read() -> None:
    tally, _ = asyncio.run(run(is_stream=True, meter=lambda: 0.0))
    assert tally.reads >= tally.events


def test_the_window_meters_only_what_passed_between_its_two_readings() -> None:
    readings = iter((5.0, 7.5))

    async def scenario() -> None:
        book = write_book(seed=3, size_bytes=2048, is_stream=False, templates=8)
        async with replicas() as port:
            tally, window = await closed_loop(
                port, book, BRIEF, serials=Serials(), meter=lambda: next(readings)
            )
        assert window.meter == 2.5
        assert window.finished <= tally.finished - BRIEF.concurrency

    asyncio.run(scenario())


def test_a_window_is_made_of_slices_that_add_up_to_it() -> None:
    readings = iter((5.0, 6.0, 7.5, 7.75))

    async def scenario() -> None:
        book = write_book(seed=3, size_bytes=2048, is_stream=False, templates=8)
        plan = ClosedLoop(concurrency=4, warm_up_s=0.02, window_s=0.3)
        async with replicas() as port:
            _, window = await closed_loop(
                port, book, plan, serials=Serials(), meter=lambda: next(readings)
            )
        assert [each.meter for each in window.slices] == [1.0, 1.5, 0.25]
        assert sum(each.finished for each in window.slices) == window.finished > 0
        assert sum(each.wall_s for each in window.slices) == pytest.approx(window.wall_s)

    asyncio.run(scenario())


def test_a_gateway_that_cannot_be_reached_is_a_failure_and_not_a_figure() -> None:
    book = write_book(seed=3, size_bytes=2048, is_stream=False, templates=1)
    (port,) = free_ports(1)
    with pytest.raises(LoadFailed, match="cannot connect"):
        asyncio.run(closed_loop(port, book, BRIEF, serials=Serials(), meter=lambda: 0.0))


@pytest.mark.parametrize(
    ("grown", "wrong"),
    [
        ({"requests": 11, "events": 50, "broken_streams": 0}, "requests: 11 at the replicas"),
        ({"requests": 10, "events": 49, "broken_streams": 0}, "events: 49 at the replicas"),
        ({"requests": 10, "events": 50, "broken_streams": 1}, "broken_streams: 1"),
    ],
)
def test_a_request_or_event_too_many_or_too_few_is_told(grown: dict[str, int], wrong: str) -> None:
    with pytest.raises(LoadFailed, match=wrong):
        check_counts(Tally(sent=10, finished=10, events=50), grown)


def test_a_reply_that_never_came_is_told() -> None:
    grown = {"requests": 10, "events": 0, "broken_streams": 0}
    with pytest.raises(LoadFailed, match="replies are missing"):
        check_counts(Tally(sent=10, finished=9), grown)
