"""Names of KV-cache blocks: chains of hashes, an engine's own and ours.

    h[i] = H(h[i-1], tokens of block i, what else block i depends on)

`SHA256` and `SHA256_CBOR` are vLLM's, equal bit for bit where its seed is the default one; with
them a block can be looked up by the name its engine gave it, no parent and no tokens needed. `OURS`
names blocks of engines that hash otherwise.

Invariants. Equal tokens, salt and adapter give equal names, whoever asks; blocks that differ
anywhere before or inside themselves have different names, up to a collision, which costs a
misjudged hit and never a wrong answer.

Sources: vLLM 0.32, v1/core/kv_cache_utils.py and utils/hashing.py; CBOR: RFC 8949, section 4.2.
"""

from __future__ import annotations

import hashlib
import pickle
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

import xxhash

from gateway.kv_cache import BlockHash
from gateway.vocabulary import Tokens

SEED: Final = "vllm-none-hash"
SLICE_BLOCKS: Final = 256
"""As many blocks are hashed before others get a turn: some 0.4 ms."""

KEEP_EVERY: Final = 32
"""Of a chain every 32nd digest is kept whole, so that another can branch off nearby."""


class Hasher(Protocol):
    """One way to name blocks. Raises OverflowError or TypeError for what is no token id."""

    name: str

    def digest(self, parent: bytes | None, tokens: Sequence[int], extra: object) -> bytes:
        """The whole hash of one full block; `parent` is None at the beginning of a prompt."""

    def extra(self, salt: str | None, adapter: str | None, *, is_first: bool) -> object:
        """What else the blocks of such a prompt depend on."""


def low64(digest: bytes) -> BlockHash:
    """How a block is named in events."""
    return int.from_bytes(digest[-8:], "big")


class EngineHasher:
    """vLLM's: sha256 over a serialization of (parent, tokens, extra keys).

    Adapters are beyond it: their path goes into the hash, and only the engine knows it.
    """

    __slots__ = ("_first", "_serialize", "name")

    def __init__(self, name: str, serialize: Callable[[object], bytes]) -> None:
        self.name = name
        self._serialize = serialize
        self._first = hashlib.sha256(serialize(SEED)).digest()

    def __repr__(self) -> str:
        return f"<EngineHasher {self.name}>"

    def digest(self, parent: bytes | None, tokens: Sequence[int], extra: object) -> bytes:
        """O(len(tokens))."""
        triple = (parent or self._first, tuple(tokens), extra)
        return hashlib.sha256(self._serialize(triple)).digest()

    def extra(self, salt: str | None, adapter: str | None, *, is_first: bool) -> object:
        """The salt goes into the first block alone."""
        return (("cache_salt", salt),) if salt is not None and is_first else None


class OurHasher:
    """xxh3 over the token ids: quick, and the same for every engine.

    An `extra` is (adapter, other keys in the order events list them).
    """

    __slots__ = ()
    name: str = "ours"

    def digest(self, parent: bytes | None, tokens: Sequence[int], extra: object) -> bytes:
        """O(len(tokens))."""
        above = 0 if parent is None else int.from_bytes(parent, "big")
        return self.link(above, tokens, extra).to_bytes(8, "big")

    def link(self, parent: BlockHash, tokens: Sequence[int], extra: object) -> BlockHash:
        """The same in 64 bits; a `parent` of 0 is the beginning of a prompt."""
        data = array("q", tokens).tobytes()
        if extra is not None:
            data += repr(extra).encode()
        return xxhash.xxh3_64_intdigest(data, parent)

    def extra(self, salt: str | None, adapter: str | None, *, is_first: bool) -> object:
        """None for a plain block."""
        return our_extra(adapter, [salt] if salt is not None and is_first else [])


def our_extra(adapter: str | None, keys: Sequence[object]) -> object:
    """An adapter, and what else a block depends on, told apart: neither may pass for the other."""
    return (adapter, list(keys)) if adapter is not None or keys else None


def _pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


def canonical_cbor(value: object) -> bytes:
    """Deterministic CBOR of None, integers, bytes, text and tuples. TypeError for all else."""
    out = bytearray()
    _write(value, out)
    return bytes(out)


def _write(value: object, out: bytearray) -> None:
    if type(value) is int and value >= 0:
        out += _head(0, value)
    elif value is None:
        out.append(0xF6)
    elif isinstance(value, bytes):
        out += _head(2, len(value)) + value
    elif isinstance(value, str):
        text = value.encode()
        out += _head(3, len(text)) + text
    elif isinstance(value, tuple):
        out += _head(4, len(value))
        for item in value:
            _write(item, out)
    else:
        raise TypeError(f"no CBOR form for {type(value).__name__}")


def _head(major: int, number: int) -> bytes:
    """The shortest form that holds the number."""
    if number < 24:
        return bytes((major << 5 | number,))
    for more, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << 8 * size:
            return bytes((major << 5 | more,)) + number.to_bytes(size, "big")
    raise TypeError("integer too large for CBOR")


SHA256: Final = EngineHasher("sha256", _pickled)
SHA256_CBOR: Final = EngineHasher("sha256_cbor", canonical_cbor)
OURS: Final = OurHasher()
ENGINES: Final = (SHA256, SHA256_CBOR)


class Chain:
    """The names of a prompt's full blocks, in its order; grows at its end only."""

    __slots__ = ("_kept", "hashes")

    def __init__(self, hashes: array[int] | None = None, kept: list[bytes] | None = None) -> None:
        self.hashes: array[int] = array("Q") if hashes is None else hashes
        self._kept: list[bytes] = [] if kept is None else kept

    def __repr__(self) -> str:
        return f"<Chain of {len(self.hashes)} blocks>"

    def __len__(self) -> int:
        return len(self.hashes)

    def branch(self, blocks: int) -> Chain:
        """A chain that shares at most so many first blocks: as many as were kept whole."""
        groups = min(blocks, len(self.hashes)) // KEEP_EVERY
        return Chain(self.hashes[: groups * KEEP_EVERY], self._kept[:groups])

    def grow(self, hasher: Hasher, key: tuple[str | None, str | None], tokens: Sequence[int],
             size: Tokens) -> Iterator[None]:  # fmt: skip
        """Hash what it lacks of the full blocks of `tokens`, in slices; `key` is salt, adapter.

        Stands at a kept digest: new, or fresh from `branch`.
        """
        salt, adapter = key
        first = hasher.extra(salt, adapter, is_first=True)
        later = hasher.extra(salt, adapter, is_first=False)
        above = self._kept[-1] if self._kept else None
        for block in range(len(self.hashes), len(tokens) // size):
            extra = later if block else first
            above = hasher.digest(above, tokens[block * size : (block + 1) * size], extra)
            self.hashes.append(low64(above))
            if not len(self.hashes) % KEEP_EVERY:
                self._kept.append(above)
            if not block % SLICE_BLOCKS:
                yield
