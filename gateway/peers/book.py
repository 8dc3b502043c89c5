"""To whom it is said: the addresses that were found, and those that have spoken.

The workers of one gateway, and pods behind one name, are found at an address each; who has more
workers than we have speaks to us first, and is answered where it spoke from. One gateway may stand
at several addresses (a worker on loopback and behind its pod's): it is spoken to at one.

Invariant. We do not speak to ourselves, once we have heard ourselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.vocabulary import Seconds

Address = tuple[str, int]

FORGOTTEN_S: Final = 30.0
"""An address that nobody gives us is left out when nothing has come from it for so long."""


class Book:
    """Addresses. O(addresses)."""

    __slots__ = ("_found", "_name", "_spoke", "_targets")

    def __init__(self, name: str) -> None:
        """Our own name."""
        self._name = name
        self._found: frozenset[Address] = frozenset()
        self._spoke: dict[Address, tuple[str, Seconds]] = {}  # who, and when last
        self._targets: list[Address] | None = None

    def __repr__(self) -> str:
        return f"<Book of {len(self._found)} found, {len(self._spoke)} heard>"

    def found(self, addresses: Iterable[Address]) -> None:
        """These are all there are, as far as anybody says."""
        self._found = frozenset(addresses)
        self._targets = None

    def is_known(self, host: str) -> bool:
        """Was something found at this host?"""
        return any(known == host for known, _ in self._found)

    def spoke(self, address: Address, name: str, now: Seconds) -> None:
        """Something readable came from there."""
        known = self._spoke.get(address)
        if known is None or known[0] != name:
            self._targets = None
        self._spoke[address] = (name, now)

    def forget(self, now: Seconds) -> None:
        """What has not spoken for long is no longer known by its name."""
        gone = [at for at, (_, when) in self._spoke.items() if now - when >= FORGOTTEN_S]
        for address in gone:
            del self._spoke[address]
            self._targets = None

    @property
    def targets(self) -> list[Address]:
        """Where to speak: everybody once, where it was found if it was; ourselves not."""
        if self._targets is None:
            named = {self._name}
            targets: list[Address] = []
            for address in (*sorted(self._found), *sorted(self._spoke.keys() - self._found)):
                name = self._spoke[address][0] if address in self._spoke else None
                if name is None:
                    targets.append(address)
                elif name not in named:
                    named.add(name)
                    targets.append(address)
            self._targets = targets
        return self._targets
