"""SPIFFE IDs, and which of them are meant.

A certificate is an X.509-SVID if it has exactly one URI among its names and that is a SPIFFE ID
with a path (X509-SVID specification, sections 2 and 4; SPIFFE-ID, section 2). All IDs that are
allowed are of one trust domain: then its authorities are the only ones that need to be trusted, and
none of another domain can vouch for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

SCHEME: Final = "spiffe://"
MOST_CHARACTERS: Final = 2048

_ID: Final = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+")


class NotAllowed(ValueError):
    """A certificate of somebody else; the message says whose."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """SPIFFE IDs of one trust domain."""

    trust_domain: str
    ids: frozenset[str]
    folders: tuple[str, ...]
    """With a slash at the end: all that is below them."""

    @classmethod
    def of(cls, patterns: Sequence[str]) -> Allowed:
        """IDs as they are; `/*` at the end stands for all below. Settings see to the one domain."""
        return cls(
            trust_domain(patterns[0]),
            frozenset(pattern for pattern in patterns if not pattern.endswith("/*")),
            tuple(pattern[:-1] for pattern in patterns if pattern.endswith("/*")),
        )

    def check(self, certificate: Mapping[str, Any]) -> None:
        """Raises NotAllowed for a certificate (as the ssl module shows it) of anybody else."""
        spiffe_id = identity_of(certificate)
        if spiffe_id not in self.ids and not spiffe_id.startswith(self.folders):
            raise NotAllowed(f"{spiffe_id} is none of those that are allowed")


def trust_domain(spiffe_id: str) -> str:
    """The name of it."""
    return spiffe_id.removeprefix(SCHEME).partition("/")[0]


def identity_of(certificate: Mapping[str, Any]) -> str:
    """Whose it is. Raises NotAllowed where it is no X.509-SVID."""
    uris = [name for kind, name in certificate.get("subjectAltName", ()) if kind == "URI"]
    if len(uris) != 1:
        raise NotAllowed(f"an X.509-SVID has one URI, this certificate has {len(uris)}")
    spiffe_id: str = uris[0]
    segments = spiffe_id.split("/")
    if (
        len(spiffe_id) > MOST_CHARACTERS
        or not _ID.fullmatch(spiffe_id)
        or "." in segments
        or ".." in segments
    ):
        raise NotAllowed(f"not a SPIFFE ID: {spiffe_id[:200]!r}")
    return spiffe_id
