"""What one gateway says of itself: what has changed, or all of it, in datagrams of a fit size.

A row that has ended is not said to have; the next whole state does not name it.

Invariant. Datagrams are numbered from 1 on without a gap, across all kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from gateway.peers.rows import Datagram, Key, Kind, Row, Rows, Topic

if TYPE_CHECKING:
    from gateway.kv_cache import Placement

MOST_BYTES: Final = 1200
"""Rows of one datagram take no more: it is not taken apart on its way."""

ROW_BYTES, FIGURE_BYTES, PLACEMENT_BYTES = 8, 9, 21
"""What a row, a figure and a placement take at most, names and marks left out."""

T = TypeVar("T")


class Voice:
    """Of one life of a gateway."""

    __slots__ = ("_number", "_said", "epoch", "name")

    def __init__(self, name: str, epoch: int) -> None:
        self.name: Final = name
        self.epoch: Final = epoch
        self._number = 0
        self._said: dict[Key, Row] = {}

    def __repr__(self) -> str:
        return f"<Voice of {self.name}: {self._number} said>"

    def delta(self, rows: Rows) -> list[Datagram]:
        """What is new in some rows; nothing where nothing is."""
        said = self._said
        new = [(key, row) for key, row in rows.items() if said.get(key) != row]
        said.update(new)
        return [
            Datagram(self.name, self.epoch, self._next(), Kind.DELTA, rows=part)
            for part in _parts(_sized(new))
        ]

    def placed(self, placements: Sequence[Placement]) -> list[Datagram]:
        """These prompts have just been sent."""
        sized = [
            (each, PLACEMENT_BYTES + len(each.replica) + len(each.marks)) for each in placements
        ]
        return [
            Datagram(self.name, self.epoch, self._next(), Kind.DELTA, placements=part)
            for part in _parts(sized)
        ]

    def whole(self, rows: Rows, *, asks: bool = False) -> list[Datagram]:
        """All the rows there are; `asks` others to do the same."""
        self._said = dict(rows)
        parts = list(_parts(_sized(rows.items()))) or [[]]
        return [
            Datagram(self.name, self.epoch, self._next(), Kind.WHOLE, part, len(parts), asks, some)
            for part, some in enumerate(parts)
        ]

    def goodbye(self) -> Datagram:
        """Nothing will follow."""
        return Datagram(self.name, self.epoch, self._next(), Kind.GOODBYE)

    def _next(self) -> int:
        self._number += 1
        return self._number


def _sized(rows: Iterable[tuple[Key, Row]]) -> Iterator[tuple[tuple[Topic, str, Row], int]]:
    for (topic, name), row in rows:
        yield (topic, name, row), ROW_BYTES + len(name.encode()) + FIGURE_BYTES * len(row)


def _parts(sized: Iterable[tuple[T, int]]) -> Iterator[list[T]]:
    """In as few datagrams as will do, in their order."""
    part: list[T] = []
    size = 0
    for each, takes in sized:
        if part and size + takes > MOST_BYTES:
            yield part
            part, size = [], 0
        part.append(each)
        size += takes
    if part:
        yield part
