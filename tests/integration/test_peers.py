"""Gateways that know of each other: real ones, linked by real datagrams on loopback."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import astuple

from gateway.choose import target
from gateway.hold import capacity
from gateway.peers.rows import Datagram, Kind, Row, Topic
from gateway.peers.wire import encode
from gateway.vocabulary import ANYBODY, ModelName
from serving.sim.server import running_sim
from tests.builders import MODEL, a_chat, a_get, a_post, a_route
from tests.house import RunningHouse, a_sim, run, running_house, until
from tests.keyed import ACME, a_document

SOON_S = 5.0  # far more than the 5 ms it takes, on a machine that does other things too


def free_ports(count: int) -> list[int]:
    """UDP ports that nobody has."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def linked(ports: list[int], index: int, **knobs: Any) -> dict[str, Any]:
    addresses = [f"127.0.0.1:{port}" for at, port in enumerate(ports) if at != index]
    return {"host": "127.0.0.1", "port": ports[index], "addresses": addresses, **knobs}


@asynccontextmanager
async def gateways(
    count: int, url: str, *, peers: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[list[RunningHouse]]:
    """So many before one replica, who have heard each other."""
    ports = free_ports(count)
    async with AsyncExitStack() as stack:
        houses = [
            await stack.enter_async_context(
                running_house({"peers": linked(ports, index, **(peers or {})), **settings}, [url])
            )
            for index in range(count)
        ]
        await until(lambda: all(heard(each) == count - 1 for each in houses))
        yield houses


def heard(house: RunningHouse) -> int:
    link = house.house.link
    return 0 if link is None else len(link.peers.present)


def datagrams_of(house: RunningHouse) -> Mapping[str, int]:
    link = house.house.link
    assert link is not None
    return link.datagrams


async def within(law: Callable[[], bool], within_s: float = SOON_S) -> None:
    await until(law, within_s=within_s)


def test_each_knows_within_a_moment_what_the_others_have_in_flight() -> None:
    async def law() -> None:
        async with (
            running_sim(a_sim(speed=0.0005)) as sim,
            gateways(3, sim.url) as (one, two, three),
            one.wire() as wire,
        ):
            await wire.send(a_post(a_chat(max_tokens=400, stream=True)))
            await within(lambda: one.ledgers[0][0] == 1)
            await within(lambda: [each.ledgers[0][0] for each in (two, three)] == [1, 1])
            assert two.replicas[0].own_requests == 0
            await wire.close()  # it leaves: nothing is in flight any more, anywhere
            await within(lambda: not any(each.ledgers[0][0] for each in (one, two, three)))

    run(law())


def test_a_change_is_told_at_once_and_the_next_ones_when_it_is_time() -> None:
    async def law() -> None:
        seldom = {"tell_every_s": 600.0, "whole_every_s": 600.0, "silent_s": 700.0}
        async with (
            running_sim(a_sim(speed=0.0005)) as sim,
            gateways(2, sim.url, peers=seldom) as (one, two),
        ):
            told = datagrams_of(one)["sent"]
            async with one.wire() as wire:
                await wire.send(a_post(a_chat(max_tokens=400, stream=True)))
                await within(lambda: two.ledgers[0][0] == 1)
                await wire.close()
            await within(lambda: one.ledgers[0][0] == 0)
            await asyncio.sleep(0.5)
            assert two.ledgers[0][0] == 1, "not yet"
            assert datagrams_of(one)["sent"] - told <= 2, "a prompt and a row"

    run(law())


def test_who_has_nothing_new_says_nothing() -> None:
    async def law() -> None:
        async with (
            running_sim(a_sim()) as sim,
            gateways(2, sim.url, peers={"whole_every_s": 600.0, "silent_s": 700.0}) as both,
        ):
            await asyncio.sleep(0.3)  # what they are asked as they come is answered
            sent = [datagrams_of(each)["sent"] for each in both]
            await asyncio.sleep(0.5)
            assert [datagrams_of(each)["sent"] for each in both] == sent

    run(law())


def test_others_are_shown_and_datagrams_counted() -> None:
    async def law() -> None:
        async with (
            running_sim(a_sim()) as sim,
            gateways(2, sim.url) as (one, two),
        ):
            await within(lambda: datagrams_of(one)["heard"] > 1)
            (shown,) = json.loads((await one.ask(a_get("/debug/fleet"))).body)["peers"]
            link = two.house.link
            assert link is not None
            assert shown["name"] == link.name
            assert shown["heard_s_ago"] < 3.0
            metrics = (await one.ask(a_get("/metrics"))).body.decode()
            assert 'gateway_peer_datagrams_total{result="strange"} 0.0' in metrics
            assert 'gateway_peer_datagrams_total{result="heard"}' in metrics

    run(law())


def test_who_leaves_says_goodbye_and_who_comes_back_is_heard() -> None:
    async def law() -> None:
        ports = free_ports(2)
        async with (
            running_sim(a_sim()) as sim,
            running_house({"peers": linked(ports, 0)}, [sim.url]) as stays,
        ):
            for _ in range(2):
                async with running_house({"peers": linked(ports, 1)}, [sim.url]) as comes:
                    await within(lambda: heard(stays) == 1)
                    await within(lambda: heard(comes) == 1)
                await within(lambda: heard(stays) == 0)  # before it would be silent

    run(law())


def test_a_silent_gateways_share_expires() -> None:
    async def law() -> None:
        (port,) = free_ports(1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dead:
            dead.bind(("127.0.0.1", 0))
            peers = linked([port, dead.getsockname()[1]], 0, silent_s=0.4)
            async with (
                running_sim(a_sim()) as sim,
                running_house({"peers": peers}, [sim.url]) as house,
            ):
                name = house.replicas[0].id
                gate_part = capacity.Part(unbegun=700, sequences=5, kv_tokens=2000)
                policy_part = target.Part(sent=700, in_use=1500)
                row = (5, 900, *astuple(gate_part), *astuple(policy_part))
                rows: list[tuple[Topic, str, Row]] = [(Topic.REPLICA, name, row)]
                number = 0
                async with asyncio.timeout(SOON_S):
                    while house.ledgers != [(5, 900)]:  # at first it may still be a stranger
                        number += 1  # or it would be a replay, which is not heard after a silence
                        said = Datagram("dead", 1, number, Kind.WHOLE, rows=rows)
                        dead.sendto(encode(said), ("127.0.0.1", port))
                        await asyncio.sleep(0.01)
                assert house.house.gate.part(name).unbegun == 0
                await within(lambda: house.ledgers == [(0, 0)])
                assert heard(house) == 0

    run(law())


def all_refused(datagrams: Mapping[str, int]) -> bool:
    return datagrams["strange"] + datagrams["unreadable"] == 2


def test_strangers_are_not_heard(tmp_path: Path) -> None:
    async def law() -> None:
        secret = tmp_path / "secret"
        secret.write_text("of all gateways\n")
        (port,) = free_ports(1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))
            for knobs in ({"addresses": ["127.0.0.2:1"]}, {"secret": str(secret)}):
                peers = {**linked([port, stranger.getsockname()[1]], 0), **knobs}
                async with running_house({"peers": peers}) as house:
                    link = house.house.link
                    assert link is not None
                    said = encode(Datagram("stranger", 1, 1, Kind.WHOLE))
                    stranger.sendto(said, ("127.0.0.1", port))
                    stranger.sendto(b"noise", ("127.0.0.1", port))
                    await within(partial(all_refused, link.datagrams))
                    assert heard(house) == 0

    run(law())


def test_a_replicas_bound_holds_for_all_together_and_nobody_is_left_out() -> None:
    """One gateway has all that the replica may be given, and more waiting; then another comes."""

    async def law() -> None:
        async with (
            running_sim(a_sim(speed=0.05)) as sim,
            gateways(2, sim.url, hold={"max_sequences": 4}) as houses,
            AsyncExitStack() as stack,
        ):
            most, order = 0, list[int]()

            async def ask(which: int) -> None:
                wire = await stack.enter_async_context(houses[which].wire())
                await wire.send(a_post(a_chat(max_tokens=60, stream=True)))
                assert (await wire.reply()).status == 200
                order.append(which)

            tasks = [asyncio.create_task(ask(0)) for _ in range(24)]
            await within(lambda: houses[1].ledgers[0][0] == 24)
            tasks += [asyncio.create_task(ask(1)) for _ in range(4)]
            while not all(task.done() for task in tasks):
                most = max(most, sim.engine.running + sim.engine.waiting)
                await asyncio.sleep(0.005)
            for task in tasks:
                task.result()
            assert most <= 6  # what both give in the same moment is too many
            assert order.index(1) < 20  # it had its share before all the others were through

    run(law())


KEY = ("authorization", f"Bearer {ACME.key}")


@asynccontextmanager
async def limited(
    folder: Path, count: int, url: str, **limits: int
) -> AsyncIterator[list[RunningHouse]]:
    """Gateways that keep these limits of a tenant's."""
    path = folder / "tenants.yaml"
    path.write_text(a_document(limits))
    async with gateways(count, url, tenants={"path": str(path)}) as houses:
        yield houses


def test_requests_a_minute_are_of_all_together(tmp_path: Path) -> None:
    async def law() -> None:
        async with (
            running_sim(a_sim()) as sim,
            limited(tmp_path, 3, sim.url, requests_per_minute=60) as houses,
        ):
            admitted, began = 0, time.perf_counter()

            async def hammer(house: RunningHouse) -> None:
                nonlocal admitted
                async with house.wire() as wire:
                    while time.perf_counter() - began < 3.0:
                        await wire.send(a_post(a_chat(max_tokens=1), headers=[KEY]))
                        status = (await wire.reply()).status
                        admitted += status == 200
                        await asyncio.sleep(0.01)  # all of this is one loop: news is to come

            await asyncio.gather(*[hammer(house) for house in houses for _ in range(4)])
            took_s = time.perf_counter() - began
            flowed = 60 * (1 + took_s / 60)
            assert flowed * 0.95 - 1 <= admitted <= flowed * 1.05

    run(law())


def test_so_many_at_once_are_of_all_together(tmp_path: Path) -> None:
    async def law() -> None:
        async with (
            running_sim(a_sim(speed=0.0005)) as sim,
            limited(tmp_path, 3, sim.url, max_concurrent=8) as houses,
            AsyncExitStack() as stack,
        ):
            statuses = []
            for each in range(15):
                wire = await stack.enter_async_context(houses[each % 3].wire())
                await wire.send(a_post(a_chat(max_tokens=900, stream=True), headers=[KEY]))
                statuses.append((await wire.head()).status)
                await asyncio.sleep(0.06)
            assert statuses == [200] * 8 + [429] * 7

    run(law())


def test_a_prompt_that_one_has_sent_is_known_to_the_other_before_the_engine_has_read_it() -> None:
    async def law() -> None:
        async with (
            running_sim(a_sim(speed=0.0005)) as sim,
            gateways(2, sim.url, choose={"policy": "cache-aware"}) as (one, two),
            one.wire() as wire,
        ):
            text = "the same beginning, " * 400
            body = a_chat(text, max_tokens=400, stream=True)
            path = a_route().path

            def foreseen() -> int:
                table = two.house.route_document(path, body, ANYBODY)["replicas"]
                hit: int = table[0]["hit_tokens"]
                return hit

            assert not foreseen()
            await wire.send(a_post(body))
            await within(lambda: foreseen() > 500)

    run(law())


def test_every_gateway_answers_for_the_demand_at_all() -> None:
    async def law() -> None:
        async with (
            running_sim(a_sim(speed=0.0005)) as sim,
            gateways(2, sim.url) as (one, two),
            one.wire() as wire,
        ):
            await wire.send(a_post(a_chat(max_tokens=400, stream=True)))
            model = ModelName(MODEL)
            await within(lambda: two.house.demands.demand(model).inflight_requests == 1)
            assert two.house.demands.demand(model).is_active
            assert two.house.demands.share(model).inflight_requests == 0

    run(law())
