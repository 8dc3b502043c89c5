"""A response whose head is recalled is the response that parsing would have told.

The same reads go to one reader, which recalls heads, and each response's to a reader of its own,
which has none to recall.
"""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.errors import ProtocolBroken
from gateway.relay.http1 import ResponseReader
from tests.property.test_relay_http1 import CUTS, INTERIM, cut

DATE = b"Date: Sun, 06 Nov 1994 08:49:37 GMT"
NEXT = DATE.replace(b"37", b"38")
TIGHT = DATE.replace(b": ", b":")

begins = st.sampled_from(
    [
        b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b"HTTP/1.1 404 Not Found", b"HTTP/1.0 200 OK",
        b"HTTP/1.1 204 None", b"HTTP/1.1 304 The Same", b"\r\nHTTP/1.1 200 OK",
        INTERIM[0] + b"HTTP/1.1 200 OK", INTERIM[2] + b"HTTP/1.1 200 OK", INTERIM[2],
    ]
)  # fmt: skip
fields = st.lists(
    st.sampled_from(
        [
            DATE, DATE, NEXT, DATE.replace(b"Sun", b" Su"), DATE.replace(b"06", b"\x000"),
            DATE.replace(b": ", b":"), DATE + b" ", b"Date: today", b"X-Date: " + DATE[6:],
            DATE[:-8] + b"\r\na:b GMT",
            b"Server: engine", b"X-Strength: 2", b"X-Content-Length: 2", b"X-Request-Id: its",
            b"Connection: close", b"Connection: keep-alive", b"Connection: date, server",
            b"Transfer-Encoding: chunked",
        ]
    ),
    max_size=3,
)  # fmt: skip
names = st.sampled_from([b"Content-Length: ", b"content-length: ", b"Content-Length:"])
lengths = st.one_of(st.none(), st.none(), st.sampled_from([b"0", b"02", b"+2", b"2 ", b"9"]))
bodies = st.sampled_from(
    [b"", b"{}", b"[]", b"{}\r\n", b"x" * 9, b"x" * 10, b"2\r\n{}\r\n0\r\n\r\n"]
)
"""Nine and ten bytes: a digit more."""


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    body, length = draw(bodies), draw(lengths)
    said = b"%d" % len(body) if length is None else length
    block = [draw(begins), *draw(fields), draw(names) + said, *draw(fields)]
    return b"\r\n".join(block) + b"\r\n\r\n" + body


def plain(body: bytes, *before: bytes, status: bytes = b"200 OK") -> bytes:
    block = [b"HTTP/1.1 " + status, *before, b"Content-Length: %d" % len(body), b"Server: engine"]
    return b"\r\n".join(block) + b"\r\n\r\n" + body


HINTED = b"HTTP/1.1 103 Hints\r\nContent-Length: %d\r\n\r\n%b" % (len(plain(b"{}")), plain(b"{}"))
"""With an interim response whose length is that of what follows it, and means nothing."""


def told(reader: ResponseReader, reads: list[bytes]) -> tuple[list[Any], bool]:
    """What a reader says of one response, read by read; and whether another may follow."""
    said: list[Any] = []
    reader.expect()
    for data in reads:
        try:
            reader.feed(data)
        except ProtocolBroken:
            return [*said, "broken"], False
        said.append(
            (
                reader.status, reader.fields, b"".join(reader.pieces), reader.chunked(data),
                reader.length, reader.is_chunked, reader.is_complete, reader.keeps_alive,
                reader.has_surplus, reader.is_untouched, reader.ends_with_connection,
            )
        )  # fmt: skip
    return said, reader.is_complete and reader.keeps_alive and not reader.has_surplus


@given(
    st.lists(st.tuples(st.sampled_from((0, 0, 1, 2)), responses(), CUTS | st.just([])), min_size=2)
)
@example([(0, plain(b"{}", DATE), []), (0, plain(b"[]", NEXT), []), (0, plain(b"{}", DATE), [])])
@example([(0, plain(b"{}"), []), (0, plain(b"{}") + plain(b"[]"), [])])
@example([(0, plain(b"{}"), []), (0, plain(b"{}")[:-1], [])])
@example([(0, plain(b"{}"), []), (0, plain(b"x" * 10)[:-1], [])])  # a digit more
@example([(0, plain(b"{}"), []), (0, plain(b"{}"), [3]), (0, plain(b"[]"), [])])
@example([(0, plain(b"{}"), []), (0, b"\r\n" + plain(b"{}"), []), (0, plain(b"[]"), [])])
@example([(0, plain(b"", status=b"204 No"), []), (0, plain(b"{}", status=b"204 No"), [])])
@example([(0, plain(b"", status=b"304 No"), []), (0, plain(b"{}", status=b"304 No"), [])])
@example([(0, plain(b"{}", DATE, NEXT), []), (0, plain(b"{}", NEXT, NEXT), [])])
@example([(0, plain(b"{}", b"Connection: date", DATE), []), (2, b"", [])])
@example([(0, plain(b"{}", TIGHT, DATE), []), (0, plain(b"{}", TIGHT, NEXT), [])])
@example([(0, plain(b"{}"), [9]), (0, plain(b"{}")[9:], [])])
@example([(0, plain(b"{}"), []), (0, b"HTTP" + plain(b"{}"), [4])])
@example([(0, HINTED, []), (1, b"", [])])
@example([(0, plain(b"{}", DATE), []), (0, plain(b"{}", DATE.replace(b" 06", b"\r\n6")), [])])
@example([(0, plain(b"{}", DATE), []), (0, plain(b"{}", DATE.replace(b"Sun", b" Su")), [])])
@example([(0, plain(b"{}", DATE), []), (0, plain(b"{}", DATE.replace(b"06", b"\x00\x00")), [])])
def test_one_reader_says_what_many_would(
    following: list[tuple[int, bytes, list[int]]],
) -> None:
    reader, last = ResponseReader(), following[0][1]
    for kind, other, cuts in following:
        # Another; or the last one again; or that, but for its date.
        last = (other, last, last.replace(b":37 GMT", b":38 GMT"))[kind]
        reads = cut(last, cuts)
        said, may_go_on = told(reader, reads)
        assert said == told(ResponseReader(), reads)[0]
        if not may_go_on:
            return
    reader.feed(last)  # unasked, and seen as such, whoever read the response
    assert reader.has_surplus


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=12), st.sampled_from((DATE, NEXT)))))
def test_a_head_is_parsed_once(answers: list[tuple[bytes, bytes]]) -> None:
    """... as long as the length of the body has as many digits."""
    reader, before = ResponseReader(), b"{}"
    assert told(reader, [plain(before, DATE)])[1]
    for body, date in answers:
        reader.expect()
        known = reader._recall
        reader.feed(plain(body, date))
        assert (b"".join(reader.pieces), reader.length) == (body, len(body))
        assert (reader._recall is known) == (len(str(len(body))) == len(str(len(before))))
        before = body
