"""A request whose head is recalled is the request that parsing would have told.

The same requests go one after the other on one connection, which recalls heads, and each on a
connection of its own, which has none to recall.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.accept.exchange import Exchange
from tests.fuzz.client_laws import Fixture, settle

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\n"

lines = st.sampled_from(
    [
        CHAT, CHAT, b"POST /v1/embeddings?a=ength: 2 HTTP/1.1\r\n", b"POST /health HTTP/1.1\r\n",
        b"GET /v1/chat/completions HTTP/1.1\r\n", b"POST /v1/embeddings HTTP/1.0\r\n",
        b"\r\n" + CHAT,
    ]
)  # fmt: skip
fields = st.lists(
    st.sampled_from(
        [
            b"Accept: a", b"Authorization: Bearer k", b"X-Strength: 2", b"X-Request-Id: mine",
            b"Connection: keep-alive", b"Connection: close", b"Connection: x-strength",
            b"Expect: 100-continue", b"Transfer-Encoding: chunked", b"Upgrade: h2c",
            b"Content-Type: application/json", b"X-Session-Id: s",
        ]
    ),
    max_size=3,
)  # fmt: skip
names = st.sampled_from([b"Content-Length: ", b"content-length: ", b"Content-Length:"])
lengths = st.one_of(st.none(), st.sampled_from([b"0", b"02", b"+2", b"2 ", b"9", b"2, 2"]))
MOST_BYTES = 32_768
bodies = st.sampled_from([b"", b"{}", b'{"a": 1}', b"x" * 100, b"y" * 20_000, b"z" * 40_000])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    body, length = draw(bodies), draw(lengths)
    said = b"%d" % len(body) if length is None else length
    block = [b"Host: a", *draw(fields), draw(names) + said, *draw(fields)]
    return draw(lines) + b"\r\n".join(block) + b"\r\n\r\n" + body


def plain(body: bytes, length: bytes, field: bytes = b"Accept: a") -> bytes:
    return CHAT + field + b"\r\nHost: a\r\nContent-Length: " + length + b"\r\n\r\n" + body


class Told(Fixture):
    """Keeps what it was asked, ids left out."""

    def __init__(self) -> None:
        super().__init__(MOST_BYTES)
        self.told: list[Any] = []

    async def live(self, exchange: Exchange) -> None:
        forwarded = exchange.forwarded.replace(exchange.request_id, b"id")
        given = {name: each for name, each in exchange.fields.items() if name != b"content-length"}
        self.told.append(
            (exchange.target, exchange.route, forwarded, given, exchange.keep_alive,
             exchange.takes_chunks, exchange.request_id == b"mine", repr(exchange.fault))
        )  # fmt: skip
        await super().live(exchange)


async def said(connections: list[list[bytes]]) -> tuple[list[Any], list[bytes]]:
    """What is asked of the house and what clients are answered, connection by connection."""
    fixture, written = Told(), []
    for reads in connections:
        lane, pipe = fixture.lane()
        for data in reads:
            if pipe.is_closed or pipe.has_ended:
                break
            at = len(pipe.written)
            lane.data_received(data)
            await settle(fixture)
            written.append(bytes(pipe.written[at:]))
        pipe.close()
        await settle(fixture)
    return fixture.told, [_without_id(each) for each in written]


def _without_id(reply: bytes) -> bytes:
    return b"\r\n".join(
        line for line in reply.split(b"\r\n") if not line.startswith(b"x-request-id")
    )


@given(requests(), st.lists(st.tuples(st.booleans(), requests()), min_size=1, max_size=4))
@example(plain(b"{}", b"2"), [(False, plain(b"x" * 40_000, b"40000")), (False, plain(b"{}", b"2"))])
@example(plain(b"{}", b"2"), [(False, plain(b"y" * 20_000, b"20000")), (True, b"")])
@example(plain(b"{}", b"2"), [(False, plain(b"{}{}", b"2"))])
@example(
    plain(b"{}", b"2", b"X-Strength: 2"), [(False, plain(b'{"a": 1}', b"2", b"X-Strength: 8"))]
)
@example(plain(b"{}", b"2", b"X-Request-Id: mine"), [(True, b"")])
@example(plain(b"{}", b"2").replace(b"Length: ", b"Length:"), [(True, b"")])
@example(plain(b"{}", b"2"), [(False, plain(b'{"a": 1}', b"8")), (True, b"")])
def test_one_connection_is_asked_what_many_would_be(
    first: bytes, more: list[tuple[bool, bytes]]
) -> None:
    reads = [first]
    for is_same, other in more:
        if not _is_whole(reads[-1]):
            break  # what is left over of it begins the next
        reads.append(reads[-1] if is_same else other)

    async def both() -> None:
        async with asyncio.timeout(10):
            told, written = await said([reads])
            told_apart, written_apart = await said([[each] for each in reads])
            assert written == written_apart[: len(written)]
            assert told == told_apart[: len(told)]

    asyncio.run(both())


@pytest.mark.parametrize("digits", range(1, 6))
def test_a_head_is_known_again_whatever_the_length_of_its_body(digits: int) -> None:
    async def law() -> None:
        fixture = Told()
        lane, pipe = fixture.lane()
        lane.data_received(plain(b"{}", b"2"))
        await settle(fixture)
        lane.parser = None  # type: ignore[assignment]  # nobody can read a head any more
        first = 10 ** (digits - 1)
        for size in (first - 1, first, first + 1, 2 * first, 3 * first - 1):
            body = b"%d" % (size % 10) * size
            lane.data_received(plain(body, b"%d" % size))
            await settle(fixture)
            assert pipe.written.endswith(b"/v1/chat/completions\n" + body)
            pipe.written.clear()
        with pytest.raises(AttributeError):
            lane.data_received(plain(b"{}", b"3"))

    asyncio.run(law())


def _is_whole(data: bytes) -> bool:
    """It is one request, as far as its framing goes."""
    head, _, body = data.partition(b"\r\n\r\n")
    lowered = head.lower()
    digits = lowered.rpartition(b"content-length:")[2].split(b"\r\n")[0].strip()
    is_framed = b"transfer-encoding" not in lowered and b"expect" not in lowered
    return is_framed and digits.isdigit() and int(digits) == len(body)
