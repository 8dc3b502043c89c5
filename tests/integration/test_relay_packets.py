"""What a stream costs on the wire, counted by the kernel at the replica's end."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys

import pytest

from gateway.vocabulary import Outcome
from tests.house import run
from tests.misbehaving import EVENT, a_stream_post, house_before
from tests.scripted import STREAM_HEAD, Received, Scripted, chunked

EVENTS = 60
SEGMENTS_IN, DATA_SEGMENTS_IN = 140, 152  # where they are in Linux's struct tcp_info


def acknowledgements(connected: socket.socket) -> int:
    """So many packets without data have come in."""
    told = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    segments, with_data = (
        struct.unpack_from("I", told, at)[0] for at in (SEGMENTS_IN, DATA_SEGMENTS_IN)
    )
    return int(segments - with_data)


@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux tells of a connection")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_not_every_event_of_a_stream_is_acknowledged_by_itself(loop: str) -> None:
    told: list[int] = []

    async def play(
        _received: Received, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(STREAM_HEAD)
        for count in range(2 + EVENTS):
            writer.write(chunked(EVENT, end=False))
            await asyncio.sleep(0.004)
            if count == 1:  # the gateway knows that it is a stream
                told.append(acknowledgements(writer.get_extra_info("socket")))
        told.append(acknowledgements(writer.get_extra_info("socket")))
        writer.write(b"0\r\n\r\n")

    async def law() -> None:
        async with house_before(Scripted(play)) as running:
            wire = await running.connect()
            await wire.send(a_stream_post())
            await wire.reader.readuntil(b"0\r\n\r\n")
            wire.abort()
            assert running.outcomes == {Outcome.FINISHED: 1}

    run(law(), loop=loop)
    first, last = told
    assert 1 <= last - first <= EVENTS * 0.55, "every other one at most, and some"
