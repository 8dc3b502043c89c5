"""How a datagram is written: msgpack behind a seal.

    "HRP" | version (1 byte) | seal (16 bytes) | msgpack array

The seal is BLAKE2b over the rest, keyed where gateways share a secret: without it nobody can say
anything, and what was overheard counts once (see `share`). Without a secret it only tells whole
datagrams from broken ones. Another version is not understood: gateways of two versions do not count
each other's requests while one replaces the other.
"""

from __future__ import annotations

from hashlib import blake2b
from hmac import compare_digest
from math import isfinite
from typing import Final

import msgspec

from gateway.peers.rows import Datagram

VERSION: Final = 1
HEAD: Final = b"HRP" + bytes([VERSION])
SEAL_BYTES: Final = 16
MOST_SECRET_BYTES: Final = 64
MOST_NAME: Final = 255
MOST_NUMBER: Final = 1 << 62
MOST_TOKENS_PER_BYTE: Final = 64.0

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Datagram)


class Unreadable(ValueError):
    """Not a datagram of ours."""


def encode(datagram: Datagram, secret: bytes = b"") -> bytes:
    """As it is sent. `secret`: at most 64 bytes."""
    body = _encoder.encode(datagram)
    return HEAD + _seal(body, secret) + body


def decode(data: bytes, secret: bytes = b"") -> Datagram:
    """What was sent. Raises Unreadable."""
    start = len(HEAD) + SEAL_BYTES
    if data[: len(HEAD)] != HEAD:
        raise Unreadable("another protocol or version")
    body = data[start:]
    if not compare_digest(data[len(HEAD) : start], _seal(body, secret)):
        raise Unreadable("the seal is broken")
    try:
        said = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(str(error)) from None
    if not (
        0 < len(said.name) <= MOST_NAME
        and 0 <= said.epoch < MOST_NUMBER
        and 0 <= said.part < said.parts
        and said.part < said.number < MOST_NUMBER
        and all(isfinite(figure) for _, _, row in said.rows for figure in row)
        and all(0.0 < each.tokens_per_byte <= MOST_TOKENS_PER_BYTE for each in said.placements)
    ):
        raise Unreadable("figures that no gateway sends")
    return said


def _seal(body: bytes, secret: bytes) -> bytes:
    return blake2b(body, digest_size=SEAL_BYTES, key=secret, person=b"headrace peers").digest()
