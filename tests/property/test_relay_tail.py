"""What is kept of a response for the accounts: its last reads, however many came before them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.exchange import AnyExchange
from gateway.relay.attempt import ANYTHING_GOES, TAIL_READS, Attempt, Job, Patience
from gateway.relay.connection import Connection
from gateway.relay.http1 import ResponseReader, chunk
from gateway.vocabulary import Seconds
from tests.builders import a_route

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Listener(AnyExchange):
    """A client that keeps what it is written; also told when it comes."""

    def __init__(self) -> None:
        super().__init__(a_route("/v1/completions"), b"/", b"id", b"", {})
        self.takes_chunks = True
        self.written = b""
        self.reads = 0
        self.is_finished = False

    def start(self, status: int, fields: bytes, length: int | None, *, chunked: bool) -> None: ...

    def write(self, data: bytes) -> None:
        self.written += data

    @property
    def sink(self) -> Callable[[bytes], object]:
        return self.write

    def finish(self) -> None:
        self.is_finished = True

    def first_byte(self, now: Seconds) -> None:
        self.reads += 1

    chunk = first_byte


def relayed(reads: Sequence[bytes]) -> tuple[Attempt, Listener]:
    """The attempt, when these have come."""

    async def relay() -> tuple[Attempt, Listener]:
        listener, connection = Listener(), Connection(lambda _: None)
        connection.connection_made(asyncio.Transport())  # of no socket
        job = Job(listener, listener, Patience(1.0, 1.0, 1.0), ANYTHING_GOES)
        connection.user = attempt = Attempt(connection, lambda: 0.0, job)
        for read in reads:
            connection.data_received(read)
        return attempt, listener

    return asyncio.run(relay())


def pieces_of(reads: Sequence[bytes]) -> list[bytes]:
    """The body bytes of each read that has any, or that ends the response."""
    reader, found = ResponseReader(), []
    for read in reads:
        reader.feed(read)
        if reader.pieces or reader.is_complete:
            found.append(b"".join(reader.pieces))
    return found


bodies = st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=3 * TAIL_READS)


@given(bodies, st.booleans(), st.lists(st.integers(0, 200), max_size=4))
@example([b"a"], False, [])
@example([b"%d" % at for at in range(9)], True, [])
def test_the_tail_is_the_body_of_the_last_reads(
    body: list[bytes], ends: bool, cuts: list[int]
) -> None:
    chunks = [chunk(piece) for piece in body]
    whole = [HEAD + chunks[0], *chunks[1:], *([b"0\r\n\r\n"] if ends else [])]
    text = b"".join(whole)
    edges = {sum(map(len, whole[:at])) for at in range(len(whole) + 1)}
    at = sorted(edges | {cut for cut in cuts if cut < len(text)})
    reads = [text[begin:end] for begin, end in pairwise(at)]
    attempt, listener = relayed(reads)
    came = pieces_of(reads)
    assert attempt.reply().tail() == b"".join(came[-TAIL_READS:])
    assert listener.reads == len(came)
    assert listener.is_finished is ends is attempt.done.done()
    back = ResponseReader()
    back.feed(HEAD + listener.written)
    assert b"".join(back.pieces) == b"".join(body)
    assert back.is_complete is ends
