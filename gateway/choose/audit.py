"""Were we right? Predicted hits against what engines say they found in their caches.

Every response that tells its cached tokens is compared with what was predicted when the replica was
chosen and, where the prompt's tokens are known, with what its events said it held at that instant
(*settled*). The verdict on the latter decides how far a replica's events are trusted: several wrong
of the last ones ask for all its events again; if that does not help it is taken at what we sent it,
until a whole run of verdicts is right again.

Invariant: a response that says nothing teaches nothing.
"""

from __future__ import annotations

from typing import Final

from gateway.vocabulary import ModelName, Tokens

RECENT: Final = 8  # verdicts looked at
WRONG: Final = 3  # of those: something is amiss
RUN: Final = 16  # right ones in a row: trusted again

SURPRISED: Final = 0.05
"""Where predictions are off by more, as a share of the hit, every prompt is worth reading."""

SOME, SELDOM = 16, 64
"""One of so many is read all the same; fewer and fewer while responses say that predictions come
true without."""

_FADE: Final = 0.05  # per response: some twenty count
_CALM: Final = 0.95  # per prompt: who hears of no surprise reads less after some sixty

_MASK: Final = (1 << RECENT) - 1


class Tally:
    """Hits foretold and found; `error_tokens` sums the differences, whatever their sign."""

    __slots__ = ("error_tokens", "exact", "over", "under")

    def __init__(self) -> None:
        self.exact = 0
        self.over = 0
        self.under = 0
        self.error_tokens: Tokens = 0

    def __repr__(self) -> str:
        return f"<Tally {self.exact} exact, {self.over} over, {self.under} under>"

    def add(self, foretold: Tokens, found: Tokens, tolerance: Tokens = 0) -> None:
        """One response; what differs by no more than `tolerance` is exact."""
        error = foretold - found
        self.error_tokens += abs(error)
        if abs(error) <= tolerance:
            self.exact += 1
        elif error > 0:
            self.over += 1
        else:
            self.under += 1


class Curiosity:
    """Is the next prompt worth reading as tokens?

    Reading costs more than all else that is done for a request, so it is left out, but for one
    prompt in `SOME` to `SELDOM`, until what is predicted without does not come true.
    """

    __slots__ = ("_every", "_has_heard", "_is_all", "_passed", "_surprise")

    def __init__(self, *, is_all: bool = False) -> None:
        """`is_all`: every prompt is, whatever comes true."""
        self._is_all = is_all
        self._surprise = 0.0
        self._every = SOME
        self._passed = SOME  # since one was read; the first of all is
        self._has_heard = False  # a response, since then

    def __repr__(self) -> str:
        return f"<Curiosity {self._surprise:.2f}, one in {self._every}>"

    def foresaw(self, predicted: Tokens, found: Tokens, tolerance: Tokens) -> None:
        """What was predicted when the replica was chosen, and what it found."""
        error = max(abs(predicted - found) - tolerance, 0)
        share = error / max(predicted, found, 1)
        self._surprise += (share - self._surprise) * _FADE
        self._has_heard = True

    def takes(self) -> bool:
        """Decides on one more prompt."""
        self._surprise *= _CALM
        self._passed += 1
        if self._surprise > SURPRISED:
            self._every = SOME
        elif self._passed < self._every:
            return self._is_all
        elif self._has_heard:
            self._every = min(2 * self._every, SELDOM)
        self._passed, self._has_heard = 0, False
        return True


class Answers:
    """Does the next turn of a conversation repeat the tokens of the last answer?

    As a rule; but templates leave earlier reasoning out, and then what was cached of the answer is
    of no use. Told by responses, model by model.
    """

    __slots__ = ("_scores",)

    def __init__(self) -> None:
        self._scores: dict[ModelName, int] = {}

    def __repr__(self) -> str:
        return f"<Answers {self._scores}>"

    def are_kept(self, model: ModelName) -> bool:
        """As far as is known."""
        return self._scores.get(model, 1) >= 0

    def found(self, model: ModelName, *, is_kept: bool) -> None:
        """In one more next turn. Two of a kind in a row decide."""
        score = self._scores.get(model, 1) + (1 if is_kept else -1)
        self._scores[model] = min(max(score, -2), 1)


class Audit:
    """The verdicts on one replica."""

    __slots__ = ("_history", "_right", "_was_repaired", "is_doubted", "misses", "predicted",
                 "settled", "wants_repair")  # fmt: skip

    def __init__(self) -> None:
        self.predicted = Tally()
        self.settled = Tally()
        self.is_doubted = False  # its events are not to be believed for now
        self.misses = False  # the last response found more than its events had told
        self.wants_repair = False
        self._history = 0  # one bit per verdict, 1 for wrong
        self._right = 0  # in a row
        self._was_repaired = False

    def __repr__(self) -> str:
        return f"<Audit {self.settled!r}{', doubted' if self.is_doubted else ''}>"

    def judge(self, least: Tokens, most: Tokens, found: Tokens) -> None:
        """Of a replica whose events are read: `found` should have been between the two."""
        is_wrong = not least <= found <= most
        self.misses = found > most
        self._history = (self._history << 1 | is_wrong) & _MASK
        self._right = 0 if is_wrong else self._right + 1
        if self._right >= RUN:
            self.is_doubted = self._was_repaired = False
        if self._history.bit_count() < WRONG:
            return
        self._history = 0
        if self._was_repaired:
            self.is_doubted = True
        else:
            self.wants_repair = self._was_repaired = True
