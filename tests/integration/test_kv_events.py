"""Listening to the KV events of simulated replicas: in the end, what they hold is known."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import msgspec
import pytest
import zmq

from gateway.app import House
from gateway.clock import monotonic
from gateway.fleet.health import Sign
from gateway.fleet.kv_events import GATHER_S, KvEvents
from gateway.fleet.kv_sequence import PATIENCE, Patience
from gateway.fleet.roster import Roster
from gateway.kv_cache import BlockEvent, BlockHash, Certainty, EngineFacts
from gateway.settings import FleetSettings, Settings
from gateway.vocabulary import EventSource, Health, ReplicaAddress, ReplicaId
from serving.sim.block_hash import wire_hash
from serving.sim.server import KvEventSettings, Sim, SimSettings, running_sim
from tests.hearing import Hearing
from tests.house import run, running_house, until
from tests.lossy_events import LossyWire

QUICK = Patience(silence_s=0.3, retry_after_s=0.5, verify_after_s=0.4)
SOON = Patience(verify_after_s=2.0)
BOTH = KvEventSettings("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
FLEET = FleetSettings(cool_down_s=0.01)


def a_sim(events: KvEventSettings = BOTH, port: int = 0) -> SimSettings:
    return SimSettings(block_size=4, blocks=64, kv_events=events, port=port)


def truth(sim: Sim) -> set[BlockHash]:
    """The hashes that the engine's blocks carry."""
    pool = sim.engine.pool
    digests = (pool.carries(block) for block in range(pool.total))
    return {wire_hash(digest) for digest in digests if digest is not None}


async def work(sim: Sim, count: int, first: int = 0) -> None:
    """Prompts that have nothing in common, so that blocks are stored and evicted."""
    async with httpx.AsyncClient(base_url=sim.url, timeout=10) as web:
        for number in range(first, first + count):
            prompt = [number * 100 + token for token in range(21)]
            body = {"prompt": prompt, "max_tokens": 2, "ignore_eos": True}
            assert (await web.post("/v1/completions", json=body)).status_code == 200


@dataclass
class Listening:
    """A roster of one healthy replica, and who listens to it."""

    roster: Roster
    kv_events: KvEvents
    hearing: Hearing

    @property
    def id(self) -> ReplicaId:
        return self.roster.replicas[0].id

    @property
    def certain(self) -> Certainty | None:
        return self.hearing.certain(self.id)

    def sign(self, *signs: Sign) -> None:
        for sign in signs:
            self.roster.sign(self.roster.replicas[0], sign, monotonic())

    async def until(self, certainty: Certainty, sim: Sim | None = None) -> None:
        """And, where a simulator is named, until all that it holds is known."""
        async with asyncio.timeout(10):
            while self.certain is not certainty or (
                sim is not None and self.hearing.holds(self.id) != truth(sim)
            ):
                await asyncio.sleep(0.005)


class Stumbling(Hearing):
    """Has a bug that shows once."""

    has_stumbled = False

    def apply(self, replica: ReplicaId, events: Sequence[BlockEvent]) -> None:
        if not self.has_stumbled:
            self.has_stumbled = True
            raise LookupError("a bug")
        super().apply(replica, events)


@asynccontextmanager
async def listening(
    address: ReplicaAddress,
    patience: Patience = QUICK,
    fleet: FleetSettings = FLEET,
    hearing: Hearing | None = None,
) -> AsyncIterator[Listening]:
    roster, hearing = Roster(fleet), hearing or Hearing()
    kv_events = KvEvents(roster, fleet, hearing, monotonic, patience=patience)
    task = asyncio.create_task(kv_events.run())
    await asyncio.sleep(0)
    roster.apply([address], "static")
    listens = Listening(roster, kv_events, hearing)
    listens.sign(Sign.PROBE_SUCCESS)
    try:
        yield listens
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        left = [each for each in asyncio.all_tasks() if each.get_name().startswith("kv events")]
        assert not left


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_who_comes_late_knows_all_and_stays_in_step(loop: str) -> None:
    async def test() -> None:
        async with running_sim(a_sim()) as sim:
            await work(sim, 30)
            async with listening(ReplicaAddress(sim.url)) as listens:
                await listens.until(Certainty.EXACT, sim)
                assert listens.hearing.facts[listens.id] == EngineFacts(
                    block_size=4, cache_tokens=256, prefix_caching=True, hash_algorithm="sha256"
                )
                await work(sim, 20, first=20)
                await listens.until(Certainty.EXACT, sim)
                assert len(truth(sim)) > 32
                heard = listens.kv_events.heard[listens.id]
                assert (heard.gaps, heard.certainty) == (0, Certainty.EXACT)
                assert heard.blocks >= 5 * 40
                async with httpx.AsyncClient(base_url=sim.url) as web:
                    await web.post("/reset_prefix_cache")
                await until(lambda: not listens.hearing.holds(listens.id))

    run(test(), loop=loop)


@asynccontextmanager
async def wired(
    sim: Sim, *, replays: bool = True, patience: Patience = PATIENCE
) -> AsyncIterator[tuple[LossyWire, Listening]]:
    """Listening through a wire that can lose."""
    assert sim.kv_events_endpoint is not None
    with LossyWire(sim.kv_events_endpoint) as wire:
        await asyncio.sleep(0.1)  # its subscription is on the way
        replay = sim.kv_replay_endpoint if replays else None
        source = EventSource(wire.endpoint, replay)
        address = ReplicaAddress(sim.url, kv_events=source)
        async with listening(address, patience) as listens:
            yield wire, listens


def test_a_gap_is_repaired_and_until_then_not_denied() -> None:
    async def test() -> None:
        async with running_sim(a_sim()) as sim, wired(sim) as (wire, listens):
            await work(sim, 5)
            await listens.until(Certainty.EXACT, sim)
            with wire.losing():
                await work(sim, 20, first=10)
                await until(lambda: wire.lost >= 20)
            await work(sim, 1, first=50)
            await listens.until(Certainty.EXACT, sim)
            assert listens.kv_events.heard[listens.id].gaps == 1
            said = listens.hearing.said[listens.id]
            assert said[-2:] == [Certainty.DEGRADED, Certainty.EXACT]
            assert listens.hearing.retold_times[listens.id] == 2  # at the start: by us, by replay

    run(test())


def test_what_was_lost_last_is_found_in_the_silence_that_follows() -> None:
    async def test() -> None:
        async with running_sim(a_sim()) as sim, wired(sim, patience=SOON) as (wire, listens):
            await work(sim, 5)
            await listens.until(Certainty.EXACT, sim)
            with wire.losing():
                await work(sim, 20, first=10)
                await until(lambda: wire.lost >= 20)
            assert listens.hearing.holds(listens.id) != truth(sim)
            await listens.until(Certainty.EXACT, sim)

    run(test())


def test_without_a_replay_a_gap_is_for_ever_but_for_a_cleared_cache() -> None:
    async def test() -> None:
        async with running_sim(a_sim()) as sim, wired(sim, replays=False) as (wire, listens):
            await until(lambda: listens.kv_events.heard[listens.id].certainty != "silent")
            await asyncio.sleep(0.1)
            await work(sim, 5)
            await listens.until(Certainty.EXACT, sim)  # from number 0 on
            with wire.losing():
                await work(sim, 5, first=10)
                await until(lambda: wire.lost >= 5)
            await work(sim, 1, first=50)
            await listens.until(Certainty.DEGRADED)
            async with httpx.AsyncClient(base_url=sim.url) as web:
                await web.post("/reset_prefix_cache")
            await listens.until(Certainty.EXACT, sim)

    run(test())


def test_a_late_listener_without_a_replay_knows_that_it_does_not_know() -> None:
    async def test() -> None:
        async with running_sim(a_sim(KvEventSettings("tcp://127.0.0.1:*"))) as sim:
            await work(sim, 2)
            async with listening(ReplicaAddress(sim.url)) as listens:
                await until(lambda: listens.certain is Certainty.DEGRADED)
                await asyncio.sleep(0.1)
                await work(sim, 2, first=10)
                await until(lambda: len(listens.hearing.holds(listens.id)) >= 10)
                assert listens.certain is Certainty.DEGRADED

    run(test())


def test_who_comes_too_late_for_the_oldest_knows_the_rest() -> None:
    async def test() -> None:
        events = KvEventSettings("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", buffer_steps=8)
        async with running_sim(a_sim(events)) as sim:
            await work(sim, 10)
            async with listening(ReplicaAddress(sim.url)) as listens:
                await listens.until(Certainty.PARTIAL)
                known = listens.hearing.holds(listens.id)
                assert known < truth(sim)
                assert known

    run(test())


@pytest.mark.parametrize("is_noticed", [True, False])
def test_an_engine_that_has_started_anew_is_told_anew(is_noticed: bool) -> None:
    """Noticed: by the health of the replica. Else by the numbers, or the wire that was cut."""

    async def test() -> None:
        async with running_sim(a_sim()) as sim:
            await work(sim, 10)
            assert sim.kv_events_endpoint is not None
            port = sim.port
            events = KvEventSettings(sim.kv_events_endpoint, sim.kv_replay_endpoint)
            address = ReplicaAddress(sim.url)
            stack = contextlib.AsyncExitStack()
            listens = await stack.enter_async_context(listening(address))
            await listens.until(Certainty.EXACT, sim)
        async with stack, running_sim(a_sim(events, port)) as sim:
            if is_noticed:
                listens.sign(Sign.FAILURE, Sign.FAILURE, Sign.FAILURE)
                assert listens.roster.replicas[0].health is Health.EJECTED
                assert listens.kv_events.heard[listens.id].certainty is Certainty.SILENT
                listens.hearing.facts.clear()  # as a policy does with one that is out
            await work(sim, 2, first=50)
            if is_noticed:
                listens.sign(Sign.COOLED_DOWN, Sign.PROBE_SUCCESS)
            await listens.until(Certainty.EXACT, sim)
            assert listens.hearing.facts[listens.id].block_size == 4

    run(test())


def test_a_bug_ends_what_is_heard_of_one_replica_and_it_is_told_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.fleet.kv_events.ASK_AGAIN_S", 0.05)

    async def test() -> None:
        async with running_sim(a_sim()) as sim:
            await work(sim, 3)
            address, hearing = ReplicaAddress(sim.url), Stumbling()
            async with listening(address, hearing=hearing) as listens:
                await listens.until(Certainty.EXACT, sim)
                assert hearing.has_stumbled
                assert hearing.retold_times[listens.id] > 1
                await work(sim, 3, first=20)
                await listens.until(Certainty.EXACT, sim)

    run(test())
    assert "a bug" in caplog.text


def test_a_repair_tells_everything_anew_but_not_all_the_time() -> None:
    async def test() -> None:
        async with running_sim(a_sim()) as sim:
            await work(sim, 3)
            async with listening(ReplicaAddress(sim.url), Patience()) as listens:
                await listens.until(Certainty.EXACT, sim)
                for _ in range(2):
                    before = listens.hearing.retold_times[listens.id]
                    listens.hearing.held[listens.id].clear()
                    listens.kv_events.replay(listens.id)
                    await asyncio.sleep(3 * GATHER_S)
                    assert listens.hearing.retold_times[listens.id] <= before + 1
                assert listens.hearing.holds(listens.id) == set()
                listens.kv_events.replay(ReplicaId("nobody:1"))

    run(test())


def test_who_publishes_nothing_is_silent_and_who_leaves_is_forgotten() -> None:
    async def test() -> None:
        async with (
            running_sim(a_sim(KvEventSettings())) as sim,
            listening(ReplicaAddress(sim.url)) as listens,
        ):
            await listens.until(Certainty.SILENT)
            assert listens.hearing.facts[listens.id].block_size == 4
            listens.roster.apply([], "static")
            assert listens.kv_events.heard == {}

    run(test())


def test_each_rank_is_listened_to_and_asked_by_itself() -> None:
    async def test() -> None:
        async with running_sim(a_sim()) as sim:
            await work(sim, 3)
            async with listening(ReplicaAddress(sim.url, rank=0)) as listens:
                await listens.until(Certainty.EXACT, sim)
                assert listens.id == sim.url.removeprefix("http://") + "#0"
            async with listening(ReplicaAddress(sim.url, rank=1)) as listens:
                await listens.until(Certainty.SILENT)  # the simulator is rank 0 alone

    run(test())


def test_noise_on_the_wire_is_no_news_and_what_cannot_be_read_is_owned_up_to() -> None:
    async def test() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        async with running_sim(a_sim()) as sim:
            with contextlib.closing(context.socket(zmq.PUB)) as pub:
                pub.linger = 0
                port = pub.bind_to_random_port("tcp://127.0.0.1")
                source = EventSource(f"tcp://127.0.0.1:{port}")
                address = ReplicaAddress(sim.url, kv_events=source)
                async with listening(address) as listens:
                    await until(lambda: listens.certain is Certainty.DEGRADED)
                    await asyncio.sleep(0.2)
                    cleared = msgspec.msgpack.encode([0.0, [{"type": "AllBlocksCleared"}], 0])
                    noise: Sequence[Sequence[bytes]] = [
                        [b"alone"],
                        [b"", b"short", b""],
                        [b"", b"\xff" * 8, b""],
                        [b"", bytes(8), cleared],
                    ]
                    for frames in noise:
                        pub.send_multipart(frames)
                    await listens.until(Certainty.EXACT)
                    pub.send_multipart([b"", (1).to_bytes(8, "big"), b"?"])
                    await listens.until(Certainty.DEGRADED)
                    pub.send_multipart([b"", (2).to_bytes(8, "big"), cleared])
                    await listens.until(Certainty.EXACT)
        context.term()

    run(test())


def test_a_house_listens_when_its_policy_wants_to_know() -> None:
    async def test() -> None:
        async with running_sim(a_sim()) as sim:
            await work(sim, 3)
            aware = {"choose": {"policy": "cache-aware"}}
            for unheard in (
                {"choose": {"policy": "least-work"}},
                {**aware, "fleet": {"kv_events": {"listen": "off"}}},
            ):
                assert House(Settings.of(unheard)).kv_events is None
            async with running_house(aware, replicas=[sim.url]) as running:
                replica = ReplicaId(sim.url.removeprefix("http://"))
                heard = running.house.heard
                await until(lambda: heard[replica].certainty is Certainty.EXACT)
                assert running.house.caches()[replica].blocks == len(truth(sim))

    run(test())
