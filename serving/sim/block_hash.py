"""Chained hashes of KV-cache blocks, equal bit for bit to those of vLLM 0.32.

Asked: the digest of a full block, given its parent's. h[i] = H((h[i-1], tokens of block i, extra
keys)), where the first parent is H(seed). H is sha256 over a serialization of that triple: pickle
("sha256", the engine's default) or canonical CBOR ("sha256_cbor").

Invariants: equal tokens and extra keys give equal digests in every process; blocks that differ
anywhere before or inside themselves differ (up to a collision of sha256).

Sources: vLLM 0.32, v1/core/kv_cache_utils.py and utils/hashing.py; CBOR: RFC 8949, section 4.2.
"""

import hashlib
import pickle
from collections.abc import Sequence
from enum import StrEnum

ExtraKey = tuple[str, ...]
"""One tagged key: ("lora", name, path) or ("cache_salt", salt)."""

SEED = "vllm-none-hash"
"""What the first block's parent is the hash of, unless PYTHONHASHSEED says otherwise."""

_SMALL, _BYTE, _SHORT, _WORD, _LONG = 24, 1 << 8, 1 << 16, 1 << 32, 1 << 64


class HashAlgorithm(StrEnum):
    """The values of `--prefix-caching-hash-algo` that are reproducible between processes."""

    SHA256 = "sha256"
    SHA256_CBOR = "sha256_cbor"


class BlockHasher:
    """Digests of blocks under one algorithm; 32 bytes each."""

    __slots__ = ("_serialize", "algorithm", "first_parent")

    def __init__(self, algorithm: HashAlgorithm) -> None:
        self.algorithm = algorithm
        self._serialize = _pickled if algorithm is HashAlgorithm.SHA256 else canonical_cbor
        self.first_parent = hashlib.sha256(self._serialize(SEED)).digest()

    def digest(
        self, parent: bytes | None, tokens: Sequence[int], extra: tuple[ExtraKey, ...]
    ) -> bytes:
        """The hash of one full block; `parent` is None for the first. O(len(tokens))."""
        triple = (parent or self.first_parent, tuple(tokens), extra or None)
        return hashlib.sha256(self._serialize(triple)).digest()


def wire_hash(digest: bytes) -> int:
    """The 64 low bits of a digest: how a block is named in events."""
    return int.from_bytes(digest[-8:], "big")


def _pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


def canonical_cbor(value: object) -> bytes:
    """Deterministic CBOR of None, non-negative integers, bytes, text, and tuples of them.

    Raises TypeError for anything else.
    """
    out = bytearray()
    _write_cbor(value, out)
    return bytes(out)


def _write_cbor(value: object, out: bytearray) -> None:
    match value:
        case None:
            out.append(0xF6)
        case int() if value >= 0:
            out += _cbor_head(0, value)
        case bytes():
            out += _cbor_head(2, len(value)) + value
        case str():
            text = value.encode()
            out += _cbor_head(3, len(text)) + text
        case tuple():
            out += _cbor_head(4, len(value))
            for item in value:
                _write_cbor(item, out)
        case _:
            raise TypeError(f"no CBOR form for {type(value).__name__}")


def _cbor_head(major: int, number: int) -> bytes:
    """The initial byte and argument of a CBOR item: the shortest form that holds `number`."""
    high = major << 5
    if number < _SMALL:
        return bytes((high | number,))
    if number < _BYTE:
        return bytes((high | 24, number))
    if number < _SHORT:
        return bytes((high | 25,)) + number.to_bytes(2, "big")
    if number < _WORD:
        return bytes((high | 26,)) + number.to_bytes(4, "big")
    if number < _LONG:
        return bytes((high | 27,)) + number.to_bytes(8, "big")
    raise TypeError("integer too large for CBOR")
