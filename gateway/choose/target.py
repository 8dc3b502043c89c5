"""What is known of one replica beside what it holds: how fast it is, how busy, what it has in use.

What has been sent there counts whoever sent it. Ours is known at once; the *part* of another
gateway is told a moment later, as totals since it began: what was told last is set against what is
told now, and the difference taken for what has happened. One that goes drops what it was owed, as
the engine will.

Invariants. What others are owed is never negative, and nothing once they are gone.
"""

from __future__ import annotations

from math import expm1
from typing import TYPE_CHECKING, Final

from gateway.choose.pace import Pace
from gateway.choose.price import BUSY_S, Footprint, Price
from gateway.choose.waiting import Waiting
from gateway.record import Value
from gateway.vocabulary import Seconds, Tokens

if TYPE_CHECKING:
    from gateway.order import Place


class Part(Value, frozen=True):
    """One gateway's part in what a replica has been sent.

    Work of streams ever sent, that of those which have had a first byte, and of those which ended
    without; work of unary requests ever sent, and of those which have ended; tokens in use now. Of
    all that was sent, how many still wait at the gateway, and their work. Of the work of streams,
    what is read with that of other gateways.
    """

    sent: Tokens = 0
    read: Tokens = 0
    dropped: Tokens = 0
    unseen: Tokens = 0
    ended_unseen: Tokens = 0
    in_use: Tokens = 0
    waiting: int = 0
    waiting_work: Tokens = 0
    spared: Tokens = 0

    @property
    def owed(self) -> Tokens:
        """Work of streams that is still to be read."""
        return max(self.sent - self.read - self.dropped - self.spared, 0)

    @property
    def owed_unseen(self) -> Tokens:
        """The same of unary requests, at most."""
        return max(self.unseen - self.ended_unseen, 0)


NO_PART: Final = Part()


class Target:
    """Of one replica."""

    __slots__ = (
        "_busy_s", "_looked_at", "_others", "_price", "busy", "congestion", "degree", "dropped",
        "ended_unseen", "footprint", "pace", "read", "sent", "spared", "unseen", "waiting",
    )  # fmt: skip

    def __init__(self, pace: Pace, price: Price) -> None:
        self.pace = pace
        self.degree = 1  # of parallelism, as its engine says
        self.footprint = Footprint()
        self.waiting = Waiting()  # of those promised to it, who has not been sent yet
        self.busy = 0.0  # the share of late that it has spent on prefill
        self.congestion = price.congestion(0.0)
        self._price = price
        self._others: dict[str, Part] = {}  # by gateway
        self._looked_at: Seconds | None = None
        self._busy_s: Seconds = 0.0  # by the pace's count then
        # Our own part, as `Part` has it.
        self.sent: Tokens = 0
        self.read: Tokens = 0
        self.dropped: Tokens = 0
        self.spared: Tokens = 0
        self.unseen: Tokens = 0
        self.ended_unseen: Tokens = 0

    def __repr__(self) -> str:
        return f"<Target {self.pace!r} {self.footprint!r}, {self.busy:.2f} busy>"

    def look(self, now: Seconds) -> None:
        """How busy has it been since the last look? The first one begins to count."""
        busy_s, looked_at = self.pace.busy_s(now), self._looked_at
        if looked_at is not None and now > looked_at:
            passed_s = now - looked_at
            share = (busy_s - self._busy_s) / passed_s
            self.busy -= expm1(-passed_s / BUSY_S) * (share - self.busy)
            self.congestion = self._price.congestion(self.busy)
        self._looked_at, self._busy_s = now, busy_s

    def part(self) -> Part:
        """Our own."""
        in_use = self.footprint.tokens - sum([each.in_use for each in self._others.values()])
        waiting = self.waiting
        return Part(
            self.sent, self.read, self.dropped, self.unseen, self.ended_unseen,
            in_use, len(waiting), waiting.work, self.spared,
        )  # fmt: skip

    @property
    def is_crowded(self) -> bool:
        """Does anybody wait for it, here or at another gateway?"""
        return bool(self.waiting) or any(each.waiting for each in self._others.values())

    def behind(self, place: Place, work: Tokens) -> tuple[float, float]:
        """Who of those that wait would be sent after a newcomer with this place and so much work:
        how many, and their work. Gateways that wait have the replica in equal parts: of each other
        one as much goes before the newcomer as of ours, itself included."""
        waiting = self.waiting
        others, theirs = waiting.behind(place)
        number, spared = float(others), float(theirs)
        before = waiting.work - theirs + work
        for each in self._others.values():
            if each.waiting_work > before:
                spared += each.waiting_work - before
                number += each.waiting * (1.0 - before / each.waiting_work)
        return number, spared

    def others(self, peer: str, part: Part, now: Seconds) -> None:
        """That of another gateway is this now; nothing, once it is gone."""
        was = self._others.pop(peer, None)
        pace = self.pace
        if part is not NO_PART:
            self._others[peer] = part
        if was is None or part.sent < was.sent or part.unseen < was.unseen:
            # new to us, gone, or counting anew
            pace.others_dropped(0 if was is None else was.owed)
            pace.others_ended_unseen(0 if was is None else was.owed_unseen)
            pace.others_began(part.owed, now)
            pace.others_began_unseen(part.owed_unseen, now)
        else:
            pace.others_began(part.sent - was.sent, now)
            pace.others_began_unseen(part.unseen - was.unseen, now)
            pace.others_ended_unseen(part.ended_unseen - was.ended_unseen)
            pace.others_read(part.read - was.read, now)
            pace.others_dropped(part.dropped - was.dropped)
            pace.others_spared(part.spared - was.spared)
        self.footprint.tokens += part.in_use - (0 if was is None else was.in_use)
