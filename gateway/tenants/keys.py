"""API keys: made, hashed, found. A key is shown once, when it is made; only its hash is kept.

The hash is one SHA-256. Slow hashes (scrypt, Argon2) protect secrets that people choose, by making
each guess dear; a key is 256 random bits, which no number of guesses finds, and every request would
pay for the slowness.

A key reads `hr-<id>-<secret>`; the id alone stands in logs and lists, and tells nothing of the
secret. A key of any other form works too, if its hash is in the file.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from hashlib import sha256
from hmac import compare_digest
from typing import Final, Generic, TypeVar

from gateway.record import Value

SECRET_BYTES: Final = 32
ID_BYTES: Final = 5  # 8 letters

Holder = TypeVar("Holder")


class NewKey(Value, frozen=True):
    """A key that was just made: the only moment at which it is known."""

    id: str
    key: str

    def __repr__(self) -> str:
        return f"<NewKey {self.id}>"


def new_key(randomness: bytes) -> NewKey:
    """A key out of `ID_BYTES + SECRET_BYTES` bytes that nobody can foresee."""
    if len(randomness) != ID_BYTES + SECRET_BYTES:
        raise ValueError("a key is made of exactly as much randomness as it holds")
    name = base64.b32encode(randomness[:ID_BYTES]).decode().lower()
    secret = base64.urlsafe_b64encode(randomness[ID_BYTES:]).decode().rstrip("=")
    return NewKey(f"hr-{name}", f"hr-{name}-{secret}")


def digest(key: bytes) -> bytes:
    """What is kept of a key."""
    return sha256(key).digest()


class KeyRing(Generic[Holder]):
    """Finds who holds a key. Frozen: a new file makes a new ring.

    The look-up is by digest, of which a client controls no bit; what it finds is compared in
    constant time, so that no part of a key can be guessed by the clock.
    """

    __slots__ = ("_holders",)

    def __init__(self, holders: Iterable[tuple[bytes, str, Holder]]) -> None:
        """Digests, ids and holders; no two digests are equal."""
        self._holders = {hashed: (hashed, (key_id, holder)) for hashed, key_id, holder in holders}

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self._holders)} keys>"

    def __len__(self) -> int:
        return len(self._holders)

    def find(self, key: bytes) -> tuple[str, Holder] | None:
        """The id of a key and who holds it; None for a key that is not on the ring. O(len(key))."""
        presented = sha256(key).digest()
        found = self._holders.get(presented)
        return found[1] if found is not None and compare_digest(found[0], presented) else None


def presented_key(fields: Mapping[bytes, bytes]) -> bytes | None:
    """The key in a request's head: `Authorization: Bearer KEY`, or Anthropic's `X-Api-Key: KEY`."""
    authorization = fields.get(b"authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(b" ")
        if key and (scheme == b"Bearer" or scheme.lower() == b"bearer"):
            return key.strip() or None
    x_api_key = fields.get(b"x-api-key")
    return x_api_key.strip() or None if x_api_key is not None else None
