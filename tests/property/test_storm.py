"""The storm: whatever clients and replicas do, the gateway's sums balance and nothing is left.

Three simulated replicas crash, come back, reset, stall, lie and refuse, while hundreds of clients
ask, walk away at any byte, read slowly, send nonsense or half of a request. Each seed is another
storm, over real sockets on loopback.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

import pytest

from gateway.vocabulary import Outcome
from serving.sim.server import Sim
from tests.builders import a_chat, a_post
from tests.house import RunningHouse, Wire, a_sim, run, running_house, until

REQUESTS = 600
AT_ONCE = 40

SETTINGS: dict[str, dict[str, Any]] = {
    "accept": {"client_stall_s": 0.5, "max_body_bytes": 100_000, "body_timeout_s": 1.0},
    "admit": {"max_open_requests": 30},
    "hold": {
        "commit_tokens": 2000,
        "max_sequences": 4,
        "max_wait_s": 0.5,
        "comment_every_s": 0.01,
        "per_tenant": {"requests": 10, "tokens": 20_000, "size_bytes": 20_000},
    },
    "relay": {
        "connect_timeout_s": 0.3,
        "first_byte_timeout_s": 0.1,
        "unary_timeout_s": 0.15,
        "stall_timeout_s": 0.1,
    },
    "fleet": {
        "probe_every_s": 0.05,
        "failures_to_eject": 8,
        "cool_down_s": 0.05,
        "cool_down_max_s": 0.1,
    },
}

FAULTS: tuple[dict[str, object], ...] = (
    {"reset": {"after_chunks": 2, "next": 3}},
    {"reset": {"after_chunks": 0, "ratio": 0.3}},
    {"truncate": {"after_chunks": 1, "next": 3}},
    {"stuck": {"where": "before_head", "ratio": 0.5}},
    {"stuck": {"where": "after_head", "ratio": 0.5}},
    {"drop": {"next": 2}},
    {"garbage": {"next": 2}},
    {"refuse": {"status": 503, "ratio": 0.7}},
    {"refuse": {"status": 500, "next": 3}},
    {"refuse": {"status": 429, "next": 3}},
    {"slow": 8},
    {"health": {"status": 503}},
)

ODD_BODIES = (
    b"",
    b"{",
    b"[1]",
    b'{"model": 7}',
    b'{"model": "m", "model": "m"}',
    b"[" * 5000,
    a_chat(model="made-up"),
    a_chat(text=""),
    a_chat(max_tokens="many"),
    a_chat("x" * 120_000),
)


class Storm:
    """One storm: what it is made of comes from the seed alone; when things meet, from the clock."""

    def __init__(self, running: RunningHouse, seed: int) -> None:
        self.running = running
        self.rng = Random(seed)
        self.statuses: Counter[int] = Counter()
        self.cut = 0

    async def blow(self) -> None:
        """Until every client has had enough."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(client: Random) -> None:
            async with gate:
                await asyncio.sleep(client.uniform(0.0, 0.1))
                await self.client(client)

        chaos = [asyncio.create_task(self.chaos(sim)) for sim in self.running.sims]
        try:
            async with asyncio.TaskGroup() as clients:
                for _ in range(REQUESTS):
                    clients.create_task(one(Random(self.rng.random())))
        finally:
            for task in chaos:
                task.cancel()
            await asyncio.wait(chaos)
        for sim in self.running.sims:
            sim.faults.clear()
            await sim.revive()

    # Replicas

    async def chaos(self, sim: Sim) -> None:
        """One replica's bad days."""
        rng = Random(self.rng.random())
        while True:
            await asyncio.sleep(rng.uniform(0.0, 0.06))
            match rng.randrange(14):
                case 0:
                    sim.crash("drop")
                case 1:
                    sim.crash("exit")
                    await asyncio.sleep(rng.uniform(0.0, 0.06))
                    await sim.revive()
                case 2 | 3:
                    sim.faults.clear()
                case _:
                    sim.faults.merge(dict(rng.choice(FAULTS)))

    # Clients

    async def client(self, rng: Random) -> None:
        """One client and its request, or two."""
        wire = await self.running.connect()
        try:
            async with asyncio.timeout(8.0):
                await self.behave(rng, wire)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.cut += 1
        finally:
            wire.abort()

    async def behave(self, rng: Random, wire: Wire) -> None:
        stream = rng.random() < 0.6
        path = rng.choice(("/v1/chat/completions", "/v1/messages", "/v1/responses"))
        body = a_chat("x" * rng.randrange(2000), stream=stream, max_tokens=rng.randrange(1, 30))
        if path == "/v1/responses":
            body = body.replace(b'"messages": [', b'"input": [').replace(
                b"max_tok", b"max_output_tok"
            )
        post = a_post(body, path=path, version=rng.choice(("1.1", "1.1", "1.1", "1.0")))
        match rng.randrange(10):
            case 0:  # leaves while it is sending
                await wire.send(post[: rng.randrange(len(post))])
                await asyncio.sleep(rng.uniform(0.0, 0.02))
            case 1:  # leaves after a while
                await wire.send(post)
                await asyncio.sleep(rng.uniform(0.0, 0.05))
            case 2:  # leaves at some byte of the answer
                await wire.send(post)
                await wire.reader.read(rng.randrange(1, 2000))
            case 3:  # sends nonsense
                await self.read(wire, a_post(rng.choice(ODD_BODIES), path=path))
            case 4:  # reads slowly, to the end or not
                await wire.send(a_post(body, path=path, headers=[("connection", "close")]))
                while await wire.reader.read(200):
                    await asyncio.sleep(rng.uniform(0.0, 0.02))
                    if rng.random() < 0.02:
                        return
            case 5:  # asks twice at once
                await wire.send(a_post(body, path=path) * 2)
                for _ in range(2):
                    self.statuses[(await wire.reply()).status] += 1
            case 6:  # says that it will send more than it does
                await wire.send(post.replace(b"Content-Length: ", b"Content-Length: 9", 1))
                await asyncio.sleep(rng.uniform(0.0, 0.1))
            case _:
                await self.read(wire, post)

    async def read(self, wire: Wire, post: bytes) -> None:
        """A client that waits for its answer, which must be well framed or visibly cut."""
        await wire.send(post)
        self.statuses[(await wire.reply()).status] += 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("seed", "loop"), [(1, "uvloop"), (2, "uvloop"), (3, "asyncio")])
def test_after_any_storm_the_sums_balance_and_nothing_is_left(seed: int, loop: str) -> None:
    async def law() -> None:
        async with running_house(SETTINGS, [a_sim(), a_sim(), a_sim()]) as running:
            tasks = quiet_tasks()
            storm = Storm(running, seed)
            await storm.blow()
            await running.until_quiet()  # every ledger, the door, the relay, the engines; the sums
            await until(lambda: running.house.connections == 0)
            await until(lambda: quiet_tasks() == tasks)
            accounts = running.house.accounts
            print(accounts, dict(running.reasons), dict(accounts.retries), dict(storm.statuses))

            assert accounts.open_entries == 0
            assert accounts.received == sum(running.outcomes.values())
            assert set(running.outcomes) >= {
                Outcome.FINISHED, Outcome.REJECTED, Outcome.FAILED, Outcome.CLIENT_GONE,
            }  # fmt: skip
            assert len(running.reasons) >= 7, "it was a storm"
            assert "bug" not in running.reasons
            assert set(storm.statuses) <= {200, 400, 404, 413, 422, 429, 500, 502, 503, 504}
            assert not running.house.gate.crowd.count.requests
            finished = running.outcomes[Outcome.FINISHED]
            failed = running.outcomes[Outcome.FAILED] + running.outcomes.get(Outcome.EVICTED, 0)
            assert storm.statuses[200] <= finished + failed

            await until(lambda: all(one.takes_work for one in running.replicas))
            for _ in range(6):
                assert (await running.ask(a_post())).status == 200, "and it serves on"

    run(law(), loop=loop, within_s=50.0)


def quiet_tasks() -> Counter[str]:
    """What runs, by its name; tasks that have none of their own count as one kind.

    Who listens to a replica comes and goes with it, storm or no storm.
    """
    return Counter(
        "unnamed" if task.get_name().startswith("Task-") else task.get_name()
        for task in asyncio.all_tasks()
        if not task.get_name().startswith("kv events ")
    )
