"""Cache salts: engines put them into the name of every cached block, so only equal salts share.

A tenant's salt is an HMAC of its name under a secret of ours: stable, so its prompts go on sharing;
and not to be guessed, so nobody can ask for another's blocks and learn by the clock what they hold.
A salt that the client sets itself divides its own tenant's cache further, by a second HMAC under
the tenant's: no choice of its own leads into the space of another.

Form: engines want 1 to 128 characters without `@`, `/`, `\\` and NUL; base64url has none of these.
"""

from __future__ import annotations

import base64
import hmac

import msgspec

from gateway.errors import InvalidRequest


class Salter:
    """Makes the salts of one tenant."""

    __slots__ = ("_key", "plain")

    def __init__(self, secret: bytes, tenant: str) -> None:
        self._key = hmac.digest(secret, b"headrace cache salt\0" + tenant.encode(), "sha256")
        self.plain = self._salt(b"")  # for a request without a salt of its own

    def __repr__(self) -> str:
        return "<Salter>"

    def member(self, own: bytes | None) -> bytes:
        """The JSON value of `cache_salt`, where the client wrote `own` (None: it wrote nothing).

        Raises InvalidRequest where that is not what engines take.
        """
        if own is None or own == b"null":
            return self.plain
        try:
            text = msgspec.json.decode(own, type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            text = ""
        if not text:
            raise InvalidRequest("`cache_salt` must be a non-empty string.", param="cache_salt")
        return self._salt(text.encode())

    def _salt(self, what: bytes) -> bytes:
        made = base64.urlsafe_b64encode(hmac.digest(self._key, what, "sha256"))
        return b'"%b"' % made.rstrip(b"=")
