"""Whom a link speaks to: what names are found to be, and what becomes of what nobody hears."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.clock import monotonic
from gateway.peers.link import Link, listen
from gateway.settings import PeersSettings
from tests.house import run, until
from tests.integration.test_peers_link import Rooms, a_mute_link, speaking


def two_free_ports() -> int:
    """The first of two, one after the other, that nobody has."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second:
                try:
                    second.bind(("127.0.0.1", port + 1))
                except OSError:
                    continue
                return port


@asynccontextmanager
async def a_listener(port: int) -> AsyncIterator[asyncio.Queue[bytes]]:
    """Somebody who is spoken to."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    class Ear(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            heard.put_nowait(data)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Ear, local_addr=("127.0.0.1", port))
    try:
        yield heard
    finally:
        transport.close()


def a_link(settings: PeersSettings) -> tuple[Link, Rooms]:
    rooms = Rooms()
    return Link(settings, rooms, (monotonic, time.time), listen(settings)), rooms


def test_every_worker_of_every_pod_behind_a_name_is_spoken_to() -> None:
    async def law() -> None:
        port = two_free_ports()
        async with a_listener(port) as first, a_listener(port + 1) as second:
            settings = PeersSettings.of(
                {"host": "127.0.0.1", "dns": "localhost", "port": port, "workers": 2}
            )
            rooms, sock = Rooms(), listen(PeersSettings.of({"host": "127.0.0.1"}))
            link = Link(settings, rooms, (monotonic, time.time), sock)
            async with speaking(link):
                await asyncio.wait_for(first.get(), 5.0)
                await asyncio.wait_for(second.get(), 5.0)

    run(law())


def test_a_worker_listens_at_its_own_port_and_says_which_is_taken() -> None:
    port = two_free_ports()
    settings = PeersSettings.of({"host": "127.0.0.1", "port": port})
    with listen(settings, 1) as sock:
        assert sock.getsockname()[1] == port + 1
        with pytest.raises(OSError, match=r"peers: .*UDP port"):
            listen(settings, 1)


def test_a_name_that_cannot_be_looked_up_for_a_while_keeps_what_it_had(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def law() -> None:
        port = two_free_ports()
        loop = asyncio.get_running_loop()
        look_up, looks, is_down = loop.getaddrinfo, 0, False

        async def getaddrinfo(*args: object, **named: object) -> object:
            nonlocal looks
            looks += 1
            if is_down:
                raise OSError("no name server")
            return await look_up(*args, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        settings = PeersSettings.of(
            {
                "host": "127.0.0.1",
                "addresses": [f"localhost:{port}"],
                "find_every_s": 0.05,
                "whole_every_s": 0.05,
            }
        )
        async with a_listener(port) as heard:
            link, _ = a_link(settings)
            async with speaking(link):
                await asyncio.wait_for(heard.get(), 5.0)
                is_down, before = True, looks
                await until(lambda: looks >= before + 3)
                while not heard.empty():
                    heard.get_nowait()
                await asyncio.wait_for(heard.get(), 5.0)
                is_down, before = False, looks
                await until(lambda: looks >= before + 3)

    with caplog.at_level(logging.WARNING, "gateway.peers.link"):
        run(law())
    said = [each.getMessage() for each in caplog.records]
    assert said == ["peers: localhost: no name server", "peers: found again"], "once each"


def test_what_cannot_be_sent_is_counted() -> None:
    with a_mute_link() as (link, _, _):
        link.error_received(OSError("network is unreachable"))
        assert link.datagrams == {"undelivered": 1}


def test_an_address_of_the_other_family_is_told_apart_by_its_brackets() -> None:
    async def law() -> None:
        settings = PeersSettings.of({"host": "::1"})
        try:
            one_sock = listen(settings)
        except OSError:
            pytest.skip("no IPv6 on this machine")
        at = one_sock.getsockname()[1]
        ours = Rooms()
        one = Link(settings, ours, (monotonic, time.time), one_sock, [("::1", 9)])
        knobs = {"host": "::1", "addresses": [f"[::1]:{at}"]}
        two, theirs = a_link(PeersSettings.of(knobs))
        async with speaking(one, two):
            await until(lambda: len(ours.names) == len(theirs.names) == 2)

    run(law())
