"""One engine's numbered batches, put back in order: a machine that never hides a gap.

Asked: a batch has come (live, or replayed), or nothing has; what is to be done? It answers with
effects, in order. It knows no sockets and no clocks: its owner carries out an `Ask` on a connection
of its own, and names the round when it hands in what that brings.

    ASKING     from the start, at a gap, and after silence: live batches wait, in bounded space
    FOLLOWING  the numbers have no gap so far: live batches are applied as they come
    ADRIFT     a gap could not be covered: live batches are applied as they come; after
               `retry_after_s` everything is asked for anew. For ever, where there is no replay.

What is known of replays (vLLM 0.32): batches in the middle, and at the end, may be lost without a
word, and so may the end marker; the first batch of a round never is. Hence
- a round that shows a gap is given up, and the next one begins at that gap;
- the end marker ends the asking only where the live stream shows that nothing followed, or where
  a round has brought nothing new;
- a round begins one number early, at the batch applied last. If that is not what is told again, the
  engine has started anew, or no longer keeps what is missing: all that it keeps is taken afresh.

Invariants, for the batches applied since the last `Retold`: their numbers rise; they are of one
life of the engine where rounds could verify it; under EXACT they are all of 0, 1, ... and under
PARTIAL all of n, n + 1, ... , unless the cache was cleared on the way, which makes up for what came
before. From a gap seen until it is covered, neither is claimed.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from gateway.kv_cache import Certainty
from gateway.record import Value
from gateway.vocabulary import Seconds


class Patience(Value, frozen=True):
    """How long, and how much."""

    silence_s: Seconds = 1.0  # a round that brings nothing for so long is given up
    fruitless_rounds: int = 3  # in a row: asking has failed
    retry_after_s: Seconds = 30.0  # from a failure to the next try
    verify_after_s: Seconds = 30.0  # nothing live for so long: look whether something was missed
    held_batches: int = 10_000  # live ones, while asking; what exceeds it is asked for later
    held_bytes: int = 64 * 1024 * 1024


PATIENCE: Final = Patience()


class Apply(Value, frozen=True):
    """Tell of the events in this batch."""

    number: int
    batch: bytes


class Retold(Value, frozen=True):
    """What was told before counts no more."""


class Say(Value, frozen=True):
    """So far can it be trusted from now on."""

    certainty: Certainty


class Ask(Value, frozen=True):
    """Ask for the batches from `first` on, over a fresh connection; drop the round before."""

    first: int
    round: int


Effect = Apply | Retold | Say | Ask


class _State(Enum):
    ASKING = auto()
    FOLLOWING = auto()
    ADRIFT = auto()


class EventSequence:
    """The state of one source. Every method returns what is to be done, in order.

    An owner that finds out what is in a batch tells it before it hands in the next message.
    """

    def __init__(self, can_replay: bool, patience: Patience) -> None:
        self.gaps = 0
        self.rounds = 0
        self.certainty = Certainty.DEGRADED
        self._can_replay = can_replay
        self._patience = patience
        self._state = _State.FOLLOWING
        self._effects: list[Effect] = []
        self._next = 0  # the number after the one applied last
        self._last: bytes | None = None  # the batch applied last, since the last retelling
        self._is_settled = False  # between `_next` and what we know of, nothing is amiss
        self._hole_at: int | None = None  # what came before this number is not known whole
        self._is_head = False  # the hole is the beginning, which is no longer kept
        self._newest_live: int | None = None  # since the wire was last cut
        self._held: dict[int, bytes] = {}  # live batches that wait, by rising number
        self._held_bytes = 0
        self._is_anew = False  # this round takes everything afresh
        self._is_opened = False  # this round has brought something
        self._has_news = False  # this round has brought a batch not yet applied
        self._fruitless = 0  # rounds in a row
        self._due_at: Seconds = 0.0
        self._repair_from: Seconds = 0.0

    def __repr__(self) -> str:
        return f"<EventSequence {self._state.name} at {self._next}, {self.certainty}>"

    @property
    def is_under_way(self) -> bool:
        """Batches have come, and nothing is asked for."""
        return self._state is _State.FOLLOWING and self._last is not None

    # What happens to it

    def begin(self, now: Seconds) -> list[Effect]:
        """Once, when its owner listens to the live stream."""
        self._effects.append(Say(self.certainty))
        if self._can_replay:
            self._ask_anew(now)
        return self._taken()

    def live(self, number: int, batch: bytes, now: Seconds) -> list[Effect]:
        """A batch was published."""
        newest, self._newest_live = self._newest_live, number
        if number == newest:
            return []  # a second time
        if newest is not None and number < newest:
            self._start_anew(number, batch, now)
        elif self._state is _State.ASKING:
            self._hold(number, batch)
        elif number == self._next:
            self._apply(number, batch)
            if self._state is _State.FOLLOWING:
                self._due_at = now + self._patience.verify_after_s
                if not self._is_settled:  # the very first, and it is number 0
                    self._is_settled = True
                    self._judge()
        elif number > self._next:
            self._pass_over(number, batch, now)
        elif newest is None:  # either late, or of another life
            if not self._can_replay:
                self._start_anew(number, batch, now)
            elif self._state is _State.FOLLOWING:
                self._ask_on(now)
        return self._taken()

    def replayed(self, round_: int, number: int, batch: bytes, now: Seconds) -> list[Effect]:
        """A batch came in a round; one of an earlier round is passed over."""
        if round_ != self.rounds or self._state is not _State.ASKING:
            return []
        self._due_at = now + self._patience.silence_s
        if not self._is_opened:
            self._open_round(number, batch, now)
        elif number == self._next:
            self._take(number, batch)
        elif number > self._next:
            self._gap()
            self._ask_on(now)
        return self._taken()

    def ended(self, round_: int, now: Seconds) -> list[Effect]:
        """The end marker of a round came."""
        if round_ != self.rounds or self._state is not _State.ASKING:
            return []
        if not self._is_opened:
            if not self._is_anew:  # what we know is not kept: another life
                self._ask_anew(now)
                return self._taken()
            self._retell(0)
        self._apply_held()
        newest = self._newest_live
        if newest is not None and newest >= self._next:
            self._gap()
            self._ask_again(now)
        elif self._has_news and newest != self._next - 1:
            self._ask_on(now)  # the end of what was told may be lost
        else:
            self._follow(now)
        return self._taken()

    def idle(self, now: Seconds) -> list[Effect]:
        """Nothing waits to be handed in."""
        if now < self._due_at or not self._can_replay:
            return []
        if self._state is _State.FOLLOWING:
            self._ask_on(now)  # something may have been said and lost
        elif self._state is _State.ADRIFT:
            self._ask_anew(now)
        else:
            self._ask_again(now)
        return self._taken()

    def cut(self, now: Seconds) -> list[Effect]:
        """The live stream was interrupted: what comes next may be of another life."""
        self._newest_live = None
        self._held.clear()
        self._held_bytes = 0
        if not self._can_replay:
            self._lose(self._next)
        elif self._state is not _State.ADRIFT:
            self._ask_on(now)
        self._judge()
        return self._taken()

    def repair(self, now: Seconds) -> list[Effect]:
        """What was told was found to be wrong: take everything afresh, if that can be had.

        At most once in `retry_after_s`.
        """
        if self._can_replay and self._state is not _State.ASKING and now >= self._repair_from:
            self._repair_from = now + self._patience.retry_after_s
            self._ask_anew(now)
        return self._taken()

    def cleared(self, number: int) -> list[Effect]:
        """This batch has emptied the cache: what came before it is of no account."""
        if self._hole_at is not None and number >= self._hole_at:
            self._hole_at = None
            if self._state is _State.ADRIFT:
                self._state = _State.FOLLOWING
            self._judge()
        return self._taken()

    def unreadable(self, number: int) -> list[Effect]:
        """This batch could not be read, so nobody was told of its events."""
        self._lose(number + 1)
        self._judge()
        return self._taken()

    # Rounds

    def _ask_anew(self, now: Seconds) -> None:
        self._is_settled = False
        self._judge()
        self._ask(0, now)
        self._is_anew = True

    def _ask_on(self, now: Seconds) -> None:
        """From the batch applied last, which tells whether this is still the same life."""
        self._is_anew = self._last is None
        self._ask(0 if self._is_anew else self._next - 1, now)

    def _ask(self, first: int, now: Seconds) -> None:
        self._state = _State.ASKING
        self.rounds += 1
        self._is_opened = self._has_news = False
        self._due_at = now + self._patience.silence_s
        self._effects.append(Ask(first, self.rounds))

    def _ask_again(self, now: Seconds) -> None:
        """This round did not do. Give up after some that brought nothing."""
        if not self._has_news:
            self._fruitless += 1
        if self._fruitless >= self._patience.fruitless_rounds:
            self._fail(now)
        elif self._is_anew and not self._is_opened:
            self._ask_anew(now)
        else:
            self._ask_on(now)

    def _open_round(self, number: int, batch: bytes, now: Seconds) -> None:
        if self._is_anew:
            self._retell(number)
            self._take(number, batch)
        elif number == self._next - 1 and batch != self._last:
            self._ask_anew(now)  # another life
            return
        elif number >= self._next:  # all that is kept begins here
            self._gap()
            self._retell(number)
            self._take(number, batch)
        elif number < self._next - 1:
            return  # older than we asked for
        self._is_opened = True

    def _take(self, number: int, batch: bytes) -> None:
        self._apply(number, batch)
        self._has_news = True
        self._fruitless = 0

    def _follow(self, now: Seconds) -> None:
        self._state = _State.FOLLOWING
        self._is_settled = True
        self._fruitless = 0
        self._due_at = now + self._patience.verify_after_s
        self._judge()

    def _fail(self, now: Seconds) -> None:
        """What is missing cannot be had now: go on without it, and try again later."""
        self._fruitless = 0
        self._due_at = now + self._patience.retry_after_s
        self._go_adrift(self._next)
        for number, batch in self._held_taken():
            self._drift(number, batch)
        if self._newest_live is not None and self._newest_live >= self._next:
            self._lose(self._newest_live + 1)  # there was no room for it
        self._judge()

    # Batches

    def _hold(self, number: int, batch: bytes) -> None:
        """What there is no room for will be missing at the end of the round, and asked for."""
        patience = self._patience
        room = patience.held_bytes - self._held_bytes
        if len(batch) <= room and len(self._held) < patience.held_batches:
            self._held[number] = batch
            self._held_bytes += len(batch)

    def _held_taken(self) -> list[tuple[int, bytes]]:
        """All that was held, which is held no more."""
        taken = list(self._held.items())
        self._held.clear()
        self._held_bytes = 0
        return taken

    def _apply_held(self) -> None:
        """Those that follow; what lies behind a gap is held on."""
        for number, batch in self._held_taken():
            if number == self._next:
                self._apply(number, batch)
            elif number > self._next:
                self._hold(number, batch)

    def _apply(self, number: int, batch: bytes) -> None:
        self._effects.append(Apply(number, batch))
        self._next = number + 1
        self._last = batch

    def _pass_over(self, number: int, batch: bytes, now: Seconds) -> None:
        """A live batch that is not the next one."""
        self._gap()
        if self._can_replay and self._state is _State.FOLLOWING:
            self._hold(number, batch)
            self._ask_on(now)
            return
        self._go_adrift(number)
        self._drift(number, batch)
        self._judge()

    def _drift(self, number: int, batch: bytes) -> None:
        if number > self._next:
            self._lose(number)
        if number >= self._next:
            self._apply(number, batch)

    def _start_anew(self, number: int, batch: bytes, now: Seconds) -> None:
        """It counts from 0 again."""
        self._held_taken()
        self._retell(0)
        if self._can_replay:
            self._hold(number, batch)
            self._ask_anew(now)
            return
        self._state, self._is_settled = _State.FOLLOWING, True
        self._drift(number, batch)
        self._judge()

    # What is known

    def _retell(self, first: int) -> None:
        self._effects.append(Retold())
        self._next, self._last = first, None
        self._is_settled = False
        self._hole_at, self._is_head = (first, True) if first else (None, False)
        self._judge()

    def _gap(self) -> None:
        self.gaps += self._is_settled
        self._is_settled = False
        self._judge()

    def _go_adrift(self, hole_at: int) -> None:
        self._state, self._is_settled = _State.ADRIFT, True
        self._lose(hole_at)

    def _lose(self, hole_at: int) -> None:
        self._hole_at, self._is_head = max(hole_at, self._hole_at or 0), False

    def _judge(self) -> None:
        certainty = Certainty.DEGRADED
        if self._is_settled and self._hole_at is None:
            certainty = Certainty.EXACT
        elif self._is_settled and self._is_head:
            certainty = Certainty.PARTIAL
        if certainty is not self.certainty:
            self.certainty = certainty
            self._effects.append(Say(certainty))

    def _taken(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
