"""A read that is one whole chunk is known by its first bytes, whatever its length."""

from __future__ import annotations

from itertools import chain
from typing import Final

import pytest

from gateway.relay.http1 import ResponseReader, chunk

HEAD: Final = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

LENGTHS: Final = tuple(chain(range(1, 300), range(4080, 4110), range(65530, 65550)))
"""Around every length at which the size line grows by a digit."""


@pytest.fixture
def reader() -> ResponseReader:
    """One that has come to a chunk's boundary."""
    made = ResponseReader()
    made.feed(HEAD + chunk(b"first"))
    return made


def test_a_read_of_one_whole_chunk_is_known_as_one(reader: ResponseReader) -> None:
    assert all(reader.is_one_chunk(chunk(b"\n" * length)) for length in LENGTHS)


@pytest.mark.parametrize("off", [-2, -1, 1, 2, 16])
def test_a_read_that_its_size_line_does_not_fit_is_never_taken_for_a_whole_chunk(
    reader: ResponseReader, off: int
) -> None:
    for length in LENGTHS:
        announced = max(length + off, 0)
        read = b"%x\r\n%b\r\n" % (announced, b"\n" * length)
        assert announced == length or not reader.is_one_chunk(read)
