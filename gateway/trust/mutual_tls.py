"""TLS in which both sides show who they are, by X.509-SVIDs that change under way.

Asked: "an SSL context for a connection to a replica". `MutualTls` is handed out once, to whoever
makes connections; each of these is made by the newest *generation*: a context with the SVID and
the authorities that were the last to come. (An SSL context can only learn authorities; so a new one
is made, and one that has been taken away is trusted no more.) Connections of older generations go
on. A handshake fails unless the other side is one that is allowed, before anything else is sent.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.trust.identity import Allowed, NotAllowed
from gateway.vocabulary import Seconds


class Refusal(StrEnum):
    """Why there was no connection."""

    NO_SVID = "no_svid"  # ours has expired, or there was none yet
    UNTRUSTED = "untrusted"  # a certificate that no authority vouches for, or not any more
    NOT_ALLOWED = "not_allowed"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are, and who vouches for others."""

    spiffe_id: str
    serial: int
    expires_at: Seconds
    pem: bytes
    """The private key and the chain."""
    authorities: str
    """Of those we speak to, as PEM."""

    def __repr__(self) -> str:
        return f"<Credentials {self.spiffe_id} {self.serial:x}>"  # never the key


class MutualTls(ssl.SSLContext):
    """What makes connections to some SPIFFE IDs. Before the first `renew` all handshakes fail."""

    allowed: Allowed
    credentials: Credentials | None
    refused: dict[Refusal, int]
    _now: Callable[[], Seconds]
    _newest: _Generation

    def __new__(cls, allowed: Allowed, now: Callable[[], Seconds]) -> MutualTls:
        """`now` is the time of day, by which certificates expire."""
        self = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        self.allowed = allowed
        self.credentials = None
        self.refused = dict.fromkeys(Refusal, 0)
        self._now = now
        self._newest = _Generation(self)
        return self

    def __init__(self, allowed: Allowed, now: Callable[[], Seconds]) -> None:
        """As `__new__`, where it has been done: what is above wants it there."""

    def renew(self, credentials: Credentials) -> None:
        """From now on it is these. Raises ssl.SSLError where they cannot be used; the old stay."""
        generation = _Generation(self)
        generation.load_verify_locations(cadata=credentials.authorities)
        load_pem(generation, credentials.pem)
        self._newest, self.credentials = generation, credentials

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """A connection's side of TLS, by the newest generation."""
        return self._newest.wrap_bio(*args, **kwargs)

    def refuse(self, reason: Refusal) -> None:
        """Count a handshake that failed."""
        self.refused[reason] += 1

    def is_current(self) -> bool:
        """We have an SVID, and it has not expired."""
        return self.credentials is not None and self._now() < self.credentials.expires_at


class _Handshake(ssl.SSLObject):
    """One connection: the handshake is done when the other side is known and allowed."""

    def do_handshake(self) -> None:
        generation = self.context
        assert isinstance(generation, _Generation)
        owner = generation.owner
        if not owner.is_current():
            owner.refuse(Refusal.NO_SVID)
            raise ssl.SSLError("we have no SVID that is valid now")
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError:
            owner.refuse(Refusal.UNTRUSTED)
            raise
        try:
            owner.allowed.check(self.getpeercert() or {})
        except NotAllowed as error:
            owner.refuse(Refusal.NOT_ALLOWED)
            raise ssl.SSLError(f"the replica is not who it should be: {error}") from error


class _Generation(ssl.SSLContext):
    """What connections are made of, until something newer comes."""

    sslobject_class = _Handshake
    owner: MutualTls

    def __new__(cls, owner: MutualTls) -> _Generation:
        self = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        self.check_hostname = False  # names of machines say nothing here
        self.verify_mode = ssl.CERT_REQUIRED
        self.owner = owner
        return self

    def __init__(self, owner: MutualTls) -> None:
        """As `__new__`."""


def load_pem(context: ssl.SSLContext, pem: bytes) -> None:
    """Let it present a private key with its chain, which never are in a file of a disk.

    The ssl module reads files only: this one is memory, ours alone, and gone afterwards.
    """
    file = os.memfd_create("svid", os.MFD_CLOEXEC)
    try:
        with open(file, "wb", closefd=False) as memory:
            memory.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
