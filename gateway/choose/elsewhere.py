"""Prompts that other gateways have sent, told by them before the engines tell what became of them.

Each is taken as one that we sent: on its way at first, then whatever events say, and where there
are none, believed to be kept. It is on its way until its gateway says that it is no longer: a
prompt may wait there for as long as the replica's queue is. Whoever shares its beginning is on its
way behind it meanwhile, and does not overtake it. One that was not read there (who waited for the
replica may choose another) is forgotten. If neither is ever heard, it is taken to have arrived
after `ON_ITS_WAY_S`.

Invariants. Nothing is on its way for longer than `ON_ITS_WAY_S`, nor pending for longer than
`PENDING_S` after it has arrived. What was never heard of does not arrive.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from typing import Final

from gateway.choose.dispatch import PENDING_S, Record
from gateway.choose.given import Given
from gateway.choose.text_chain import Hash
from gateway.choose.text_index import TextIndex
from gateway.kv_cache import Certainty, Placement
from gateway.vocabulary import Seconds

ON_ITS_WAY_S: Final = 30.0
MARK_BYTES: Final = 8


def marks_of(placement: Placement) -> list[Hash]:
    """The hashes at its marks."""
    whole = len(placement.marks) // MARK_BYTES * MARK_BYTES
    return array("Q", placement.marks[:whole]).tolist()


class _Coming:
    """One of them, until it has arrived."""

    __slots__ = ("given", "hashes", "is_pending", "since", "unread_from")

    def __init__(
        self,
        given: Given,
        hashes: list[Hash],
        since: Seconds,
        unread_from: int,
        *,
        is_pending: bool,
    ) -> None:
        self.given = given
        self.hashes = hashes
        self.since = since
        self.unread_from = unread_from
        self.is_pending = is_pending


class Elsewhere:
    """Of all replicas. O(marks) per prompt."""

    __slots__ = ("_arrived", "_by_mark", "_coming", "_texts")

    def __init__(self, texts: TextIndex) -> None:
        self._texts = texts
        self._coming: OrderedDict[_Coming, None] = OrderedDict()  # as they were sent
        self._by_mark: dict[tuple[Given, Hash], deque[_Coming]] = {}  # the same
        self._arrived: deque[tuple[Seconds, _Coming]] = deque()  # pending ones, and since when

    def __repr__(self) -> str:
        return f"<Elsewhere: {len(self._coming)} on their way>"

    def told(self, record: Record, placement: Placement, now: Seconds) -> None:
        """One has been sent to the replica of this record, or is no longer on its way there."""
        hashes = marks_of(placement)
        if not hashes:
            return
        given = record.sent
        if placement.is_over:
            alike = self._by_mark.get((given, hashes[-1]))
            if alike is not None and placement.was_read:
                self._arrive(alike[0], now)
            elif alike is not None:
                self._fail(alike[0])
            return
        is_pending = record.source.certainty is not Certainty.SILENT
        unread_from, _ = self._texts.send(
            given, hashes, placement.tokens_per_byte, is_pending=is_pending
        )
        coming = _Coming(given, hashes, now, unread_from, is_pending=is_pending)
        self._coming[coming] = None
        self._by_mark.setdefault((given, hashes[-1]), deque()).append(coming)

    def _arrive(self, coming: _Coming, now: Seconds) -> None:
        """The oldest with its last mark."""
        self._comes_no_more(coming)
        self._texts.arrived(coming.given, coming.hashes, coming.unread_from)
        if coming.is_pending:
            self._arrived.append((now, coming))

    def _fail(self, coming: _Coming) -> None:
        """The same: it was not read there."""
        self._comes_no_more(coming)
        self._texts.failed(coming.given, coming.hashes, coming.unread_from)
        if coming.is_pending:
            self._texts.settle(coming.given, coming.hashes)

    def _comes_no_more(self, coming: _Coming) -> None:
        del self._coming[coming]
        key = (coming.given, coming.hashes[-1])
        alike = self._by_mark[key]
        alike.popleft()
        if not alike:
            del self._by_mark[key]

    def expire(self, now: Seconds) -> None:
        """Some time has passed."""
        coming, arrived = self._coming, self._arrived
        while coming and (oldest := next(iter(coming))).since + ON_ITS_WAY_S <= now:
            self._arrive(oldest, now)
        while arrived and arrived[0][0] + PENDING_S <= now:
            each = arrived.popleft()[1]
            self._texts.settle(each.given, each.hashes)
