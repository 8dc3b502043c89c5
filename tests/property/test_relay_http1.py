"""The response reader against h11, which shares nothing with it: any response, cut anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.errors import ProtocolBroken
from gateway.relay.http1 import (
    LAST_CHUNK,
    MAX_HEAD_BYTES,
    Header,
    ResponseReader,
    chunk,
    end_to_end,
)

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"\n\ndata: our own\n\n"
NAMES = ("x-one", "X-Two", "server", "date", "content-type", "set-cookie")
VALUES = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=9)


@dataclass(frozen=True)
class Response:
    """One response: its bytes, and what is in them."""

    wire: bytes
    status: int
    headers: list[Header]
    body: bytes
    ends: str  # "chunked", "length", "close" or "no body"
    keeps_alive: bool


@dataclass
class Told:
    """What a reader said over all reads of a connection."""

    body: bytes
    framed: bytes
    reader: ResponseReader
    after_reads: list[tuple[bytes, bytes]]  # (framed, body) after each read


def read(reads: list[bytes], reader: ResponseReader | None = None) -> Told:
    """Feed a reader as an attempt does, which relays nothing once the response is complete."""
    told = Told(b"", b"", reader or ResponseReader(), [])
    for data in reads:
        was_complete = told.reader.is_complete
        told.reader.feed(data)
        if told.reader.status and not was_complete:
            told.body += b"".join(told.reader.pieces)
            told.framed += told.reader.chunked(data)
        told.after_reads.append((told.framed, told.body))
    return told


def h11_body(framed: bytes) -> bytes:
    """The body of what we would have sent, read by h11. Fails if it is not whole and exact."""
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    peer.send(h11.EndOfMessage())
    peer.receive_data(HEAD + framed)
    body = b""
    while True:
        event = peer.next_event()
        if isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert peer.trailing_data == (b"", False), "bytes after the end"
            return body
        else:
            assert isinstance(event, h11.Response), event


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in reads, cut at the places given (modulo its length)."""
    places = sorted({0, len(data), *(each % (len(data) + 1) for each in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


@st.composite
def chunked_bodies(draw: st.DrawFn, body: bytes) -> bytes:
    """A body in chunks of any sizes, sizes spelt in any way, with extensions and trailers."""
    pieces = [
        piece for piece in cut(body, draw(st.lists(st.integers(0, 2**16), max_size=5))) if piece
    ]
    wire = b""
    for piece in pieces:
        size = draw(st.sampled_from((b"%x", b"%X", b"0%x", b"000%x"))) % len(piece)
        extension = draw(st.sampled_from((b"", b"", b"", b";a=b", b';a="b;c"', b";a")))
        wire += size + extension + b"\r\n" + piece + b"\r\n"
    trailers = draw(st.sampled_from((b"", b"", b"X-Sum: 0\r\n", b"A: b\r\nC: 0\r\n")))
    return wire + draw(st.sampled_from((b"0", b"00", b"0;a=b"))) + b"\r\n" + trailers + b"\r\n"


INTERIM = (
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\nx-wait: yes\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\ncontent-length: 7\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\ntransfer-encoding: chunked\r\n\r\n",
)
BODIES = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from(
            (b"\r\n", b"\r", b"0", b"5\r\n", b"0\r\n\r\n", b"data: x\n\n", b"HTTP/1.1 200 OK\r\n")
        ),
        max_size=8,
    ).map(b"".join),
)


@st.composite
def responses(draw: st.DrawFn) -> Response:
    ends = draw(st.sampled_from(("chunked", "chunked", "length", "close", "no body")))
    statuses = (204, 304) if ends == "no body" else (200, 201, 302, 400, 429, 500, 503, 599)
    status = draw(st.sampled_from(statuses))
    version = b"1.1" if ends == "chunked" else draw(st.sampled_from((b"1.1", b"1.1", b"1.0")))
    fields = draw(st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=4))
    headers = [(name.encode(), value.strip(" ").encode("latin-1")) for name, value in fields]
    connection = draw(st.sampled_from((b"", b"close", b"keep-alive")))
    if connection:
        headers.append((b"Connection", connection))
    body = b"" if ends == "no body" else draw(BODIES)
    framed = body
    if ends == "length":
        headers.append((b"Content-Length", b"%d" % len(body)))
    elif ends == "chunked":
        headers.append((b"Transfer-Encoding", draw(st.sampled_from((b"chunked", b"Chunked")))))
        framed = draw(chunked_bodies(body))
    headers = draw(st.permutations(headers))
    before = draw(st.sampled_from((b"", b"", b"\r\n", b"\r\n\r\n")))
    before += b"".join(draw(st.lists(st.sampled_from(INTERIM), max_size=2)))
    lines = b"".join(b"%b: %b\r\n" % field for field in headers)
    reason = draw(st.sampled_from((b"OK", b"", b"Whatever It Is")))
    wire = before + b"HTTP/%b %d %b\r\n%b\r\n" % (version, status, reason, lines) + framed
    keeps = connection == b"keep-alive" if version == b"1.0" else connection != b"close"
    return Response(
        wire,
        status,
        [(name.lower(), value) for name, value in headers],
        body,
        ends,
        keeps and ends != "close",
    )


CUTS = st.lists(st.integers(0, 2**16), max_size=8)


def lines(headers: list[Header]) -> bytes:
    """What the client is to be told of these."""
    return b"".join(b"%b: %b\r\n" % field for field in end_to_end(headers))


def check(response: Response, told: Told) -> None:
    reader = told.reader
    if response.ends == "close":
        assert not reader.is_complete
        assert reader.end_of_connection()
        told.framed += LAST_CHUNK
    assert (reader.status, reader.fields) == (response.status, lines(response.headers))
    assert reader.is_complete
    assert reader.keeps_alive == response.keeps_alive
    assert told.body == response.body
    assert h11_body(told.framed) == response.body
    if response.ends == "length":
        assert reader.length == len(response.body)


@settings(max_examples=200, deadline=None)
@given(responses(), CUTS)
@example(
    Response(
        INTERIM[0] + HEAD + b"2\r\nhi\r\n0\r\n\r\n",
        200,
        [(b"transfer-encoding", b"chunked")],
        b"hi",
        "chunked",
        True,
    ),
    [],
)
@example(
    Response(
        b"\r\n\r\n" + HEAD + b"2\r\nhi\r\n0\r\n\r\n",
        200,
        [(b"transfer-encoding", b"chunked")],
        b"hi",
        "chunked",
        True,
    ),
    [],
)
def test_a_response_is_the_same_wherever_reads_cut_it(response: Response, cuts: list[int]) -> None:
    told = read(cut(response.wire, cuts))
    check(response, told)
    assert not told.reader.has_surplus


@settings(max_examples=100, deadline=None)
@given(responses())
def test_a_response_that_comes_byte_by_byte_is_the_same(response: Response) -> None:
    check(response, read([response.wire[i : i + 1] for i in range(len(response.wire))]))


@settings(max_examples=200, deadline=None)
@given(responses(), CUTS)
def test_after_every_read_an_event_of_our_own_can_follow(
    response: Response, cuts: list[int]
) -> None:
    told = read(cut(response.wire, cuts))
    for framed, body in told.after_reads:
        if framed.endswith(LAST_CHUNK) and told.reader.is_complete and framed == told.framed:
            assert h11_body(framed) == body
        else:
            assert h11_body(framed + chunk(EVENT) + LAST_CHUNK) == body + EVENT


@settings(max_examples=300, deadline=None)
@given(responses().filter(lambda one: one.ends != "close"), responses(), CUTS, st.booleans())
def test_a_second_response_never_reaches_the_body_and_is_told(
    first: Response, second: Response, cuts: list[int], is_whole: bool
) -> None:
    surplus = second.wire.lstrip(b"\r\n")
    if not is_whole:
        surplus = surplus[: max(1, len(surplus) // 2)]
    told = read(cut(first.wire + surplus, cuts))
    check(first, told)
    assert told.reader.has_surplus


@settings(max_examples=200, deadline=None)
@given(responses().filter(lambda one: one.keeps_alive), st.binary(min_size=1, max_size=20), CUTS)
def test_surplus_bytes_never_reach_the_body_and_are_told(
    response: Response, surplus: bytes, cuts: list[int]
) -> None:
    told = read(cut(response.wire + surplus, cuts))
    check(response, told)
    assert told.reader.has_surplus or not surplus.strip(b"\r\n")


@settings(max_examples=200, deadline=None)
@given(st.lists(responses().filter(lambda one: one.keeps_alive), max_size=4), CUTS)
def test_responses_of_one_connection_do_not_touch_each_other(
    following: list[Response], cuts: list[int]
) -> None:
    reader = ResponseReader()
    for response in following:
        reader.expect()
        assert (reader.status, reader.fields, reader.is_complete) == (0, b"", False)
        check(response, read(cut(response.wire, cuts), reader))
        assert not reader.has_surplus


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A response with some bytes changed, lost or doubled."""
    wire = bytearray(draw(responses()).wire)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(wire) - 1)))
        match draw(st.integers(0, 2)):
            case 0:
                wire[at : at + 1] = draw(st.binary(min_size=1, max_size=2))
            case 1:
                del wire[at : at + draw(st.integers(1, 9))]
            case _:
                wire[at:at] = wire[at : at + draw(st.integers(1, 9))]
    return bytes(wire)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), damaged()), CUTS)
def test_garbage_gives_facts_or_protocol_broken_and_leaves_the_client_at_a_boundary(
    garbage: bytes, cuts: list[int]
) -> None:
    reader = ResponseReader()
    framed = body = b""
    for data in cut(garbage, cuts):
        try:
            reader.feed(data)
        except ProtocolBroken:
            break
        assert reader.status == 0 or 200 <= reader.status <= 999
        if not reader.status:
            assert not reader.pieces
            continue
        framed += reader.chunked(data)
        body += b"".join(reader.pieces)
        if reader.is_complete:
            assert h11_body(framed) == body
            return
    assert h11_body(framed + chunk(EVENT) + LAST_CHUNK) == body + EVENT


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 000 Nothing\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 099 Less\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n",
        HEAD + b"-1\r\n",
        HEAD + b"fffffffffffffffff\r\n",
        HEAD + b"5\nhello\n",
        HEAD + b"5\r\nhello0\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
def test_what_cannot_be_trusted_is_protocol_broken(wire: bytes) -> None:
    with pytest.raises(ProtocolBroken):
        ResponseReader().feed(wire)


@pytest.mark.parametrize("piece", [b"a" * 4000, b"x: y\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_head_without_an_end_is_protocol_broken_before_it_fills_memory(piece: bytes) -> None:
    reader = ResponseReader()
    if not piece.startswith(b"HTTP"):
        reader.feed(b"HTTP/1.1 200 OK\r\nx: ")
    fed = MAX_HEAD_BYTES // len(piece) - 9
    for _ in range(fed):
        reader.feed(piece)
    with pytest.raises(ProtocolBroken):
        reader.feed(10 * piece)


def test_an_interim_response_frames_nothing_but_itself() -> None:
    reader = ResponseReader()
    told = read([INTERIM[3] + b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"], reader)
    assert (told.body, reader.length, reader.is_chunked) == (b"hi", 2, False)
    reader = ResponseReader()
    told = read([INTERIM[2] + b"HTTP/1.1 200 OK\r\n\r\nhi"], reader)
    assert (told.body, reader.length, reader.ends_with_connection) == (b"hi", None, True)


def test_whole_chunks_go_on_as_they_came() -> None:
    reader = ResponseReader()
    reader.feed(HEAD)
    data = b"5;note=1\r\nhello\r\n"
    reader.feed(data)
    assert reader.chunked(data) is data
    last = b"1\r\n!\r\n0\r\n\r\n"
    reader.feed(last)
    assert reader.chunked(last) is last
    assert reader.is_complete


def test_trailers_end_with_us_however_the_response_is_cut() -> None:
    wire = HEAD + b"2\r\nhi\r\n0\r\nX-Sum: 0\r\n\r\n"
    assert (
        read([wire]).framed == read([HEAD, wire[len(HEAD) :]]).framed == chunk(b"hi") + LAST_CHUNK
    )


def test_only_end_to_end_fields_go_to_the_client() -> None:
    headers = [
        (b"content-type", b"text/event-stream"),
        (b"connection", b"keep-alive, X-Hop"),
        (b"x-hop", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"transfer-encoding", b"chunked"),
        (b"trailer", b"x-sum"),
        (b"upgrade", b"h2c"),
        (b"content-length", b"12"),
        (b"x-request-id", b"the replica's"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
    ]
    assert end_to_end(headers) == [
        (b"content-type", b"text/event-stream"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
    ]
