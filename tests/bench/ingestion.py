"""`python -m tests.bench.ingestion`: what hearing an engine's KV events costs, and whom it delays.

Three processes over loopback. An engine keeps 10 000 batches and replays them; a gateway, alone on
its core, is made to ask for all of them again and again; this process is a replica that writes a
time stamp every 5 ms on each of some streams, and the client that reads them through the gateway.

Printed: blocks a second by reading batches alone; by the whole way from socket to listener, with
nothing else to do; and, with streams running, how late their stamps are with and without a replay.
The listener counts and forgets, so what a policy does with the blocks comes on top.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from unittest.mock import patch

import msgspec
import uvloop

from gateway.app import House
from gateway.choose.chooser import Chooser
from gateway.choose.pickers import InTurn
from gateway.choose.scorers import Indifferent
from gateway.clock import monotonic
from gateway.fleet.kv_events import KvEvents
from gateway.fleet.kv_sequence import Patience
from gateway.fleet.kv_wire import read_batch
from gateway.kv_cache import BlockEvent, Certainty, EngineFacts
from gateway.settings import Settings
from gateway.vocabulary import ReplicaId
from serving.sim.kv_cache import BlockRemoved, BlockStored, KvEvent
from serving.sim.publisher import EventPublisher
from serving.sim.settings import KvEventSettings
from tests.bench.figures import percentile
from tests.bench.machine import describe
from tests.bench.processes import Child, Cores, cpu_s, free_ports, running

ROOT: Final = Path(__file__).resolve().parents[2]
BATCHES: Final = 10_000
BLOCKS: Final = 16  # stored in a batch, by one request, and as many removed
TOKENS: Final = 16  # a block
STREAMS: Final = 16
CHUNK_EVERY_S: Final = 0.005
ASKING: Final = "asking"  # a file, once the gateway is to ask
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
)


def a_batch(rng: random.Random) -> list[KvEvent]:
    """A step that stores a chain of blocks and evicts as many."""
    hashes = [rng.getrandbits(64) for _ in range(BLOCKS)]
    tokens = [rng.randrange(150_000) for _ in range(BLOCKS * TOKENS)]
    none: list[tuple[str, ...] | None] = [None] * BLOCKS
    stored = BlockStored(hashes, rng.getrandbits(64), tokens, TOKENS, None, "GPU", None, none, 0)
    removed = [BlockRemoved([rng.getrandbits(64)], "GPU", group_idx=0) for _ in range(BLOCKS)]
    return [*removed, stored]


class Deaf:
    """A BlockListener that does nothing."""

    def described(self, replica: ReplicaId, facts: EngineFacts) -> None:
        """Nothing."""

    def apply(self, replica: ReplicaId, events: Sequence[BlockEvent]) -> None:
        """Nothing."""

    def retold(self, replica: ReplicaId) -> None:
        """Nothing."""

    def certainty(self, replica: ReplicaId, certainty: Certainty) -> None:
        """Nothing."""


def engine(ports: Sequence[int]) -> None:
    """Keep the batches, and replay them when asked. At low priority: it is nobody's subject."""
    os.nice(10)
    live, replay = (f"tcp://127.0.0.1:{port}" for port in ports)
    publisher = EventPublisher(KvEventSettings(live, replay, buffer_steps=BATCHES), time.time)
    rng = random.Random(7)
    for _ in range(BATCHES):
        publisher.publish(a_batch(rng))
    print("ready", flush=True)
    asyncio.run(publisher.serve_replays())


def gateway(ports: Sequence[int], asking: Path) -> None:
    """A gateway that, once `asking` is there, asks for everything anew again and again."""
    port, replica, *events = ports
    source = {
        "endpoint": f"tcp://127.0.0.1:{events[0]}",
        "replay_endpoint": f"tcp://127.0.0.1:{events[1]}",
    }
    address = {"url": f"http://127.0.0.1:{replica}", "models": ["m"], "kv_events": source}
    settings = Settings.of(
        {
            "accept": {"port": port},
            "fleet": {"replicas": [address]},
            "account": {"access_log": "off"},
        }
    )
    listener = Deaf()
    with patch("gateway.app.policy", lambda *_: Chooser((), Indifferent(), InTurn())):
        house = House(settings)
    patience = Patience(retry_after_s=0.0, silence_s=5.0)
    kv_events = KvEvents(house.roster, settings.fleet, listener, monotonic, None, patience)

    def is_asked() -> bool:
        return asking.exists()

    async def again() -> None:
        while not is_asked():
            await asyncio.sleep(0.1)
        hearing = asyncio.create_task(kv_events.run())
        while not hearing.done():
            await asyncio.sleep(0.005)
            for name, heard in kv_events.heard.items():
                if heard.certainty is Certainty.EXACT:
                    kv_events.replay(name)

    async def main() -> None:
        with patch.object(House, "heard", property(lambda _: kv_events.heard)):
            asks = asyncio.create_task(again())
            await house.serve(house.server())
            asks.cancel()

    uvloop.run(main())


async def stamps(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A replica: every POST is a stream of time stamps until the client goes."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            return
        writer.write(HEAD + b"\r\n")
        await asyncio.sleep(random.random() * CHUNK_EVERY_S)
        while not writer.transport.is_closing():
            line = b"data: %d\n\n" % time.perf_counter_ns()
            writer.write(b"%x\r\n%b\r\n" % (len(line), line))
            await asyncio.sleep(CHUNK_EVERY_S)
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        pass  # the gateway has closed, or all is over
    finally:
        writer.close()


async def late(port: int, seconds: float, found: list[float]) -> None:
    """One stream through the gateway: how late each stamp is, in milliseconds."""
    body = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "x"}]}'
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        line = await reader.readuntil(b"\n")
        if line.startswith(b"data: "):
            found.append((time.perf_counter_ns() - int(line[6:])) / 1e6)
    writer.transport.abort()


async def latencies(port: int, seconds: float) -> list[float]:
    """Of all streams together, the first second left out."""
    warm: list[float] = []
    await asyncio.gather(*(late(port, 1.0, warm) for _ in range(STREAMS)))
    found: list[float] = []
    await asyncio.gather(*(late(port, seconds, found) for _ in range(STREAMS)))
    return found


def blocks_heard(port: int) -> int:
    """By the gateway's own count, so far; stored ones only."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        for line in page.read().decode().splitlines():
            if line.startswith("gateway_kv_event_blocks_total"):
                return int(float(line.split()[-1]))
    return 0


def reading() -> float:
    """Blocks a second, stored and removed, by reading batches alone on this core."""
    rng, encoder = random.Random(7), msgspec.msgpack.Encoder()
    payloads = [encoder.encode([0.0, a_batch(rng), 0]) for _ in range(500)]
    began = time.perf_counter()
    for payload in payloads * 4:
        read_batch(payload)
    return len(payloads) * 4 * BLOCKS * 2 / (time.perf_counter() - began)


@contextmanager
def started(folder: Path, cores: Cores, ports: Sequence[int]) -> Iterator[tuple[Child, Child]]:
    """Engine and gateway; `ports` are the gateway's, the replica's, and two for events."""
    own, replica, *events = (str(port) for port in ports)
    command = [sys.executable, "-m", "tests.bench.ingestion"]
    told = running(
        "engine", [*command, "--engine", *events], core=cores.upstream, folder=folder, root=ROOT
    )
    asked = [*command, "--gateway", own, replica, *events, "--asking", str(folder / ASKING)]
    hears = running("gateway", asked, core=cores.subject, folder=folder, root=ROOT)
    with told as first, hears as second:
        yield first, second


def answers(port: int) -> bool:
    """Is the gateway ready?"""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
            return True
    except OSError:
        return False


async def up(children: tuple[Child, Child], port: int) -> None:
    """Wait until both are. Raises RuntimeError with the end of a log after a minute."""
    until = time.monotonic() + 60
    told = children[0]
    while b"ready" not in told.log.read_bytes() or not await asyncio.to_thread(answers, port):
        for child in children:
            if child.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{child.name}: {child.log_tail()}")
        await asyncio.sleep(0.1)


async def measure(seconds: float) -> None:
    """Everything, printed."""
    cores = Cores.allot()
    print(" ".join(f"{key}: {value};" for key, value in describe(ROOT).items()))
    os.sched_setaffinity(0, {cores.load})
    print(f"reading alone: {reading():,.0f} blocks/s")
    ports = free_ports(4)
    port, replica = ports[:2]
    async with await asyncio.start_server(stamps, "127.0.0.1", replica):
        with (
            tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder,
            started(Path(folder), cores, ports) as children,
        ):
            await up(children, port)
            quiet = await latencies(port, seconds)
            (Path(folder) / ASKING).touch()
            await asyncio.sleep(1.0)
            pid = children[1].pids()
            before, cpu = await asyncio.to_thread(blocks_heard, port), cpu_s(pid)
            await asyncio.sleep(seconds)
            heard, cpu = await asyncio.to_thread(blocks_heard, port) - before, cpu_s(pid) - cpu
            print(
                f"socket to listener: {2 * heard / seconds:,.0f} blocks/s, stored and removed; "
                f"{2 * heard / cpu:,.0f} a second of CPU"
            )
            before = await asyncio.to_thread(blocks_heard, port)
            busy = await latencies(port, seconds)
            heard = await asyncio.to_thread(blocks_heard, port) - before
    print(f"beside {STREAMS} streams: {2 * heard / (seconds + 1):,.0f} blocks/s")
    for name, found in (("without a replay", quiet), ("with replays", busy)):
        p50, p99, most = (percentile(found, share) for share in (0.5, 0.99, 1.0))
        print(
            f"{name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, most {most:.2f} ms, {len(found)} stamps"
        )


def main() -> None:
    """From the command line; the flags with ports are for its own children."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ingestion", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="a phase (%(default)s)")
    parser.add_argument("--engine", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--gateway", nargs=4, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--asking", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        engine(args.engine)
    elif args.gateway:
        gateway(args.gateway, args.asking)
    else:
        uvloop.run(measure(args.seconds))


if __name__ == "__main__":
    main()
