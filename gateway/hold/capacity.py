"""May this replica be given more now?

A replica is open while

    what it has to prefill and has not begun   is within the commitment with the next, or within
                                               half of it before: its next step is always full,
                                               and nothing further is committed
    the sequences it has                       are fewer than its engine runs at once
    uncached prompt + expected output of all   fit in its KV cache together with the next

The commitment is so many tokens (two chunk budgets), or what the replica has shown to read in so
many seconds where that is less: engines do not tell their chunk, and those that are slow take small
ones. It is never less than LEAST_COMMIT_TOKENS, so that short prompts can share a step.

Counted by what we sent and what came back; nothing is averaged over the pool. A prompt is begun
when the first byte of a stream is here. A unary response shows nothing before its end: its prompt
counts until it is predicted to have been read, at the rate that streams have shown; while none
has, it does not count. Prompt tokens that are in the cache already take room only once, and are not
counted again: this errs towards giving too much, and then prompts are not begun and close the
replica by the first rule; so does an engine whose limits are lower than what is set.

What other gateways have there takes its room too, told a moment late. If one of them has waiters
for the replica and we went on filling every gap we see at once, it would never see one: each
gateway then keeps to its share, an equal part for all that have anything there. Each tells which
place its first waiter has, and the gaps go by that, as they would in one queue: whoever knows of k
others with a better place leaves them k times TURN_S before it takes the gap itself. Who does not
go, or is told of late, keeps nobody waiting longer.

Until their news come, each of them may have sent there as much as we have: what we sent in the last
UNHEARD_S is counted once for every gateway. So of a burst that comes to n of them at once no bound
is passed n times, but by one request of each of the others at most.

Invariants. With nothing in flight every count is zero. Nothing is taken or given back twice.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Final

from gateway.order import FIRST, Place
from gateway.record import Value
from gateway.vocabulary import Seconds, Tokens

PRIOR_RATE_PER_S: Final = 8_000.0  # prompt tokens; to predict a wait before any has been measured
LEAST_COMMIT_TOKENS: Final = 2048  # the least chunk budget that vLLM has by itself
BATCH_ALLOWANCE: Final = 0.125
"""The part of the commitment up to which batches are sent: others find the rest free."""
LEAST_SPAN_S: Final = 0.2
LEAST_TOKENS: Final = 1024
LEARNING: Final = 0.3  # weight of a new span
UNHEARD_S: Final = 0.01
"""After so long others' news are here, as a rule: a tick of `peers.tell_every_s`, and its way."""
TURN_S: Final = 0.008
"""So long a gap is left to each gateway whose first waiter has a better place than ours."""


class Bounds:
    """How much a replica may be given; None: as much as may be."""

    __slots__ = ("cache_tokens", "commit_s", "commit_tokens", "sequences")

    def __init__(
        self,
        commit_tokens: Tokens | None = None,
        sequences: int | None = None,
        cache_tokens: Tokens | None = None,
        commit_s: Seconds | None = None,
    ) -> None:
        self.commit_tokens: Final = commit_tokens
        self.sequences: Final = sequences
        self.cache_tokens: Final = cache_tokens
        self.commit_s: Final = commit_s

    def with_cache(self, tokens: Tokens | None) -> Bounds:
        """The same, of an engine with such a cache."""
        return Bounds(self.commit_tokens, self.sequences, tokens, self.commit_s)


class Part(Value, frozen=True):
    """What one gateway has at a replica, as `Room` counts it; how many wait there, how many tokens
    of streams were begun since it counts, and which place the first of those that wait has."""

    unbegun: Tokens = 0
    sequences: int = 0
    kv_tokens: Tokens = 0
    waiting: int = 0
    begun: Tokens = 0
    first_rank: int = 0
    first_due: Seconds = 0.0

    def is_before(self, place: Place) -> bool:
        """Does somebody wait there whose turn comes before this?"""
        return self.waiting > 0 and (self.first_rank, self.first_due) < place


NO_PART: Final = Part()


class Load:
    """What one request is to its replica. Kept by whoever took it, until it is given back."""

    __slots__ = ("due", "is_stream", "output", "unbegun", "uncached")

    def __init__(self, uncached: Tokens, output: Tokens, is_stream: bool) -> None:
        self.uncached = uncached
        self.output = output
        self.is_stream = is_stream
        self.unbegun: Tokens = 0
        self.due: Seconds = 0.0  # unary: when its prompt is believed to have been read

    def __repr__(self) -> str:
        return f"<Load {self.uncached} tokens, {self.unbegun} unbegun>"


class Room:
    """What one replica has. O(1) per event, amortised."""

    __slots__ = (
        "_done", "_elsewhere", "_gap_at", "_late", "_late_kv", "_late_unbegun", "_others", "_since",
        "_turn_at", "_unseen", "begun_tokens", "bounds", "free_at", "gateways", "kv_tokens",
        "parties", "rate_per_s", "sequences", "unbegun",
    )  # fmt: skip

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.sequences = 0
        self.kv_tokens: Tokens = 0
        self.unbegun: Tokens = 0  # prompt tokens not yet begun, as far as we know
        self.rate_per_s: float | None = None
        self.free_at: Seconds = 0.0  # when the prompts of unary requests will have been read
        self._unseen: deque[Load] = deque()  # unary ones, by when they are due
        self._since: Seconds = 0.0  # when this span of uninterrupted prefill began
        self._done: Tokens = 0  # begun in it
        self.begun_tokens: Tokens = 0  # of our own streams, ever
        self._others: dict[str, Part] = {}  # by gateway
        self._elsewhere = NO_PART  # their sum
        self.parties = 1  # gateways that share the room; 1 while no other waits for it
        self.gateways = 1  # all that there are
        self._gap_at: Seconds = 0.0  # when there was last room again
        self._turn_at: Seconds = 0.0  # of who was last asked about
        self._late: deque[tuple[Seconds, Tokens, Tokens]] = deque()
        """What we sent of late: until when it is late, its un-begun prompt, and its KV tokens."""
        self._late_unbegun: Tokens = 0  # sum over `_late`
        self._late_kv: Tokens = 0

    def __repr__(self) -> str:
        return f"<Room {self.unbegun} tokens unbegun, {self.sequences} sequences>"

    def commitment(self) -> Tokens | None:
        """Prompt tokens that it may owe and not have begun; None: as many as there are."""
        most, rate, seconds = self.bounds.commit_tokens, self.rate_per_s, self.bounds.commit_s
        if most is None or rate is None or seconds is None:
            return most
        return min(most, max(int(rate * seconds), LEAST_COMMIT_TOKENS))

    def is_open(self, now: Seconds, *, to_batch: bool = False) -> bool:
        """May it be given more at all?"""
        bounds = self.bounds
        commit = self.commitment()
        if commit is None:
            return True
        if self._unseen and self._unseen[0].due <= now:
            self._begin_due(now)
        if self._late and self._late[0][0] <= now:
            self._are_heard(now)
        if to_batch:
            commit = int(commit * BATCH_ALLOWANCE)
        if self.unbegun and self.unbegun + self._unheard >= commit:
            return False
        if self.parties > 1 and self._has_its_share(commit):
            return False
        unheard = (self.gateways - 1) * len(self._late)
        return bounds.sequences is None or self.sequences + unheard < bounds.sequences

    @property
    def _unheard(self) -> Tokens:
        """Un-begun, of others, since they were last heard: as much as we may have of late, each."""
        if not self._late:
            return 0
        own = self.unbegun - self._elsewhere.unbegun
        return (self.gateways - 1) * min(self._late_unbegun, own)

    def _has_its_share(self, commit: Tokens) -> bool:
        elsewhere, bounds, parties = self._elsewhere, self.bounds, self.parties
        return (
            self.unbegun - elsewhere.unbegun >= commit // parties
            or (
                bounds.sequences is not None
                and self.sequences - elsewhere.sequences >= max(bounds.sequences // parties, 1)
            )
            or (
                bounds.cache_tokens is not None
                and self.kv_tokens - elsewhere.kv_tokens >= bounds.cache_tokens // parties
            )
        )

    def try_take(self, load: Load, now: Seconds) -> bool:
        """Send it there if it may be sent now, and nobody waits elsewhere; False where not."""
        if self.parties > 1:
            return False
        if (self.unbegun or self._late) and not (
            self.is_open(now) and self.fits(load.uncached, load.output, now)
        ):
            return False
        bounds = self.bounds
        if bounds.sequences is not None and self.sequences >= bounds.sequences:
            return False
        if bounds.cache_tokens is not None and not self.fits(load.uncached, load.output, now):
            return False
        self.take(load, now)
        return True

    def fits(self, uncached: Tokens, output: Tokens, now: Seconds, place: Place = FIRST) -> bool:
        """May one like this, with this place, be sent where any may (`is_open` now)? An idle
        replica takes anything."""
        commit, cache = self.commitment(), self.bounds.cache_tokens
        if commit is None:
            return True
        unbegun = self.unbegun + self._unheard
        if unbegun > commit // 2 and unbegun + uncached > commit:
            return False
        if self.parties > 1 and now < self._its_turn_at(place):
            return False
        if cache is None or not self.sequences:
            return True
        unheard = (self.gateways - 1) * self._late_kv
        return self.kv_tokens + unheard + uncached + output <= cache

    def take(self, load: Load, now: Seconds) -> None:
        """It is sent there."""
        self.sequences += 1
        self.kv_tokens += load.uncached + load.output
        if load.is_stream:
            if not self.unbegun:
                self._since, self._done = now, 0
            load.unbegun = load.uncached
            self.unbegun += load.uncached
        elif self.rate_per_s is not None:
            self.free_at = load.due = max(self.free_at, now) + load.uncached / self.rate_per_s
            load.unbegun = load.uncached
            self.unbegun += load.uncached
            self._unseen.append(load)
        if self.gateways > 1:
            late = (now + UNHEARD_S, load.unbegun, load.uncached + load.output)
            self._late.append(late)
            self._late_unbegun += late[1]
            self._late_kv += late[2]

    def begun(self, load: Load, now: Seconds) -> None:
        """Its first byte is here: its prompt has been read. Only the first call counts."""
        if load.unbegun:
            self._lower(load.unbegun, now)
            load.unbegun = 0
            if load.is_stream:
                self.begun_tokens += load.uncached
                self._have_begun(load.uncached, now)

    def spared(self, load: Load, tokens: Tokens, now: Seconds) -> None:
        """So much of its prompt is read with what another gateway has sent."""
        load.uncached -= tokens
        self.kv_tokens -= tokens
        unbegun = min(tokens, load.unbegun)
        if unbegun:
            load.unbegun -= unbegun
            self._lower(unbegun, now)
            if not load.is_stream and self.rate_per_s is not None:
                self.free_at -= unbegun / self.rate_per_s

    def _lower(self, tokens: Tokens, now: Seconds) -> None:
        """So many un-begun are begun: is there room for the next?"""
        self.unbegun -= tokens
        if self.gateways > 1:
            half = (self.commitment() or 0) // 2
            if self.unbegun <= half < self.unbegun + tokens:
                self._gap_at = now

    def _its_turn_at(self, place: Place) -> Seconds:
        """When those that wait elsewhere and have a better place have had time to go. O(others)."""
        before = sum([part.is_before(place) for part in self._others.values()])
        self._turn_at = self._gap_at + before * TURN_S
        return self._turn_at

    def _have_begun(self, tokens: Tokens, now: Seconds) -> None:
        self._done += tokens
        span_s = now - self._since
        if span_s >= LEAST_SPAN_S and self._done >= LEAST_TOKENS:
            self._learn(self._done / span_s)
            self._since, self._done = now, 0

    def part(self, waiting: int, first: Place = FIRST) -> Part:
        """Our own, for other gateways; how many wait here, and which place the first has."""
        elsewhere = self._elsewhere
        return Part(
            self.unbegun - elsewhere.unbegun,
            self.sequences - elsewhere.sequences,
            self.kv_tokens - elsewhere.kv_tokens,
            waiting,
            self.begun_tokens,
            *first,
        )

    def others(self, peer: str, part: Part, now: Seconds) -> None:
        """Another gateway's; `NO_PART` once it is gone. O(gateways)."""
        was = self._others.pop(peer, None)
        if part is not NO_PART:
            self._others[peer] = part
        old, parts = self._elsewhere, self._others.values()
        new = Part(
            sum([each.unbegun for each in parts]),
            sum([each.sequences for each in parts]),
            sum([each.kv_tokens for each in parts]),
        )
        self._elsewhere = new
        if new.unbegun > old.unbegun and not self.unbegun:
            self._since, self._done = now, 0
        self._lower(old.unbegun - new.unbegun, now)
        self.sequences += new.sequences - old.sequences
        self.kv_tokens += new.kv_tokens - old.kv_tokens
        if was is not None and part.begun > was.begun:
            self._have_begun(part.begun - was.begun, now)
        self.parties = 1
        if any(each.waiting for each in parts):
            self.parties += sum([each.waiting > 0 or each.unbegun > 0 for each in parts])

    def beside(self, gateways: int) -> None:
        """So many of them send there, ourselves included."""
        self.gateways = gateways
        if gateways == 1:
            self._are_heard(inf)

    def _are_heard(self, now: Seconds) -> None:
        """What others have sent meanwhile is known."""
        late = self._late
        while late and late[0][0] <= now:
            _, unbegun, kv_tokens = late.popleft()
            self._late_unbegun -= unbegun
            self._late_kv -= kv_tokens

    def give_back(self, load: Load, now: Seconds) -> None:
        """It has ended, however it did."""
        if self.sequences == self.bounds.sequences:
            self._gap_at = now
        self.sequences -= 1
        self.kv_tokens -= load.uncached + load.output
        if load.unbegun:
            self._lower(load.unbegun, now)
            if not load.is_stream and self.rate_per_s is not None:
                self.free_at -= load.unbegun / self.rate_per_s
            load.unbegun = 0

    def next_due(self, now: Seconds) -> Seconds | None:
        """When it may be open by the clock alone: a unary prompt will be believed to have been
        read, or others' news be here. None if nothing is owed so."""
        self._begin_due(now)
        self._are_heard(now)
        dues = [self._unseen[0].due] if self._unseen else []
        if self._late:
            dues.append(self._late[0][0])
        if self.parties > 1 and self._turn_at > now:
            dues.append(self._turn_at)
        return min(dues, default=None)

    def wait_s(self, tokens: float) -> Seconds:
        """How long `tokens` more than are owed will take."""
        return (self.unbegun + tokens) / (self.rate_per_s or PRIOR_RATE_PER_S)

    def _begin_due(self, now: Seconds) -> None:
        unseen = self._unseen
        while unseen and (unseen[0].due <= now or not unseen[0].unbegun):
            load = unseen.popleft()
            self._lower(load.unbegun, now)
            self._done += load.unbegun
            load.unbegun = 0

    def _learn(self, rate: float) -> None:
        """Tokens begun over time, in spans in which there was always something to begin."""
        old = self.rate_per_s
        self.rate_per_s = rate if old is None else old + LEARNING * (rate - old)
