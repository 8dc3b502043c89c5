"""The client side of HTTP/1.1, without I/O: bytes of a connection in, facts about a response out.

Asked, after each read: is the head here, which body bytes came, is the response complete, and may
the bytes just read go to an HTTP/1.1 client as they are?

Invariants. The body handed out is exactly the body the replica framed: bytes past its end never
count. The framing handed out is always at a chunk boundary between two reads, so that an event of
our own can be added at any time (RFC 9112, section 7.1). Any input yields either facts or
ProtocolBroken, and the same body however it is cut into reads.
"""

from __future__ import annotations

from typing import Final

import httptools

from gateway.errors import ProtocolBroken
from gateway.relay.recall import Recall, recall

Header = tuple[bytes, bytes]

LAST_CHUNK: Final = b"0\r\n\r\n"

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that speak to the next hop only: RFC 9110, section 7.6.1."""

MAX_HEAD_BYTES: Final = 256 * 1024
"""What comes before a body, interim responses and all. An engine's head is under a kilobyte; one
without an end must not fill our memory."""

_NOT_FORWARDED: Final = HOP_BY_HOP | {b"content-length", b"x-request-id"}
"""Whoever writes to the client frames anew, and has its own id."""

_NO_BODY: Final = frozenset({204, 304})


def unframed(whole_chunk: bytes) -> bytes:
    """The body of one whole chunk."""
    return whole_chunk[whole_chunk.index(b"\r\n") + 2 : -2]


def _size_line(read_bytes: int) -> bytes:
    """How a read of so many bytes begins if it is one whole chunk; empty if it cannot be one.

    There is one such line at most: of a longer body, the line is no shorter.
    """
    for digits in range(1, 9):
        body_bytes = read_bytes - digits - len(b"\r\n\r\n")
        line = b"%x\r\n" % max(body_bytes, 0)
        if body_bytes > 0 and len(line) == digits + 2:
            return line
    return b""


_SIZE_LINES: Final = [_size_line(read_bytes) for read_bytes in range(2048)]
"""Of reads that are as short as one event mostly is."""


def chunk(piece: bytes) -> bytes:
    """One piece of body in the chunked framing."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


class ResponseReader:
    """Reads the responses of one connection, one after the other.

    `expect()` opens the next response; `feed(data)` takes what was read. Then `status` (0 until
    the head is here), `fields` (its lines that are meant for the client, names in lower case),
    `pieces` (body bytes of the last read) and `is_complete` hold. `has_surplus` tells that the
    replica sent more than it announced: the connection must not be used again.
    """

    __slots__ = (
        "_at_boundary",
        "_has_trailers",
        "_head_at_start",
        "_head_bytes",
        "_headers",
        "_in_head",
        "_is_clean",
        "_parser",
        "_raw_from",
        "_reads_head",
        "_recall",
        "fields",
        "has_surplus",
        "is_chunked",
        "is_complete",
        "keeps_alive",
        "length",
        "pieces",
        "status",
    )

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._recall: Recall | None = None
        self.expect()

    def expect(self) -> None:
        """Forget the last response and await the next."""
        self.status = 0
        self.fields = b""
        self._headers: list[Header] = []
        self.pieces: list[bytes] = []
        self.length: int | None = None
        self.is_chunked = False
        self.is_complete = False
        self.keeps_alive = False
        self.has_surplus = False
        self._in_head = True
        self._head_bytes = 0
        self._reads_head = False  # the head ended in the read at hand
        self._head_at_start = True  # ... and began with it
        self._has_trailers = False
        self._at_boundary = False
        self._is_clean = False
        self._raw_from: int | None = None

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "in body" if self.status else "in head"
        return f"<ResponseReader {self.status} {state}>"

    @property
    def is_untouched(self) -> bool:
        """Not one byte of a response has come."""
        return not self.status and not self._head_bytes

    @property
    def ends_with_connection(self) -> bool:
        """Neither a length nor chunks: the body lasts until the replica closes."""
        return bool(self.status) and not self.is_chunked and self.length is None

    def is_one_chunk(self, data: bytes) -> bool:
        """Is this read exactly one chunk of the body, from its size line to its last CRLF?

        Then it may go on as it is, and need not be fed: the parser waits for the next chunk before
        and after. This is what an engine that streams token by token sends nearly always, and it
        is seen for an eighth of what parsing costs. Another spelling of the size is left to `feed`.
        """
        if not self._is_clean or self.is_complete:
            return False
        length = len(data)
        line = _SIZE_LINES[length] if length < len(_SIZE_LINES) else _size_line(length)
        return line != b"" and data.startswith(line) and data.endswith(b"\r\n")

    def feed(self, data: bytes) -> None:
        """Take one read. Raises ProtocolBroken when this is not an HTTP response."""
        known = self._recall
        if known is not None and self.is_untouched:
            body = known.body(data)
            if body is not None:
                self._recalled(known, body)
                return
        self._parse(data)
        is_whole = self.is_complete and self._reads_head and self._head_at_start
        if is_whole and self.length and self.keeps_alive:
            self._recall = recall(data, self.status, self.fields)

    def _recalled(self, known: Recall, body: bytes) -> None:
        self.status = known.status
        self.fields = known.fields
        self.length = len(body)
        self.pieces = [body]
        self.is_complete = self.keeps_alive = True
        self._in_head = False

    def _parse(self, data: bytes) -> None:
        was_clean = self._is_clean
        self.pieces = []
        self._reads_head = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.is_complete:
                raise ProtocolBroken from error
            self.has_surplus = True
        if self._in_head:
            self._wait_for_head(len(data))
            return
        if not self.is_chunked:
            return
        if self._reads_head:
            # The parser forgives blank lines before a head: then its end is not the first CRLFCRLF.
            is_found = self._head_at_start and data.startswith(b"HTTP/")
            self._raw_from = data.find(b"\r\n\r\n") + 4 if is_found else None
        else:
            self._raw_from = 0 if was_clean else None
        if self.is_complete:
            is_plain = not self.has_surplus and not self._has_trailers
            self._is_clean = is_plain and data.endswith(LAST_CHUNK)
        else:
            # A size line read only in part never ends in CRLF; a whole one leaves the boundary.
            self._is_clean = self._at_boundary and data.endswith(b"\r\n")

    def _wait_for_head(self, read_bytes: int) -> None:
        self._head_at_start = False
        self._head_bytes += read_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ProtocolBroken

    def chunked(self, data: bytes) -> bytes:
        """The last read in chunked framing for the client: as it came where that is whole chunks.

        O(1) for whole chunks (a copy only of the read that holds the head); otherwise the pieces
        are framed anew.
        """
        start = self._raw_from
        if start is not None and self._is_clean:
            return data[start:] if start else data
        framed = b"".join([chunk(piece) for piece in self.pieces])
        return framed + LAST_CHUNK if self.is_complete else framed

    def end_of_connection(self) -> bool:
        """The replica closed. True when that is how this response was meant to end."""
        if self.ends_with_connection and not self._in_head:
            self.is_complete = True
            self.keeps_alive = False
        return self.is_complete

    # What the parser calls; names are its own.

    def on_message_begin(self) -> None:
        if self.is_complete:
            self.has_surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            self._has_trailers = True  # or the head of a response nobody asked for
            return
        name = name.lower()
        if name == b"content-length":
            self.length = int(value)
        elif name == b"transfer-encoding":
            self.is_chunked = value.strip().lower() == b"chunked"
            if not self.is_chunked:
                raise ProtocolBroken
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.is_complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            if status < 100 or status == 101:
                raise ProtocolBroken
            # An interim response (RFC 9110, 15.2): the real one follows, and is framed by itself.
            self._headers = []
            self.length = None
            self.is_chunked = False
            self._head_at_start = False
            return
        self.status = status
        self._in_head = False
        self._reads_head = True
        self._at_boundary = True
        if status in _NO_BODY:
            self.length = 0
        self.fields = b"".join([b"%b: %b\r\n" % field for field in end_to_end(self._headers)])

    def on_body(self, piece: bytes) -> None:
        if not self.is_complete:
            self.pieces.append(piece)

    def on_chunk_header(self) -> None:
        self._at_boundary = False

    def on_chunk_complete(self) -> None:
        self._at_boundary = True

    def on_message_complete(self) -> None:
        if self._in_head:
            return  # the end of an interim response
        if not self.is_complete:
            self.is_complete = True
            self.keeps_alive = self._parser.should_keep_alive()


def end_to_end(headers: list[Header]) -> list[Header]:
    """The fields of a response head that are meant for the client, in their order.

    Drops the hop-by-hop fields, those named by Connection, and what we write ourselves.
    """
    dropped = _NOT_FORWARDED
    for name, value in headers:
        if name == b"connection":
            dropped |= frozenset(token.strip().lower() for token in value.split(b","))
    return [field for field in headers if field[0] not in dropped]
