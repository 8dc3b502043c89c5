"""The client leaves, in every phase: the replica hears of it within 100 ms, and nothing is left."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.vocabulary import Health, Outcome
from tests.builders import a_chat, a_post
from tests.house import RunningHouse, Wire, a_sim, run, running_house, until
from tests.misbehaving import RARELY, house_before, house_before_a_black_hole
from tests.scripted import STREAM_HEAD, Received, Scripted, chunked

LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
TRIALS = 5
WITHIN_S = 0.1


async def abort_latency_s(running: RunningHouse, wire: Wire) -> float:
    """From the client's leaving until nothing is open, on the gateway and on the replica."""
    began = time.perf_counter()
    wire.abort()
    await until(lambda: running.is_quiet and not inflight(running))
    return time.perf_counter() - began


def inflight(running: RunningHouse) -> int:
    """Exchanges that replicas are still busy with, and connections to them that carry any."""
    return sum(sim.engine.running + sim.engine.waiting for sim in running.sims) + sum(
        sim.connections for sim in running.sims
    )


async def check_aborts(running: RunningHouse, post: bytes, phase: str) -> None:
    latencies = []
    for _ in range(TRIALS):
        wire = await running.connect()
        await wire.send(post)
        match phase:
            case "waiting":
                await until(lambda: running.house.relay.busy == 1 and inflight(running))
            case "running":
                await until(lambda: running.sims[0].engine.running)
            case _:
                await wire.reader.readuntil(b"data: ")
        latencies.append(await abort_latency_s(running, wire))
    print(f"{phase}: aborted in {1000 * min(latencies):.1f} to {1000 * max(latencies):.1f} ms")
    assert sorted(latencies)[TRIALS // 2] < WITHIN_S, latencies
    assert running.outcomes == {Outcome.CLIENT_GONE: TRIALS}
    assert running.replicas[0].health is Health.HEALTHY, "it is no fault of the replica"
    assert not running.house.accounts.retries


@LOOPS
@pytest.mark.parametrize(
    ("phase", "stream", "fault"),
    [
        ("waiting", True, {"stuck": {"where": "before_head"}}),
        ("waiting", True, {"stuck": {"where": "after_head"}}),
        ("waiting", False, {"stuck": {"where": "before_head"}}),
        ("running", False, {"slow": 20}),
        ("streaming", True, {"slow": 20}),
    ],
    ids=["before-head", "after-head", "unary-before-head", "unary-running", "streaming"],
)
def test_a_client_that_leaves_ends_its_request_at_the_replica(
    phase: str, fault: dict[str, object], loop: str, *, stream: bool
) -> None:
    async def law() -> None:
        async with running_house(RARELY) as running:
            await until(lambda: running.sims[0].connections == 0)  # of the probe
            running.sims[0].faults.merge(fault)
            await check_aborts(
                running, a_post(a_chat(stream=stream, max_tokens=4000, ignore_eos=True)), phase
            )

    run(law(), loop=loop)


@LOOPS
def test_a_client_that_leaves_while_we_connect_ends_the_attempt(loop: str) -> None:
    async def law() -> None:
        async with house_before_a_black_hole({"relay": {"connect_timeout_s": 30.0}}) as running:
            for _ in range(TRIALS):
                wire = await running.connect()
                await wire.send(a_post())
                await until(lambda: running.ledgers[0][0] == 1)
                began = time.perf_counter()
                wire.abort()
                await until(lambda: running.is_quiet)
                assert time.perf_counter() - began < WITHIN_S
            assert running.outcomes == {Outcome.CLIENT_GONE: TRIALS}
            assert running.replicas[0].health is Health.HEALTHY

    run(law(), loop=loop)


def test_of_many_clients_only_those_that_leave_lose_their_requests() -> None:
    async def law() -> None:
        async with running_house(RARELY, [a_sim(), a_sim()]) as running:
            for sim in running.sims:
                sim.faults.merge({"slow": 5})
            post = a_post(a_chat(stream=True, max_tokens=60, ignore_eos=True))
            wires = [await running.connect() for _ in range(20)]
            for wire in wires:
                await wire.send(post)
            await until(lambda: sum(sim.engine.running for sim in running.sims) == 20)
            for wire in wires[::2]:
                wire.abort()
            await until(lambda: sum(sim.engine.running for sim in running.sims) <= 10)
            for wire in wires[1::2]:
                reply = await wire.reply()
                assert reply.body.endswith(b"data: [DONE]\n\n")
                await wire.close()
            await running.until_quiet()
            assert running.outcomes == {Outcome.CLIENT_GONE: 10, Outcome.FINISHED: 10}

    run(law())


class Endless:
    """A stream without an end, as fast as it is taken; counts what was taken."""

    def __init__(self) -> None:
        self.taken_bytes = 0

    async def __call__(
        self, received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        piece = chunked(b"data: " + b"x" * 65_000 + b"\n\n", end=False)
        writer.write(STREAM_HEAD)
        while True:
            writer.write(piece)
            await writer.drain()
            self.taken_bytes += len(piece)


@LOOPS
def test_a_client_that_stops_reading_holds_the_replica_back_and_is_let_go_in_the_end(
    loop: str,
) -> None:
    async def law() -> None:
        stream = Endless()
        impatient = {"accept": {"client_stall_s": 0.5}}
        async with house_before(Scripted(stream), settings=impatient) as running:
            wire = await running.connect()
            await wire.send(a_post(a_chat(stream=True)))
            await until(lambda: stream.taken_bytes > 1_000_000)
            await until(lambda: running.house.accounts.open_entries == 0)
            assert stream.taken_bytes < 30_000_000, "what the kernel holds, and little more"
            await running.until_quiet()
            assert running.outcomes == {Outcome.CLIENT_GONE: 1}
            assert running.reasons == {"client_stalled": 1}
            await until(lambda: running.house.connections == 0)
            wire.abort()

    run(law(), loop=loop)


@LOOPS
def test_a_client_that_reads_slowly_gets_everything(loop: str) -> None:
    async def law() -> None:
        body = b"".join(b"data: %06d %b\n\n" % (number, b"x" * 60_000) for number in range(200))
        answer = STREAM_HEAD + chunked(
            *(body[at : at + 50_000] for at in range(0, len(body), 50_000))
        )
        async with house_before(Scripted(answer)) as running, running.wire() as wire:
            await wire.send(a_post(a_chat(stream=True)))
            await until(lambda: running.house.relay.busy == 1)
            await asyncio.sleep(0.3)
            assert (await wire.reply()).body == body
            await running.until_quiet()
            assert running.outcomes == {Outcome.FINISHED: 1}

    run(law(), loop=loop)
