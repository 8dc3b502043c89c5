"""What is believed of other gateways: the rows each has told, for as long as it is heard.

Datagrams may be lost, doubled, late or out of order. By these laws all that matters is which of
them have come, not when:

    of one row, what was said last stands (the datagram with the higher number)
    a whole state, once all its parts are here, ends the rows that it does not name and that were
    said before it; and what was said before it is not listened to any more
    a later epoch of a name ends all of an earlier one, which is not listened to any more
    who has said goodbye, or has not been heard for `silent_s`, has no rows; only what it says
    after that counts, and after a goodbye nothing

So after the first whole state that comes complete, and with what came after it, the truth stands.

Invariants. A change tells the row as it was last told, so that whoever adds up changes has the sum
of the rows. A replayed datagram changes nothing and keeps nobody alive.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from gateway.peers.rows import Datagram, Key, Kind, Row
from gateway.vocabulary import Seconds

REMEMBERED_S: Final = 3600.0
"""How long it is known how far a gateway had come that is gone."""

MOST_PEERS: Final = 4096


class Change(msgspec.Struct, frozen=True):
    """A row of a peer's is another; None: there is none.

    `epoch` is that of its life; `is_past`: it was there before us, and this is of the first that it
    told us: what it counts in it began without us.
    """

    peer: str
    epoch: int
    key: Key
    was: Row | None
    now: Row | None
    is_past: bool


class Peer:
    """One life of another gateway."""

    __slots__ = (
        "_floor", "_parts", "_said_in", "epoch", "has_left", "has_told_all", "heard_at",
        "is_present", "name", "rows", "top",
    )  # fmt: skip

    def __init__(self, name: str, epoch: int, now: Seconds) -> None:
        self.name: Final = name
        self.epoch: Final = epoch
        self.heard_at = now
        self.is_present = False  # it is heard
        self.has_left = False
        self.has_told_all = False  # a whole state has come
        self.rows: dict[Key, Row] = {}
        self.top = 0  # the highest number that has come
        self._floor = 1  # what has a lower number is not listened to
        self._said_in: dict[Key, int] = {}  # the datagram a row is from
        self._parts: dict[int, set[int]] = {}  # of whole states, by their first number

    def __repr__(self) -> str:
        return f"<Peer {self.name}: {len(self.rows)} rows up to {self.top}>"

    def hear(self, said: Datagram, now: Seconds) -> Iterator[tuple[Key, Row | None, Row | None]]:
        """Take it in: what has changed, as key, was, is. To be iterated to the end."""
        number = said.number
        if self.has_left or number < self._floor:
            return
        if number > self.top:
            self.top = number
            self.heard_at = now
            self.is_present = True
        if said.kind is Kind.GOODBYE:
            self.has_left = True
            yield from self.silence()
            return
        rows, said_in = self.rows, self._said_in
        for topic, name, row in said.rows:
            key = (topic, name)
            if said_in.get(key, 0) >= number:
                continue
            said_in[key] = number
            was = rows.get(key)
            if was != row:
                rows[key] = row
                yield key, was, row
        if said.kind is Kind.WHOLE:
            yield from self._whole(said)

    def silence(self) -> Iterator[tuple[Key, Row | None, None]]:
        """It has no rows any more; what it has said until now is over."""
        self.is_present = False
        self._floor = self.top + 1
        gone, self.rows = self.rows, {}
        self._said_in.clear()
        self._parts.clear()
        for key, was in gone.items():
            yield key, was, None

    def _whole(self, said: Datagram) -> Iterator[tuple[Key, Row | None, None]]:
        first = said.number - said.part
        here = self._parts.setdefault(first, set())
        here.add(said.part)
        if len(here) < said.parts:
            return
        self.has_told_all = True
        self._floor = first
        self._parts = {each: parts for each, parts in self._parts.items() if each > first}
        for key in [key for key, number in self._said_in.items() if number < first]:
            del self._said_in[key]
            yield key, self.rows.pop(key), None


class Peers:
    """All others that are or were heard. Every method is O(rows told of) or O(peers)."""

    def __init__(self, name: str, epoch: int, silent_s: Seconds) -> None:
        """Our own name and epoch: what comes from ourselves is not news."""
        self._name = name
        self._epoch = epoch
        self._silent_s = silent_s
        self._peers: dict[str, Peer] = {}

    def __repr__(self) -> str:
        return f"<Peers {list(self._peers.values())!r}>"

    def rows_of(self, key: Key) -> Iterator[tuple[str, Row]]:
        """By peer, as it stands."""
        for peer in self._peers.values():
            row = peer.rows.get(key)
            if row is not None:
                yield peer.name, row

    @property
    def present(self) -> list[Peer]:
        """Those that are heard."""
        return [peer for peer in self._peers.values() if peer.is_present]

    def hear(self, said: Datagram, now: Seconds) -> list[Change]:
        """Take in what somebody says."""
        if said.name == self._name:
            return []
        changes: list[Change] = []
        peer = self._peers.get(said.name)
        if peer is None or peer.epoch < said.epoch:
            if peer is not None:
                changes += self._changes(peer, peer.silence())
            elif len(self._peers) >= MOST_PEERS:
                return []
            peer = self._peers[said.name] = Peer(said.name, said.epoch, now)
        if peer.epoch == said.epoch:
            changes += self._changes(peer, peer.hear(said, now))
        return changes

    def is_newest(self, said: Datagram) -> bool:
        """Has nothing been heard yet that was said after it, or with it? Ask before `hear`."""
        peer = self._peers.get(said.name)
        if said.name == self._name or (peer is not None and peer.epoch > said.epoch):
            return False
        return peer is None or peer.epoch < said.epoch or said.number > peer.top

    def expire(self, now: Seconds) -> list[Change]:
        """Whoever has not been heard for long has nothing any more."""
        changes: list[Change] = []
        for peer in list(self._peers.values()):
            unheard_s = now - peer.heard_at
            if peer.is_present and unheard_s >= self._silent_s:
                changes += self._changes(peer, peer.silence())
            elif unheard_s >= REMEMBERED_S:
                del self._peers[peer.name]
        return changes

    def _changes(
        self, peer: Peer, news: Iterator[tuple[Key, Row | None, Row | None]]
    ) -> list[Change]:
        is_past = peer.epoch < self._epoch and not peer.has_told_all
        return [Change(peer.name, peer.epoch, key, was, now, is_past) for key, was, now in news]
