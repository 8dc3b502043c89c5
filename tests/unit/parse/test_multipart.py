"""Forms: the model and the stream switch are read, the rest is left alone."""

from __future__ import annotations

import pytest

from gateway.errors import InvalidRequest
from gateway.parse.multipart import parse_multipart
from tests.builders import a_route

ROUTE = a_route("/v1/audio/transcriptions")
KIND = b'multipart/form-data; boundary="b b"'


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'--b b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b b--\r\n"


FILE = part("file", bytes(range(256)) * 40, '; filename="model.wav"\r\nContent-Type: audio/wav')


@pytest.mark.parametrize(
    ("parts", "model", "stream"),
    [
        ([FILE, part("model", b"whisper")], "whisper", False),
        ([part("model", b"whisper"), FILE, part("stream", b"true")], "whisper", True),
        ([part("model", b"whisper"), part("stream", b"True"), FILE], "whisper", True),
        ([part("model", b"whisper"), part("stream", b"false"), FILE], "whisper", False),
        ([part("model", "fl\u00fcster".encode()), FILE], "fl\u00fcster", False),
        ([part("model", b"m"), part("prompt", b"a"), part("prompt", b"b"), FILE], "m", False),
    ],
)
def test_the_model_is_found_wherever_it_stands(
    parts: list[bytes], model: str, stream: bool
) -> None:
    body = form(*parts)
    found = parse_multipart(body, KIND, ROUTE)
    assert (found.model, found.stream) == (model, stream)
    assert found.prompt_bytes == len(body)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (form(FILE), KIND),
        (form(part("model", b"")), KIND),
        (form(part("model", b"\xff")), KIND),
        (form(part("model", b"a"), part("model", b"a")), KIND),
        (form(part("model", b"a"), part("stream", b"1"), part("stream", b"0")), KIND),
        (form(part("model", b"a" * 2000)), KIND),
        (form(part("Model", b"a")), KIND),
        (form(part("model", b"a"))[:-6], KIND),
        (part("model", b"a"), KIND),
        (b"", KIND),
        (b"--b b--\r\n", KIND),
        (b'{"model": "m"}', b"application/json"),
        (form(part("model", b"a")), b"multipart/form-data"),
        (form(part("model", b"a")), b"multipart/mixed; boundary=b"),
        (form(part("model", b"a")), b""),
        (form(part("model", b"a")), b"multipart/form-data; boundary=other"),
    ],
)
def test_a_form_that_is_none_or_can_be_read_in_two_ways_is_refused(
    body: bytes, kind: bytes
) -> None:
    with pytest.raises(InvalidRequest):
        parse_multipart(body, kind, ROUTE)


@pytest.mark.parametrize("boundary", [b"x" * 70, b"a'()+_,-./:=?"])
def test_every_boundary_that_is_allowed_is_understood(boundary: bytes) -> None:
    body = form(part("model", b"m"), FILE).replace(b"--b b", b"--" + boundary)
    kind = b'multipart/form-data; charset=utf-8; boundary="' + boundary + b'"'
    assert parse_multipart(body, kind, ROUTE).model == "m"
