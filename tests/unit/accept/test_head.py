"""The head of a request, as a table: what goes on, and what must be refused."""

from __future__ import annotations

import pytest

from gateway.accept.head import Field, origin_form, read_head
from gateway.errors import (
    ClientError,
    ExpectationFailed,
    MalformedHttp,
    UnsupportedTransferEncoding,
)

HOST = (b"host", b"a")


@pytest.mark.parametrize(
    ("fields", "version", "fault"),
    [
        ([HOST], "1.1", None),
        ([(b"host", b"")], "1.1", None),
        ([], "1.0", None),
        ([], "1.1", MalformedHttp),
        ([HOST, HOST], "1.1", MalformedHttp),
        ([HOST, HOST], "1.0", MalformedHttp),
        ([HOST], "2.0", MalformedHttp),
        ([HOST], "0.9", MalformedHttp),
        ([HOST], "1.2", MalformedHttp),
        ([HOST, (b"transfer-encoding", b"chunked")], "1.1", None),
        ([HOST, (b"transfer-encoding", b" Chunked\t")], "1.1", None),
        ([HOST, (b"transfer-encoding", b"chunked")], "1.0", UnsupportedTransferEncoding),
        ([HOST, (b"transfer-encoding", b"gzip, chunked")], "1.1", UnsupportedTransferEncoding),
        ([HOST, (b"transfer-encoding", b"")], "1.1", UnsupportedTransferEncoding),
        ([HOST, *[(b"transfer-encoding", b"chunked")] * 2], "1.1", UnsupportedTransferEncoding),
        ([HOST, (b"expect", b"100-Continue")], "1.1", None),
        ([HOST, (b"expect", b"")], "1.1", ExpectationFailed),
        ([HOST, *[(b"expect", b"100-continue")] * 2], "1.1", ExpectationFailed),
        ([HOST, (b"content-length", b"5")], "1.1", None),
        ([HOST, (b"content-length", b"5,5")], "1.1", MalformedHttp),
        ([HOST, (b"content-length", b"")], "1.1", MalformedHttp),
        ([HOST, (b"content-length", "\u0665".encode())], "1.1", MalformedHttp),
    ],
)
def test_a_head_is_refused_for_what_a_gateway_must_not_guess(
    fields: list[Field], version: str, fault: type[ClientError] | None
) -> None:
    found = read_head(fields, version, b"new").fault
    assert (None if found is None else type(found)) is fault


@pytest.mark.parametrize(
    ("connection", "kept"),
    [
        ([b"close"], [b"a", b"b"]),
        ([b"Keep-Alive"], [b"a", b"b"]),
        ([b"keep-alive, A"], [b"b"]),
        ([b"A", b"b ,,"], []),
        ([b"content-type, x-request-id, host"], [b"a", b"b"]),
        ([b""], [b"a", b"b"]),
    ],
)
def test_fields_that_connection_names_do_not_go_on(
    connection: list[bytes], kept: list[bytes]
) -> None:
    named = [(b"connection", value) for value in connection]
    head = read_head([HOST, (b"a", b"1"), *named, (b"b", b"2")], "1.1", b"new")
    lines = head.forwarded.split(b"\r\n")
    assert [line.partition(b":")[0] for line in lines] == [*kept, b"x-request-id", b""]


def test_the_order_and_the_values_of_fields_are_kept() -> None:
    fields = [(b"b", b"1"), HOST, (b"a", b"\xff \x80"), (b"b", b""), (b"x-request-id", b"id")]
    assert read_head(fields, "1.1", b"new").forwarded == (
        b"b: 1\r\na: \xff \x80\r\nb: \r\nx-request-id: id\r\n"
    )


def test_continue_is_only_for_clients_that_know_it() -> None:
    fields = [HOST, (b"expect", b"100-continue"), (b"content-length", b"07")]
    head = read_head(fields, "1.1", b"new")
    assert head.expects_continue
    assert head.content_length == 7
    assert not read_head(fields, "1.0", b"new").expects_continue


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://a/v1/x?y=z", b"/v1/x?y=z"),
        (b"HTTPS://user@a:1//x", b"//x"),
        (b"http://a", b"/"),
        (b"http://a/", b"/"),
        (b"ftp://a/x", b"ftp://a/x"),
        (b"*", b"*"),
        (b"a:443", b"a:443"),
        (b"", b""),
    ],
)
def test_an_absolute_target_is_its_path(target: bytes, path: bytes) -> None:
    assert origin_form(target) == path
