"""The laws of `client_laws`, over what was kept of earlier fuzzing and over bytes that are new."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.client_laws import LAWS, ROUTE_PATHS, head_law, json_law, lane_law, multipart_law

CORPUS = Path(__file__).parent / "client_corpus"
KEPT = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_kept_of_earlier_fuzzing_keeps_the_law(path: Path) -> None:
    LAWS[path.parent.name](path.read_bytes())


def test_every_law_has_a_corpus() -> None:
    assert {path.parent.name for path in KEPT} == set(LAWS)


SECONDS = os.environ.get("FUZZ_SECONDS", "")


@pytest.mark.skipif(not SECONDS, reason="FUZZ_SECONDS is not set: `make fuzz` does")
@pytest.mark.parametrize("law", LAWS)
def test_atheris_finds_nothing(law: str) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: pip install atheris")
    share = str(max(1, int(SECONDS) // len(LAWS)))
    command = [sys.executable, "-m", "tests.fuzz.client_atheris", law, share]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def soup(*words: bytes) -> st.SearchStrategy[bytes]:
    """Bytes in which the words that matter are likely."""
    pieces = st.sampled_from(words) | st.binary(max_size=4)
    return st.lists(pieces, max_size=24).map(b"".join)


JSON = soup(
    b"{", b"}", b"[", b"]", b":", b",", b'"', b" ", b"\n", b'"model"', b'"m"', b'"stream"',
    b"true", b"null", b"0", b"-1", b"1e9", b".5", b"NaN", b'"max_tokens"', b"\\u006d", b"\\ud800",
    b"\xef\xbb\xbf", b"\xff", b'{"model":"m"', b'"model":"n"', b"[" * 2000,
)  # fmt: skip

FORM = soup(
    b"multipart/form-data; boundary=b\n", b"--b", b"--b--", b"\r\n", b"\r\n\r\n", b"--",
    b"Content-Disposition: form-data; name=", b'"model"', b'"stream"', b"; filename=x", b"m",
    b'"file"', b"; name*=utf-8''model", b"true", b"\xff", b"x" * 2000, b": ", b"\n",
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n',
)  # fmt: skip

FIELDS = soup(
    b"1.1\n", b"1.0\n", b"2.0\n", b"\n", b"host:a", b"content-length:", b"5", b"-5", b"5,5",
    b"transfer-encoding:", b"chunked", b"gzip", b"connection:", b"close", b"x-request-id", b",",
    b"expect:100-continue", b"x:y", b"content-type:", b"te:", b"\xff", b":", b" ",
)  # fmt: skip

WIRE = soup(
    *(b"POST %b HTTP/1.1\r\n" % path for path in ROUTE_PATHS[:3]),
    b"POST /v1/embeddings HTTP/1.0\r\n", b"GET /healthz HTTP/1.1\r\n", b"PUT /x HTTP/1.1\r\n",
    b"POST http://a/v1/embeddings?x HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n", b"GET /\r\n",
    b"Host: a\r\n", b"Content-Length: 3\r\n", b"Content-Length: 99999\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Connection: close\r\n",
    b"Expect: 100-continue\r\n", b"Expect: x\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n",
    b"X: " + b"y" * 900 + b"\r\n", b"X-Request-Id: one\r\n", b"\r\n", b"\r\n\r\n", b"{}x",
    b"3\r\n{}x\r\n", b"0\r\n\r\n", b"5;e=f\r\nabcde\r\n", b"0\r\nT: x\r\n\r\n", b"fff\r\n",
    b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n{}x",
    b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"\n", b"\r", b"\x00", b" ", b"\x16\x03\x01",
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(JSON | st.binary(max_size=200))
def test_any_bytes_are_a_json_request_or_an_invalid_one(data: bytes) -> None:
    json_law(data)


@settings(max_examples=300, deadline=None)
@given(FORM | st.binary(max_size=200))
def test_any_bytes_are_a_form_or_an_invalid_request(data: bytes) -> None:
    multipart_law(data)


@settings(max_examples=300, deadline=None)
@given(FIELDS)
def test_any_fields_are_a_head_or_a_fault(data: bytes) -> None:
    head_law(data)


@settings(max_examples=300, deadline=None)
@given(WIRE | st.binary(max_size=200))
def test_any_bytes_on_a_connection_get_whole_replies_however_they_are_cut(data: bytes) -> None:
    lane_law(data)
