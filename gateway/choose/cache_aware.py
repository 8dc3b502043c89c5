"""Cache-aware choosing: every replica priced in predicted seconds, the least wins.

    cost = wait + load + (u + overhead x running) / rate + PRICE x u / mean rate

`wait` is how long the replica is busy with prefill it already owes, `u` the prompt tokens it does
not hold, `load` how long it takes to bring in what it holds outside its GPU, `rate` what it
prefills per second, learnt. The last term is what a cold prefill costs
everybody behind it, in seconds of the mean replica; without it a pool near its limit gives affinity
away and must prefill more for it. What a replica holds is asked of `Holdings`.

Trade-offs. Costs grow with the replicas that hold a part of the prompt, not with the pool: hashing
stops when nobody holds more of it. Where engines publish no events, other gateways' dispatches and
the engine's own evictions are not seen: a prompt may be sent where it is no longer cached, which
costs what a miss costs, until responses that tell cached tokens have taught better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self

import msgspec

from gateway.choose.chooser import Choice, Claim
from gateway.choose.dispatch import Dispatch
from gateway.choose.holdings import Hits, Holdings
from gateway.choose.pace import Pace
from gateway.choose.text_chain import Prompt
from gateway.kv_cache import Tokenised
from gateway.vocabulary import (
    GenerationRequest,
    Prediction,
    ReplicaId,
    ReplicaView,
    Seconds,
    Tokens,
)

PRICE: Final = 4.0
"""How dear uncached work is to the others, in multiples of its own time. Larger prices keep more
affinity and herd on a hot prefix; docs/benchmarks has the comparison."""


class CacheAware:
    """A scorer with a memory: it is told of every dispatch, first byte and end."""

    __slots__ = ("_overhead_tokens", "_paces", "_prompt", "holdings")

    def __init__(self, overhead_tokens: Tokens, holdings: Holdings) -> None:
        """`overhead_tokens`: what one running request slows others by, in prefilled tokens."""
        self.holdings = holdings
        self._overhead_tokens = overhead_tokens
        self._paces: dict[ReplicaId, Pace] = {}
        self._prompt: Prompt | None = None  # the last one: it is priced, and then dispatched

    def __repr__(self) -> str:
        return f"<CacheAware {self._paces!r} {self.holdings!r}>"

    def pace(self, replica: ReplicaId) -> Pace:
        """Of a replica; a new one is believed to be of ordinary pace."""
        found = self._paces.get(replica)
        if found is None:
            found = self._paces[replica] = Pace()
        return found

    def forget(self, replica: ReplicaId) -> None:
        """It has left, or started anew."""
        self._paces.pop(replica, None)
        self.holdings.forget(replica)

    def tidy(self, now: Seconds) -> None:
        """To be called some times a second."""
        self.holdings.tidy(now)

    def repairs(self) -> list[ReplicaId]:
        """Replicas whose events are to be told again from the beginning."""
        return self.holdings.repairs()

    def learn(self, claim: Claim, tokenised: Tokenised) -> Iterator[None]:
        """The prompt of a dispatch in tokens; to be iterated to the end, others having turns."""
        if claim.dispatch is not None:
            yield from self.holdings.learn(claim.dispatch, tokenised)

    def quote(
        self, request: GenerationRequest, replicas: Sequence[ReplicaView], now: Seconds
    ) -> Priced:
        """In seconds; never negative. O(replicas + marks of the prompt that any of them holds)."""
        names = [one.id for one in replicas]
        paces = [self.pace(each) for each in names]
        hits = self.holdings.hits(self._prompt_of(request), names)
        # One over the mean rate, not the mean of one over rates: one slow replica must not make
        # uncached work look dear to a pool that would hardly feel it.
        mean_s = len(paces) / sum([pace.rate_per_s for pace in paces])
        overhead = self._overhead_tokens
        costs: list[float] = []
        for at, replica in enumerate(replicas):
            uncached, pace = hits.uncached(at), paces[at]
            own_s = (uncached + overhead * replica.inflight_requests) / pace.rate_per_s
            costs.append(pace.wait_s(now) + hits.load_s[at] + own_s + PRICE * uncached * mean_s)
        return Priced(costs, replicas, paces, hits, self.holdings, now)

    def dispatched(
        self, request: GenerationRequest, choice: Choice[ReplicaView], now: Seconds
    ) -> Claim:
        """It goes there: from now on the replica owes its prefill, and holds its prompt."""
        name = choice.replica.id
        pace, prompt = self.pace(name), self._prompt_of(request)
        uncached = self.holdings.hits(prompt, (name,)).uncached(0)
        dispatch = self.holdings.dispatched(prompt, name, now)
        self._prompt = None  # it is a view of the request's body
        if not request.stream:
            pace.begin_unseen(uncached, now)
            return Owed(pace, 0, dispatch, uncached)
        pace.begin(uncached, now)
        return Owed(pace, uncached, dispatch, uncached)

    def _prompt_of(self, request: GenerationRequest) -> Prompt:
        if self._prompt is None or self._prompt.request is not request:
            self._prompt = Prompt(request)
        return self._prompt


class Priced(msgspec.Struct, frozen=True):
    """Costs in seconds, and what they were made of. A `Quote`."""

    costs: Sequence[float]
    replicas: Sequence[ReplicaView]
    paces: Sequence[Pace]
    hits: Hits
    holdings: Holdings
    now: Seconds

    def prediction(self, index: int) -> Prediction:
        """As things were when it was priced."""
        pace, name = self.paces[index], self.replicas[index].id
        return Prediction(
            name,
            self.costs[index],
            hit_tokens=self.hits.tokens[index],
            wait_s=pace.wait_s(self.now),
            prefill_s=self.hits.uncached(index) / pace.rate_per_s,
            grade=self.holdings.grade(name),
        )


class Owed:
    """Prefill that a replica owes, and the hit it was predicted. A `Claim`.

    `tokens` is 0 for a unary request: its first byte says nothing of its prefill.
    """

    __slots__ = ("_dispatch", "_pace", "_tokens", "uncached")

    def __init__(self, pace: Pace, tokens: Tokens, dispatch: Dispatch, uncached: Tokens) -> None:
        self._pace = pace
        self._tokens = tokens
        self._dispatch = dispatch
        self.uncached: Tokens | None = uncached

    def __repr__(self) -> str:
        return f"<Owed {self._tokens} tokens>"

    @property
    def dispatch(self) -> Dispatch | None:
        """For `learn`; never None here."""
        return self._dispatch

    @property
    def wants_report(self) -> bool:
        """The engine is to be asked to tell what it reuses."""
        return self._dispatch.wants_report

    def __enter__(self) -> Self:
        return self

    def first_byte(self, now: Seconds) -> None:
        """Its prompt has been read. Only the first call counts."""
        tokens, self._tokens = self._tokens, 0
        if tokens:
            self._pace.prefilled(tokens, now)
        self._dispatch.first_byte(now)

    def answered(
        self, prompt_tokens: Tokens | None, cached_tokens: Tokens | None, now: Seconds
    ) -> None:
        """The hit can be judged."""
        self._dispatch.answered(prompt_tokens, cached_tokens, now)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tokens, self._tokens = self._tokens, 0
        if tokens:
            self._pace.dropped(tokens)
        self._dispatch.ended()
