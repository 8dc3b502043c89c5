"""A multipart form read in pieces is the form read whole."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.batch.upload import Upload
from gateway.errors import InvalidRequest

TYPE = b"multipart/form-data; boundary=XyZ"


def a_form(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    """Parts are (the rest of the Content-Disposition, body)."""
    lines = [
        b"--XyZ\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (what.encode(), body)
        for what, body in parts
    ]
    return b"".join(lines) + (b"--XyZ--\r\n" if end else b"")


PURPOSE = ('name="purpose"', b"batch")
FILE = 'name="file"; filename="in.jsonl"'


@given(
    st.binary(max_size=300) | st.just(b"\r\n--Xy not the end\r\n-"),
    st.lists(st.integers(1, 40), min_size=1),
    st.booleans(),
)
def test_the_file_comes_out_as_it_went_in(content: bytes, sizes: list[int], first: bool) -> None:
    assume(b"\r\n--XyZ" not in content)
    parts = [PURPOSE, (FILE, content)] if first else [(FILE, content), PURPOSE]
    body = a_form(*parts)
    upload, found, at, turn = Upload(TYPE), b"", 0, 0
    while at < len(body):
        size = sizes[turn % len(sizes)]
        found += b"".join(upload.feed(body[at : at + size]))
        at, turn = at + size, turn + 1
    assert upload.purpose() == "batch"
    assert (upload.filename, found) == ("in.jsonl", content)


@pytest.mark.parametrize(
    "body",
    [
        a_form(PURPOSE),
        a_form((FILE, b"x")),
        a_form((FILE, b"x"), ('name="purpose"', b"fine-tune")),
        a_form((FILE, b"x"), (FILE, b"y"), PURPOSE),
        a_form((FILE, b"x"), PURPOSE, PURPOSE),
        a_form((FILE, b"x"), PURPOSE, ('name="expires_after[seconds]"', b"9")),
        a_form((FILE, b"x"), ('name="purpose"', b"b" * 2000)),
        a_form((FILE, b"x"), PURPOSE, end=False),
        b"nonsense",
        b"",
    ],
)
def test_what_is_no_such_form_is_refused(body: bytes) -> None:
    upload = Upload(TYPE)
    with pytest.raises(InvalidRequest):
        refused_of(upload, body)


def refused_of(upload: Upload, body: bytes) -> None:
    upload.feed(body)
    upload.purpose()


@pytest.mark.parametrize("content_type", [b"", b"application/json", b"multipart/form-data"])
def test_what_is_no_form_at_all_is_refused(content_type: bytes) -> None:
    with pytest.raises(InvalidRequest):
        Upload(content_type)


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        refused_of(Upload(TYPE), b"--XyZ\r\n" + body)
    except InvalidRequest:
        return
