"""Prompts that other gateways have sent, told by them before the engines tell what became of them.

Each is taken as one that we sent: on its way at first, for events of it may take as long as the
replica's queue; then whatever events say, and where there are none, believed to be kept. It is not
said whether it arrived: one that did not is believed in until newer prompts push it out.

Invariant. Nothing is on its way for longer than `ON_ITS_WAY_S`.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import Final

from gateway.choose.dispatch import Record
from gateway.choose.stretch import Given
from gateway.choose.text_index import TextIndex
from gateway.kv_cache import Certainty, Placement
from gateway.vocabulary import Seconds

ON_ITS_WAY_S: Final = 8.0
MARK_BYTES: Final = 8


class Elsewhere:
    """Of all replicas. O(marks) per prompt."""

    __slots__ = ("_pending", "_texts")

    def __init__(self, texts: TextIndex) -> None:
        self._texts = texts
        self._pending: deque[tuple[Seconds, Given, array[int]]] = deque()  # with until when

    def __repr__(self) -> str:
        return f"<Elsewhere: {len(self._pending)} on their way>"

    def sent(self, record: Record, placement: Placement, now: Seconds) -> None:
        """One has been sent to the replica of this record."""
        hashes = array("Q")
        hashes.frombytes(placement.marks[: len(placement.marks) // MARK_BYTES * MARK_BYTES])
        if not hashes:
            return
        is_pending = record.source.certainty is not Certainty.SILENT
        unread_from, _ = self._texts.send(
            record.sent, hashes, placement.tokens_per_byte, is_pending=is_pending
        )
        self._texts.arrived(record.sent, hashes, unread_from)
        if is_pending:
            self._pending.append((now + ON_ITS_WAY_S, record.sent, hashes))

    def expire(self, now: Seconds) -> None:
        """Some time has passed."""
        pending = self._pending
        while pending and pending[0][0] <= now:
            _, given, hashes = pending.popleft()
            self._texts.settle(given, hashes)
