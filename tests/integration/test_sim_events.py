"""KV-cache events of the simulated replica, as a subscriber receives them."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
import zmq

from serving.sim.server import KvEventSettings, SimSettings, running_sim
from tests.integration.sim_clients import clients, run, until

EVENTS = SimSettings(
    block_size=4,
    blocks=64,
    kv_events=KvEventSettings("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", topic="kv@here"),
)


async def received_frames(peer: zmq.Socket[bytes], within_s: float = 5.0) -> list[bytes]:
    await until(lambda: bool(peer.poll(0)), within_s)
    return peer.recv_multipart(zmq.NOBLOCK)


def test_kv_events_are_published_in_vllms_frames_and_replayed_from_any_number() -> None:
    async def test() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        async with clients(EVENTS) as (sim, web):
            source = (await web.get("/kv_event_sources")).json()["0"]
            assert source["endpoint"] == sim.kv_events_endpoint
            live = context.socket(zmq.SUB)
            live.subscribe(b"kv@")
            live.connect(source["endpoint"])
            asking = context.socket(zmq.DEALER)
            asking.connect(source["replay_endpoint"])
            try:
                await asyncio.sleep(0.1)
                body = {"prompt": list(range(9)), "max_tokens": 4, "ignore_eos": True}
                await web.post("/v1/completions", json=body)
                batches = [await received_frames(live) for _ in range(2)]
                topic, number, payload = batches[0]
                assert (topic, number) == (b"kv@here", bytes(8))
                instant, events, rank = msgspec.msgpack.decode(payload)
                assert abs(instant - time.time()) < 60
                assert rank == 0
                (event,) = events
                assert event["type"] == "BlockStored"
                assert event["token_ids"] == list(range(8))
                assert event["parent_block_hash"] is None
                assert event["block_size"] == 4
                assert event["medium"] == "GPU"
                assert event["extra_keys"] == [None, None]
                assert "session_id" not in event
                follows = msgspec.msgpack.decode(batches[1][2])[1][0]
                assert follows["parent_block_hash"] == event["block_hashes"][1]
                assert (await web.post("/reset_prefix_cache")).status_code == 200
                batches.append(await received_frames(live))
                assert msgspec.msgpack.decode(batches[2][2])[1] == [{"type": "AllBlocksCleared"}]
                numbers = [int.from_bytes(batch[1], "big") for batch in batches]
                assert numbers == [0, 1, 2]
                asking.send_multipart((b"", (1).to_bytes(8, "big")))
                for batch in batches[1:]:
                    assert await received_frames(asking) == [b"", *batch]
                assert await received_frames(asking) == [b"", b"", b"\xff" * 8, b""]
                asking.send_multipart((b"not", b"a", b"request", b"at all"))
                asking.send_multipart((b"", (99).to_bytes(8, "big")))
                assert await received_frames(asking) == [b"", b"", b"\xff" * 8, b""]
            finally:
                live.close(linger=0)
                asking.close(linger=0)
                context.term()

    run(test)


def test_a_taken_endpoint_is_an_error_and_leaves_nothing_open() -> None:
    async def test() -> None:
        async with running_sim(EVENTS) as sim:
            taken = SimSettings(kv_events=KvEventSettings(sim.kv_events_endpoint))
            with pytest.raises(OSError, match="in use"):
                async with running_sim(taken):
                    pass
            with pytest.raises(OSError, match="in use"):
                async with running_sim(SimSettings(port=sim.port)):
                    pass

    run(test)
