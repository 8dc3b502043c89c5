"""What one dispatch owes and holds at its replica, until it ends: a claim of the policy.

Invariant. Everything that was taken at its target is given back by its end, whatever happens
between: work owed, tokens in use, and a place among those who wait.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from gateway.choose.chooser import Claim

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.choose.dispatch import Dispatch
    from gateway.choose.pace import Unseen
    from gateway.choose.target import Target
    from gateway.choose.text_chain import Hash
    from gateway.order import Place
    from gateway.request import Usage
    from gateway.vocabulary import Seconds, Tokens


class Owed(Claim):
    """Prefill that a replica owes, tokens in use there, and the hit it was predicted."""

    __slots__ = (
        "_crowded", "_dispatch", "_on_less", "_place", "_target", "_use", "on_over", "owed",
        "uncached", "unseen", "work",
    )  # fmt: skip

    uncached: Tokens | None

    def __init__(
        self,
        target: Target,
        crowded: set[Target],
        use: tuple[Hash, Tokens, Tokens],
        uncached: Tokens,
        dispatch: Dispatch,
    ) -> None:
        """`use` is what its `Footprint` is to be told: the prompt's beginning, the hit, its own;
        `crowded` holds the targets that somebody waits for."""
        self._target = target
        self._crowded = crowded
        self._use = use
        self._dispatch = dispatch
        self._place: Place | None = None  # while it waits
        self.work: Tokens = 0  # of its prefill
        self.owed: Tokens = 0  # of that, by a stream's first byte
        self.unseen: Unseen | None = None  # or this, by a unary request
        self.uncached = uncached
        self.on_over: Callable[[bool], object] | None = None
        """Wants to hear, once, that it is on its way no longer, and whether it was read."""
        self._on_less: Callable[[Tokens], object] | None = None

    def __repr__(self) -> str:
        return f"<Owed {self.owed}, {self._use}>"

    @property
    def dispatch(self) -> Dispatch | None:
        """For `learn`; never None here."""
        return self._dispatch

    @property
    def wants_report(self) -> bool:
        """The engine is to be asked to tell what it reuses."""
        return self._dispatch.wants_report

    @property
    def alone(self) -> Tokens | None:
        """What of its hit is only on its way there counts as uncached. Asked of those that wait."""
        uncached, hit = self.uncached, self._use[1]
        if uncached is None or not hit or not self._dispatch.hashes:
            return uncached
        whole = uncached + hit
        return whole - min(hit, int(whole * self._dispatch.read_share))

    def __enter__(self) -> Self:
        beginning, hit, own = self._use
        self._target.footprint.begin(beginning, hit, own)
        return self

    def waits(self, place: Place) -> None:
        """It has not been sent yet."""
        self._place = place
        self._target.waiting.add(place, self.work)
        self._crowded.add(self._target)

    def goes(self) -> None:
        """It is sent now."""
        if self._place is not None:
            self._target.waiting.remove(self._place, self.work)
            self._place = None
            if not self._target.is_crowded:
                self._crowded.discard(self._target)

    def follow(self, on_less: Callable[[Tokens], object]) -> None:
        """It has been sent: who is to hear by how much less it has to prefill."""
        self._on_less = on_less

    def less(self, tokens: Tokens, work: Tokens) -> None:
        """Another gateway has sent so many of its tokens there, too, which are read once: so much
        work is left."""
        less, self.work = self.work - work, work
        target, place = self._target, self._place
        if place is not None:
            target.waiting.remove(place, work + less)
            target.waiting.add(place, work)
        if self.owed:
            self.owed -= less
            target.spared += less
            target.pace.spared(less)
        elif self.unseen is not None:
            target.ended_unseen += less
            target.pace.spared_unseen(self.unseen, less)
        assert self.uncached is not None
        self.uncached -= tokens
        self._dispatch.foresees(tokens)
        if self._on_less is not None:
            self._on_less(tokens)

    def first_byte(self, now: Seconds) -> None:
        """Its prompt has been read. Only the first call counts."""
        if self.owed:
            self._target.read += self.owed
            self._target.pace.prefilled(self.owed, now)
            self.owed = 0
        self._dispatch.first_byte(now)
        self._is_over(was_read=True)

    def answered(self, usage: Usage, now: Seconds) -> None:
        """The hit can be judged."""
        self._dispatch.answered(usage, now)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.goes()
        if self.owed:
            self._target.dropped += self.owed
            self._target.pace.dropped(self.owed)
            self.owed = 0
        if self.unseen is not None:
            self._target.ended_unseen += self.work
            self._target.pace.ended_unseen(self.unseen)
            self.unseen = None
        beginning, hit, own = self._use
        self._target.footprint.end(beginning, hit, own)
        self._dispatch.ended()
        self._is_over(was_read=False)

    def _is_over(self, *, was_read: bool) -> None:
        on_over, self.on_over = self.on_over, None
        if on_over is not None:
            on_over(was_read)
