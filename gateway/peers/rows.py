"""What gateways tell each other of: rows of figures, each under a topic and a name. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

import msgspec

from gateway.kv_cache import Placement


class Topic(IntEnum):
    """What a row is about; its name is then that of a replica, tenant or model."""

    REPLICA = 1
    TENANT = 2
    MODEL = 3


Key = tuple[Topic, str]
Row = tuple[float, ...]
Rows = Mapping[Key, Row]


class Kind(IntEnum):
    """What a datagram is."""

    DELTA = 0  # some rows, which have changed
    WHOLE = 1  # a part of all rows there are
    GOODBYE = 2  # nothing more will come of this life


class Datagram(msgspec.Struct, frozen=True, array_like=True):
    """What one gateway says at once.

    `epoch` is when this life of it began, in microseconds: a later one ends an earlier one.
    `number` counts its datagrams from 1; those of one whole state follow each other, the first of
    `parts` being number `number - part`. Rows are whole figures, not differences: what is lost is
    made good by what is said later. `placements` are said once: a lost one costs what not knowing
    costs.
    """

    name: str
    epoch: int
    number: int
    kind: Kind
    part: int = 0
    parts: int = 1
    asks: bool = False  # it would like to hear everything, now
    rows: list[tuple[Topic, str, Row]] = []
    placements: list[Placement] = []
