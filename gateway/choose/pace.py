"""How fast does a replica prefill, and until when is it busy with what it has been given?

Prompts are counted in work (`price.work`): tokens as they would cost without context.

Rates are learnt from busy spans: a span begins when work is owed and ends when none is; the work
finished over its length needs no taking apart into single requests, and holds for any GPU, degree
of parallelism or slice, with whatever decoding goes on beside. A span costs a + work / rate
seconds; both are fitted by least squares over spans that fade, and a prior that fades as they come.
Spans that are all alike tell a and rate apart by nothing but noise, and would have it that work
costs nothing, or all: so a is believed to be small, to within SPAN_SPREAD_S, the more firmly the
more the spans differ by what their work does not explain (the posterior mean of a normal prior).
Under load a span may never end, so one that has lasted a while is cut at a first byte: what was
finished since the last cut then belongs to the time since.

The clock `free_at` says when the prefill that is owed will be done. It moves on with every prompt
dispatched, drains with time, and is set right by every first byte seen (research: a queue that is
only emptied at first bytes counts a prompt in full until its very end). With a new rate it is
another at once: replicas are compared, and the one that has been set right alone looks the emptier
by all that the others' clocks are behind. A replica that is late by so much is expected to be late
by as much again: it is not free, and whoever waits for what it holds waits no longer than that is
worth.

Unary responses show their first byte only when all is generated: their prompts are owed until the
instant their prefill is predicted to be done, or the response has ended, if that is sooner (where
nothing but unary requests is sent, no rate is learnt, and a slow prior would have them owed for
ever). A span that holds one teaches nothing; nor does
one in which a prompt was dropped.

What other gateways send there is told a moment late: it is owed like ours, and read like ours. A
span it has a part in is closed a moment after it was cut, when it is known what others had read by
then: tokens on the wrong side of a cut flatten the line that is fitted, and make rates too high.
Its beginning is seen late all the same, so it teaches only when it was long.

The prior is what the pool has learnt, or what the replica says of itself makes likely, and may be
told anew at any time: then only what it is still worth changes. A pinned rate is believed for ever.

Invariants. Nothing owed means a clock in the past, or within one prediction of it. The rate stays
within its bounds. What is owed is never negative, and zero when nothing is in flight.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Final

from gateway.vocabulary import Seconds, Tokens

PRIOR_RATE_PER_S: Final = 8_000.0  # a mid-size model on one data-centre GPU
PRIOR_SPAN_S: Final = 0.02  # a, or half of the mean span, if that is less
PRIOR_WEIGHT: Final = 2.0  # in spans
MOST_PRIOR_TOKENS: Final = 4_000.0  # in one of them
SPAN_SPREAD_S: Final = 0.05  # by so much may a be another than PRIOR_SPAN_S
FADE: Final = 0.97  # per span: some thirty of them count
CUT_S: Final = 2.0  # a span that has lasted so long is cut at the next first byte
HEARD_S: Final = 0.03  # what others had read is heard of so soon
LEAST_JOINT_S: Final = 1.0  # a span that others had a part in, to be learnt from
LEAST_RATE_PER_S: Final = 50.0
MOST_RATE_PER_S: Final = 1_000_000.0
LEAST_UNSEEN: Final = 64  # as many that have ended may be kept among those that have not


class Unseen:
    """The prompt of a unary request: so much work is owed of it, until then at most."""

    __slots__ = ("due", "tokens")

    def __init__(self, due: Seconds, tokens: Tokens) -> None:
        self.due = due
        self.tokens = tokens

    def __repr__(self) -> str:
        return f"<Unseen {self.tokens} owed until {self.due:.3f}>"


class Pace:
    """The clock and the learnt rate of one replica. O(1) per event, spread over its prompts."""

    __slots__ = (
        "_busy_s", "_counted_at", "_cut_at", "_cut_done", "_done", "_first_per_s",
        "_is_clear", "_is_joint",
        "_is_pinned", "_late_since", "_n", "_others_unseen", "_prior_per_s", "_since", "_sx",
        "_sxx", "_sxy", "_sy", "_syy", "_unseen", "_unseen_live", "_unseen_owed", "_weight",
        "free_at", "has_learnt", "others_owed", "owed", "rate_per_s", "shown_per_s",
    )  # fmt: skip

    def __init__(self, rate_per_s: float = PRIOR_RATE_PER_S, *, is_pinned: bool = False) -> None:
        """Work a second: what is likely before anything is known, or pinned, what is known."""
        self.free_at: Seconds = 0.0
        self.owed: Tokens = 0  # of streams whose first byte has not come
        self.others_owed: Tokens = 0  # the part of it that other gateways sent
        self.has_learnt = False
        self._busy_s: Seconds = 0.0  # with prefill to do, until `_counted_at`
        self._counted_at: Seconds = 0.0
        self._is_pinned = is_pinned
        self._unseen: list[Unseen] = []  # as they were sent; some have ended
        self._unseen_live = 0  # of them, those that have not
        self._unseen_owed: Tokens = 0  # their sum
        self._others_unseen: deque[tuple[Tokens, Unseen]] = deque()
        """Those of other gateways, whichever: how much of each has not ended."""
        self._since: Seconds = 0.0  # when this span began
        self._done: Tokens = 0  # finished in this span
        self._cut_at: Seconds | None = None  # where it ended, and another one began
        self._cut_done: Tokens = 0  # finished in the one that ended
        self._late_since: Seconds | None = None  # what is owed was to be done then
        self._is_clear = True  # the span shows all that was done in it
        self._is_joint = False  # others have a part in it
        self._n = self._sx = self._sy = self._sxx = self._sxy = self._syy = 0.0  # of spans seen
        self._weight = PRIOR_WEIGHT
        self._first_per_s = self._prior_per_s = self.rate_per_s = _within(rate_per_s)
        self.shown_per_s = self.rate_per_s
        """The rate by its own showing, whatever others have shown."""

    @property
    def evidence(self) -> float:
        """How much of its rate is its own showing, and not the prior: 0 to 1."""
        return self._n / (self._n + self._weight)

    def prior(self, rate_per_s: float) -> None:
        """Something has become known of it; what is pinned is known better."""
        self._first_per_s = _within(rate_per_s)
        self.likely(rate_per_s)
        self._show()

    def likely(self, rate_per_s: float) -> None:
        """So fast are those like it, by what they have shown."""
        if not self._is_pinned:
            self._prior_per_s = _within(rate_per_s)
            self._fit()

    def __repr__(self) -> str:
        return f"<Pace {self.rate_per_s:.0f} a second, {self.owed} owed>"

    def wait_s(self, now: Seconds) -> Seconds:
        """How long until the prefill that is owed will be done."""
        return max(self.free_at - now, 0.0)

    def busy_s(self, now: Seconds) -> Seconds:
        """For how long there has been prefill to do, ever."""
        self._pass(now)
        return self._busy_s

    def _pass(self, now: Seconds) -> None:
        """It is so late by now."""
        since, self._counted_at = self._counted_at, now
        if self.owed:
            self._busy_s += now - since
            if self.free_at < now:
                if self._late_since is None:
                    self._late_since = self.free_at
                self.free_at = now + (now - self._late_since)
        elif self.free_at > since:
            self._busy_s += min(self.free_at, now) - since
        if self._cut_at is not None:
            self._close(now)

    def begin(self, tokens: Tokens, now: Seconds) -> None:
        """A stream is dispatched; its prompt is so much work."""
        self._pass(now)
        if not self.owed:
            self._since = now
            self._done = 0
            self._cut_at, self._cut_done = None, 0
            self._is_clear = not self._unseen_tokens(now)
            self._is_joint = False
        self.owed += tokens
        self._extend(tokens, now)

    def begin_unseen(self, tokens: Tokens, now: Seconds) -> Unseen:
        """The same, of a unary request."""
        self._pass(now)
        self._extend(tokens, now)
        kept = self._unseen
        while kept and not kept[-1].tokens:
            kept.pop()
        # The clock may have been set back since the last one came, which is read before this one.
        unseen = Unseen(max(self.free_at, kept[-1].due) if kept else self.free_at, tokens)
        if not tokens:
            return unseen
        kept.append(unseen)
        self._unseen_owed += tokens
        self._unseen_live += 1
        self._is_clear = False
        if len(self._unseen) > 2 * self._unseen_live + LEAST_UNSEEN:
            self._unseen = [each for each in self._unseen if each.tokens]
        return unseen

    def ended_unseen(self, unseen: Unseen) -> None:
        """It has ended, and had been read by then, or will not be. Only the first call counts."""
        if unseen.tokens:
            self.free_at -= unseen.tokens / self.rate_per_s
            self._settle(unseen)

    def prefilled(self, tokens: Tokens, now: Seconds) -> None:
        """The first byte of such a stream has come."""
        self._pass(now)
        self.owed = max(self.owed - tokens, 0)
        if self._cut_at is not None:  # just now: it had been read by then
            self._cut_done += tokens
        else:
            self._done += tokens
            if now - self._since >= CUT_S:
                self._cut_at, self._cut_done, self._done = now, self._done, 0
        if not self._is_joint:
            self._close(inf)
        if not self.owed:
            self._cut_at, self._cut_done = now, self._done + self._cut_done
            self._close(inf)
        self.free_at = now + (self.owed + self._unseen_tokens(now)) / self.rate_per_s
        self._late_since = None

    def _close(self, now: Seconds) -> None:
        """Learn from the span that was cut, once all is known that had been read by then."""
        cut_at = self._cut_at
        if cut_at is None or now - cut_at <= HEARD_S:
            return
        if self._is_clear and (not self._is_joint or cut_at - self._since >= LEAST_JOINT_S):
            self._learn(self._cut_done, cut_at - self._since)
        if not self.owed:
            self._done = 0
        self._since, self._cut_at, self._cut_done = cut_at, None, 0
        self._is_clear = not self._unseen_tokens(cut_at)
        self._is_joint = self.others_owed > 0

    def dropped(self, tokens: Tokens) -> None:
        """Such a stream ended without a first byte."""
        self.spared(tokens)
        self._is_clear = False

    def spared(self, tokens: Tokens) -> None:
        """So much of such streams is not to be read: another gateway has sent the same."""
        self.owed = max(self.owed - tokens, 0)
        self.free_at -= tokens / self.rate_per_s
        if not self.owed and self._late_since is not None:
            self.free_at = self._unseen[-1].due if self._unseen_live else self._late_since
            self._late_since = None

    def spared_unseen(self, unseen: Unseen, tokens: Tokens) -> None:
        """The same of a unary request."""
        tokens = min(tokens, unseen.tokens - 1)
        if tokens > 0:
            unseen.tokens -= tokens
            self._unseen_owed -= tokens
            self.free_at -= tokens / self.rate_per_s

    def others_began(self, tokens: Tokens, now: Seconds) -> None:
        """Another gateway has dispatched streams with so much work."""
        if tokens > 0:
            self.begin(tokens, now)
            self.others_owed += tokens
            self._is_joint = True

    def others_read(self, tokens: Tokens, now: Seconds) -> None:
        """First bytes of such streams have come."""
        tokens = min(tokens, self.others_owed)
        if tokens > 0:
            self.others_owed -= tokens
            self._is_joint = True
            self.prefilled(tokens, now)

    def others_dropped(self, tokens: Tokens) -> None:
        """Such streams have ended without, or their gateway has gone."""
        tokens = min(tokens, self.others_owed)
        if tokens > 0:
            self.others_owed -= tokens
            self.dropped(tokens)

    def others_spared(self, tokens: Tokens) -> None:
        """So much of such streams is not to be read after all."""
        tokens = min(tokens, self.others_owed)
        if tokens > 0:
            self.others_owed -= tokens
            self.spared(tokens)

    def others_began_unseen(self, tokens: Tokens, now: Seconds) -> None:
        """Another gateway has dispatched unary requests with so much work."""
        if tokens > 0:
            self._others_unseen.append((tokens, self.begin_unseen(tokens, now)))

    def others_ended_unseen(self, tokens: Tokens) -> None:
        """Of such requests so much work has ended: the oldest, for all that is known."""
        others = self._others_unseen
        while tokens > 0 and others:
            left, oldest = others.popleft()
            if left > tokens:
                others.appendleft((left - tokens, oldest))
            else:
                self.ended_unseen(oldest)
            tokens -= left

    def _extend(self, tokens: Tokens, now: Seconds) -> None:
        self.free_at = max(self.free_at, now) + tokens / self.rate_per_s

    def _unseen_tokens(self, now: Seconds) -> Tokens:
        unseen, past = self._unseen, 0
        while past < len(unseen) and ((first := unseen[past]).due <= now or not first.tokens):
            self._settle(first)
            past += 1
        if past:
            del unseen[:past]
        return self._unseen_owed

    def _settle(self, unseen: Unseen) -> None:
        if unseen.tokens:
            self._unseen_owed -= unseen.tokens
            self._unseen_live -= 1
            unseen.tokens = 0

    def _learn(self, tokens: Tokens, span_s: Seconds) -> None:
        if tokens <= 0 or span_s <= 0.0 or self._is_pinned:
            return
        self.has_learnt = True
        self._weight *= FADE
        self._n = FADE * self._n + 1.0
        self._sx = FADE * self._sx + tokens
        self._sy = FADE * self._sy + span_s
        self._sxx = FADE * self._sxx + tokens * tokens
        self._sxy = FADE * self._sxy + tokens * span_s
        self._syy = FADE * self._syy + span_s * span_s
        self._show()
        self._fit()

    def _show(self) -> None:
        self.shown_per_s = self.rate_per_s if self._is_pinned else self._fitted(self._first_per_s)

    def _fit(self) -> None:
        """By all that is known now; what is owed is then done sooner, or later."""
        was_per_s, self.rate_per_s = self.rate_per_s, self._fitted(self._prior_per_s)
        if self.free_at > self._counted_at:
            left_s = self.free_at - self._counted_at
            self.free_at = self._counted_at + left_s * was_per_s / self.rate_per_s

    def _fitted(self, prior_per_s: float) -> float:
        """The prior is half without work, and half of as much work as is usual here."""
        if not self.has_learnt:
            return prior_per_s
        half = self._weight / 2
        usual = min(self._sx / self._n, MOST_PRIOR_TOKENS)
        empty_s = min(PRIOR_SPAN_S, self._sy / self._n / 2)
        prior_s = empty_s + usual / prior_per_s
        empty = half + self._noise() / SPAN_SPREAD_S**2
        n = self._n + half + empty
        sx = self._sx + half * usual
        sy = self._sy + half * prior_s + empty * empty_s
        sxx = self._sxx + half * usual**2
        sxy = self._sxy + half * usual * prior_s
        spread = n * sxx - sx**2
        slope = (n * sxy - sx * sy) / spread if spread > 0.0 else 0.0
        if slope <= 0.0:  # more work took less: the mean is all there is to learn
            slope = sy / sx
        return _within(1.0 / slope)

    def _noise(self) -> float:
        """By how much spans differ from what their work explains, squared, in the mean."""
        n, sx, sy = self._n, self._sx, self._sy
        spread, rise = self._sxx - sx**2 / n, self._sxy - sx * sy / n
        explained = rise**2 / spread if spread > 0.0 else 0.0
        return max(self._syy - sy**2 / n - explained, 0.0) / n


def _within(rate_per_s: float) -> float:
    return min(MOST_RATE_PER_S, max(LEAST_RATE_PER_S, rate_per_s))
