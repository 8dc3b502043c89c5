"""The head of a client's request: is it well formed, and what of it goes on to a replica?

Asked once per request, with the header fields as the parser gave them. The parser (llhttp, strict)
has already refused Content-Length beside Transfer-Encoding, repeated lengths, bare CR or LF and
obsolete folding; here the rest of RFC 9112 that matters to a gateway is decided.

Invariant: what is forwarded holds no hop-by-hop field, no framing of the client's connection, and
exactly one X-Request-Id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.errors import (
    ClientError,
    ExpectationFailed,
    MalformedHttp,
    UnsupportedTransferEncoding,
)
from gateway.record import Value

Field = tuple[bytes, bytes]

REQUEST_ID: Final = re.compile(rb"[!#-\[\]-~]{1,128}")  # no quotes, no backslash: it is logged

_SPECIAL: Final = frozenset(
    {
        b"host",
        b"content-length",
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"expect",
        b"x-data-parallel-rank",  # which rank is for the chooser to say
        b"x-request-id",
        # The accounts read `usage` off the response's last bytes: they must not be compressed.
        b"accept-encoding",
        b"x-headrace-explain",
        b"x-headrace-class",
        b"x-headrace-deadline-ms",
    }
)
"""Fields that are not simply passed on: RFC 9110, section 7.6.1, what we write ourselves, and what
is said to us alone."""

_READ: Final = frozenset({b"content-type", b"x-session-id"})
"""Fields that are passed on and that we read too."""

_TRACES: Final = frozenset({b"traceparent", b"tracestate"})
"""Fields that say which trace a request is part of."""

_KEYS: Final = frozenset({b"authorization", b"x-api-key"})
"""Fields that hold a client's key."""


class Reading(Value, frozen=True):
    """How fields are read: `apart` are kept for us, `read` are both read and passed on."""

    apart: frozenset[bytes]
    read: frozenset[bytes]


def reading(*, keys: bool, forwards_keys: bool, traces: bool = False) -> Reading:
    """The way to read heads, where clients' keys are for us or not, and for replicas or not; and
    where there are traces, in which we come between."""
    special = _SPECIAL | _TRACES if traces else _SPECIAL
    if not keys:
        return Reading(special, _READ)
    if forwards_keys:
        return Reading(special, _READ | _KEYS)
    return Reading(special | _KEYS, _READ)


PLAIN: Final = reading(keys=False, forwards_keys=True)


class Head:
    """What a request head says. `fault` is set when it must be refused.

    `forwarded` is the block of header lines for the replica, X-Request-Id included; `fields` are
    those that were read, by name.
    """

    __slots__ = (
        "content_length", "expects_continue", "fault", "fields", "forwarded", "request_id",
    )  # fmt: skip

    def __init__(
        self,
        forwarded: bytes,
        request_id: bytes,
        fields: Mapping[bytes, bytes],
        content_length: int | None,
        *,
        expects_continue: bool = False,
        fault: ClientError | None = None,
    ) -> None:
        self.forwarded: Final = forwarded
        self.request_id: Final = request_id
        self.fields: Final = fields
        self.content_length: Final = content_length
        self.expects_continue: Final = expects_continue
        self.fault: Final = fault

    def __repr__(self) -> str:
        return f"<Head {self.request_id!r}>"


def read_head(
    fields: Sequence[Field], version: str, new_id: bytes, reading: Reading = PLAIN
) -> Head:
    """Read a head whose names are in lower case; `new_id` serves where the client sent no good id.

    O(number of fields).
    """
    apart, read = reading.apart, reading.read
    lines: list[bytes] = []
    special: dict[bytes, bytes] = {}
    for field in fields:
        name, value = field
        if name not in apart:
            lines.append(b": ".join(field))
            if name in read:
                special[name] = value
        elif name in special:
            special[name] += b"," + value  # one list, as RFC 9110, section 5.3 has it
        else:
            special[name] = value
    connection = special.get(b"connection", b"")
    if connection and connection.lower() not in (b"keep-alive", b"close"):
        lines = _without_named(fields, connection, apart)
    request_id = special.get(b"x-request-id")
    if request_id is None or not REQUEST_ID.fullmatch(request_id):
        request_id = new_id
    lines.append(b"x-request-id: %b\r\n" % request_id)
    length = special.get(b"content-length")
    return Head(
        forwarded=b"\r\n".join(lines),
        request_id=request_id,
        fields=special,
        content_length=int(length) if length is not None and length.isdigit() else None,
        expects_continue=b"expect" in special and version == "1.1",
        fault=_fault(special, version),
    )


def _fault(special: Mapping[bytes, bytes], version: str) -> ClientError | None:
    """What is wrong with a head, if anything."""
    host = special.get(b"host")
    if version not in ("1.1", "1.0") or (host is None and version == "1.1"):
        return MalformedHttp()
    if not special.get(b"content-length", b"0").isdigit():
        return MalformedHttp()
    if host is not None and b"," in host:
        return MalformedHttp()  # two Host fields: RFC 9112, section 3.2
    coding = special.get(b"transfer-encoding")
    if coding is not None and (version != "1.1" or coding.strip().lower() != b"chunked"):
        return UnsupportedTransferEncoding()
    expect = special.get(b"expect")
    if expect is not None and expect.strip().lower() != b"100-continue":
        return ExpectationFailed()
    return None


def _without_named(
    fields: Sequence[Field], connection: bytes, apart: frozenset[bytes]
) -> list[bytes]:
    """The lines less those the Connection field names; the body's own type cannot be named away."""
    named = {token.strip().lower() for token in connection.split(b",")} - {b"content-type"}
    dropped = named | apart
    return [b": ".join(field) for field in fields if field[0] not in dropped]


def size_of(target: bytes, fields: Sequence[Field]) -> int:
    """In bytes, without what separates them."""
    return len(target) + sum(len(name) + len(value) for name, value in fields)


def without_upgrade(method: bytes, target: bytes, version: str, fields: Sequence[Field]) -> bytes:
    """The head as bytes once more, less its offer to speak something else."""
    lines = [b"%b: %b\r\n" % field for field in fields if field[0] != b"upgrade"]
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, version.encode(), b"".join(lines))


def origin_form(target: bytes) -> bytes:
    """Path and query of an absolute target, as a client writes it that takes us for its proxy.

    Every server must take it (RFC 9112, section 3.2.2); what it says of the host changes nothing.
    Any other target is returned as it is.
    """
    scheme, _, rest = target.partition(b"://")
    if scheme.lower() not in (b"http", b"https"):
        return target
    return b"/" + rest.partition(b"/")[2]
