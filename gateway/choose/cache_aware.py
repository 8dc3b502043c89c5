"""Cache-aware choosing: every replica priced in predicted seconds (`price`), the least
wins.

How fast a replica is, and until when it is busy, is learnt (`Pace`); what it holds is asked of
`Holdings`, and counted from dispatch on, so that siblings follow their leader.

Trade-offs. Costs grow with the replicas that hold a part of the prompt, not with the pool: hashing
stops when nobody holds more of it. Where engines publish no events, other gateways' dispatches and
the engine's own evictions are not seen: a prompt may be sent where it is no longer cached, which
costs what a miss costs, until responses that tell cached tokens have taught better.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from math import inf
from typing import Final

from msgspec.structs import replace

from gateway.choose.chooser import Choice, Claim, Memory, Quote, Scorer
from gateway.choose.doubled import Brought, Doubled
from gateway.choose.elsewhere import MARK_BYTES
from gateway.choose.holdings import Holdings
from gateway.choose.owed import Owed
from gateway.choose.pace import Pace
from gateway.choose.pool import Pool
from gateway.choose.price import REUSE_WEIGHT, Price, work
from gateway.choose.ruler import Hits
from gateway.choose.target import NO_PART, Part, Target
from gateway.choose.text_chain import Prompt
from gateway.kv_cache import BlockEvent, Certainty, EngineFacts, Placement, Reading, Tokenised
from gateway.order import place
from gateway.request import GenerationRequest
from gateway.settings import ChooseSettings
from gateway.vocabulary import Prediction, ReplicaId, ReplicaView, Seconds, Tokens

LOOK_EVERY_S: Final = 0.25
FRESH_S: Final = 0.02  # what was priced no longer ago is not looked up again
"""How often it is looked who is busy, and what rates have become."""

WORTH_TELLING: Final[Tokens] = 1024
"""Of a prompt, new to its replica: what is less will have been read before it could matter to
another gateway that it was sent, and is soon read twice."""

LEAST_REUSE: Final = 0.2
"""Where nobody comes back, tokens in use cost nobody a cache; but those that run slow each other
down all the same, and equal replicas should have equally many."""

MOST_REUSE_WEIGHT: Final = 0.05

MOST_POOLS: Final = 256  # one for each model that is served, as a rule


class CacheAware(Scorer, Memory):
    """A scorer with a memory: it is told of every dispatch, first byte and end.

    A `BlockListener`, too.
    """

    __slots__ = (
        "_attention_tokens",
        "_crowded",
        "_doubled",
        "_footprint",
        "_gateway",
        "_looked_at",
        "_overhead_tokens",
        "_pools",
        "_price",
        "_prompt",
        "_reuse",
        "_reuse_weight",
        "_settings",
        "_targets",
        "holdings",
        "placements",
    )

    def __init__(self, settings: ChooseSettings, price: Price | None = None) -> None:
        self.holdings = Holdings(
            settings.cache_tokens,
            settings.load_tokens_per_s,
            reads_all=settings.read_every_prompt,
        )
        self._settings = settings
        # Asked for every request: of our own they are found sooner than in settings.
        self._attention_tokens = float(settings.attention_tokens)
        self._overhead_tokens: Tokens = settings.request_overhead_tokens
        self._price = Price() if price is None else price
        self._footprint = float(self._price.footprint)
        self._targets: dict[ReplicaId, Target] = {}
        self._prompt: Prompt | None = None  # the last one: it is priced, and then dispatched
        self._pools: dict[int, Pool] = {}  # by identity of a tuple of replicas
        self._looked_at: Seconds = -inf
        self._crowded: set[Target] = set()  # those that somebody waits for
        self.placements: list[Placement] | None = None
        """Since they were last taken; None while there is nobody to be told."""
        self._gateway = 0  # our number among all
        self._doubled = Doubled()
        self._reuse = 0.5  # how much of prompts is found cached
        self._reuse_weight = REUSE_WEIGHT

    def __repr__(self) -> str:
        return f"<CacheAware {self._targets!r} {self.holdings!r}>"

    def target(self, replica: ReplicaId) -> Target:
        """What is known of a replica; a new one is believed to be as fast as the others."""
        found = self._targets.get(replica)
        if found is None:
            found = self._targets[replica] = Target(self._new_pace(replica), self._price)
        return found

    def _new_pace(self, replica: ReplicaId) -> Pace:
        pinned = self._settings.prefill_rates.get(replica)
        if pinned is not None:
            return Pace(pinned, is_pinned=True)
        learnt = [each.pace.rate_per_s for each in self._targets.values() if each.pace.has_learnt]
        return Pace(sum(learnt, 0.0) / len(learnt) if learnt else self._settings.prior_rate_per_s)

    def forget(self, replica: ReplicaId) -> None:
        """It has left, or started anew."""
        gone = self._targets.pop(replica, None)
        if gone is not None:
            self._crowded.discard(gone)  # what others have there will not be told of it again
        self._pools.clear()
        self.holdings.forget(replica)

    # What engines say. A `BlockListener`

    def described(self, replica: ReplicaId, facts: EngineFacts) -> None:
        """More GPUs for one engine make it likely to be faster."""
        self.holdings.described(replica, facts)
        if facts.tensor_parallel is not None:
            target = self.target(replica)
            target.degree = facts.tensor_parallel
            if not target.pace.has_learnt:
                target.pace.prior(self._settings.prior_rate_per_s * target.degree)

    def apply(self, replica: ReplicaId, events: Sequence[BlockEvent]) -> None:
        """See `Holdings`."""
        self.holdings.apply(replica, events)

    def retold(self, replica: ReplicaId) -> None:
        """See `Holdings`."""
        self.holdings.retold(replica)

    def certainty(self, replica: ReplicaId, certainty: Certainty) -> None:
        """See `Holdings`."""
        self.holdings.certainty(replica, certainty)

    # What other gateways have there. A `Memory`

    def beside(self, gateways: int, ours: int) -> None:
        """One in so many of all requests comes to us: it says as much as those of the others."""
        self._gateway = ours
        self.placements = [] if gateways > 1 else None
        self._reuse_weight = min(REUSE_WEIGHT * gateways, MOST_REUSE_WEIGHT)

    def part(self, replica: ReplicaId) -> Part:
        """Our own part in what a replica has been sent, for them."""
        found = self._targets.get(replica)
        return NO_PART if found is None else found.part()

    def others(self, replica: ReplicaId, peer: str, part: Part, now: Seconds) -> None:
        """Another gateway's part; `NO_PART` once it is gone."""
        target = self.target(replica)
        target.others(peer, part, now)
        if target.is_crowded:
            self._crowded.add(target)
        else:
            self._crowded.discard(target)

    def news(self) -> list[Placement]:
        """What is to be told to them."""
        if not self.placements:
            return []
        taken, self.placements = self.placements, []
        return taken

    def placed(self, placement: Placement, now: Seconds) -> bool:
        """A prompt was sent by another gateway, or is on its way no longer."""
        self.holdings.placed(placement, now)
        return not placement.is_over and self._doubled.told(placement)

    # What is over, and what is learnt

    def tidy(self, now: Seconds) -> None:
        """To be called some times a second."""
        self.holdings.tidy(now)

    def rate_per_s(self, replica: ReplicaId) -> float | None:
        """Work of prefill a second, as it has shown; None: it has shown nothing yet."""
        found = self._targets.get(replica)
        return found.pace.rate_per_s if found is not None and found.pace.has_learnt else None

    def work(self, prompt_tokens: Tokens, uncached: Tokens) -> float:
        """Of a prompt, in the unit of `rate_per_s`."""
        return work(prompt_tokens, uncached, self._attention_tokens)

    def repairs(self) -> list[ReplicaId]:
        """Replicas whose events are to be told again from the beginning."""
        return self.holdings.repairs()

    def learn(self, claim: Claim, tokenised: Tokenised) -> Iterator[None]:
        """The prompt of a dispatch in tokens; to be iterated to the end, others having turns."""
        if claim.dispatch is not None:
            yield from self.holdings.learn(claim.dispatch, tokenised)

    def doubts(self, request: GenerationRequest, replicas: Sequence[ReplicaView]) -> bool:
        """Is the prompt new to us, and may somebody hold it all the same?"""
        holdings = self.holdings
        if holdings.untold.isdisjoint([one.id for one in replicas] if holdings.untold else ()):
            return False
        return holdings.is_new(self._prompt_of(request))

    def name(self, reading: Reading) -> Iterator[None]:
        """See `Holdings`."""
        return self.holdings.name(reading)

    def quote(
        self, request: GenerationRequest, replicas: Sequence[ReplicaView], now: Seconds
    ) -> Priced:
        """In seconds; never negative. O(replicas + marks of the prompt that any of them holds)."""
        self._look(now)
        pool = self._pool(replicas)
        hits = self.holdings.hits(self._prompt_of(request), pool.names)
        attention = self._attention_tokens
        cold = work(hits.prompt_tokens, hits.prompt_tokens, attention)  # where nothing is held
        used_s = self._footprint * max(self._reuse, LEAST_REUSE) * pool.mean_s
        costs = [
            (wait if (wait := pace.free_at - now) > 0.0 else 0.0)
            + cold * slope
            + used_s * footprint.tokens
            for pace, footprint, slope in pool.rows
        ]
        for at, held in enumerate(hits.tokens):
            if held:
                saved = cold - work(hits.prompt_tokens, hits.uncached(at), attention)
                costs[at] = costs[at] + (hits.load_s[at] - saved * pool.slopes[at])
        priced = Priced(costs, pool, hits, self.holdings, now, attention)
        if self._crowded:
            self._overtake(request, priced, costs)
        return priced

    def _overtake(self, request: GenerationRequest, priced: Priced, costs: list[float]) -> None:
        """Those who wait and would go after it do not keep it waiting: it keeps them."""
        hits, now = priced.hits, priced.now
        for at, target in enumerate(priced.pool.targets):
            if target in self._crowded:
                uncached, pace = hits.uncached(at), target.pace
                own = place(request.tenant, request.deadline, now, uncached)
                cold = work(hits.prompt_tokens, uncached, priced.attention_tokens)
                others, theirs = target.behind(own, cold)
                spared_s = min(theirs / pace.rate_per_s, pace.wait_s(now))
                costs[at] += others * cold / pace.rate_per_s - spared_s
                priced.spared_s[at] = spared_s

    def _pool(self, replicas: Sequence[ReplicaView]) -> Pool:
        """A tuple of replicas is the same as long as it is the same object; a list may change."""
        found = self._pools.get(id(replicas))
        if found is not None and found.replicas is replicas:
            return found
        found = Pool(replicas, [self.target(one.id) for one in replicas])
        if isinstance(replicas, tuple):
            if len(self._pools) >= MOST_POOLS:
                self._pools.clear()
            self._pools[id(replicas)] = found
        return found

    def _look(self, now: Seconds) -> None:
        if now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        for target in self._targets.values():
            target.look(now)
        for pool in self._pools.values():
            pool.refresh()

    def dispatched(
        self, request: GenerationRequest, choice: Choice[ReplicaView], now: Seconds
    ) -> Claim:
        """It goes there: from now on the replica owes its prefill, and holds its prompt."""
        name = choice.replica.id
        target, prompt = self.target(name), self._prompt_of(request)
        hits, at = self._hits_of(choice, prompt, now)
        uncached, hit = hits.uncached(at), hits.tokens[at]
        cold = work(hits.prompt_tokens, uncached, self._attention_tokens)
        found = hit / max(hits.prompt_tokens, 1)
        self._reuse += self._reuse_weight * (found - self._reuse)
        dispatch = self.holdings.dispatched(prompt, name, now, (hit, hits.ruler))
        beginning = prompt.hashes[0] if prompt.hashes else 0
        use = (beginning, hit, uncached + self._overhead_tokens)
        owed = Owed(target, self._crowded, use, uncached, dispatch)
        owed.work = cold
        if self.placements is not None and uncached >= WORTH_TELLING and prompt.hashes:
            self._tell(owed, prompt, name, hits.prompt_tokens)
        if request.stream:
            target.sent += cold
            target.pace.begin(cold, now)
            owed.owed = cold
        else:  # its first byte says nothing of its prefill
            target.unseen += cold
            owed.unseen = target.pace.begin_unseen(cold, now)
        self._prompt = None  # it is a view of the request's body
        return owed

    def _tell(self, owed: Owed, prompt: Prompt, name: ReplicaId, prompt_tokens: Tokens) -> None:
        """Others are told of it, and may have sent the same."""
        assert self.placements is not None
        brought = Brought(owed, prompt, prompt_tokens, self._gateway, self._attention_tokens)
        tokens_per_byte = prompt.request.prompt_tokens / len(prompt)
        marks, fresh_from = array("Q", prompt.hashes).tobytes(), brought.fresh_from
        placement = Placement(
            name, tokens_per_byte, marks, fresh_from=fresh_from, gateway=self._gateway
        )  # fmt: skip
        self.placements.append(placement)
        self._doubled.add(name, brought)
        owed.on_over = partial(self._is_over, placement, brought)

    def _is_over(self, placement: Placement, brought: Brought, was_read: bool) -> None:
        """One that others were told of has been read, or will not be."""
        self._doubled.remove(placement.replica, brought)
        if self.placements is not None:
            last = placement.marks[-MARK_BYTES:]
            self.placements.append(replace(placement, marks=last, is_over=True, was_read=was_read))

    def _hits_of(
        self, choice: Choice[ReplicaView], prompt: Prompt, now: Seconds
    ) -> tuple[Hits, int]:
        """What its replica holds, and where that stands: as it was priced, if that was just now."""
        quote = choice.quote
        if (
            isinstance(quote, Priced)
            and quote.holdings is self.holdings
            and now - quote.now < FRESH_S
        ):
            return quote.hits, choice.index
        return self.holdings.hits(prompt, (choice.replica.id,)), 0

    def _prompt_of(self, request: GenerationRequest) -> Prompt:
        if self._prompt is None or self._prompt.request is not request:
            self._prompt = Prompt(request)
        return self._prompt


class Priced(Quote):
    """Costs in seconds, and what they were made of. A `Quote`."""

    __slots__ = ("attention_tokens", "costs", "hits", "holdings", "now", "pool", "spared_s")

    def __init__(
        self,
        costs: list[float],
        pool: Pool,
        hits: Hits,
        holdings: Holdings,
        now: Seconds,
        attention_tokens: float,
    ) -> None:
        self.costs: Final = costs
        self.pool: Final = pool
        self.hits: Final = hits
        self.holdings: Final = holdings
        self.now: Final = now
        self.attention_tokens: Final = attention_tokens
        self.spared_s: Final[dict[int, Seconds]] = {}
        """Of the wait for some, what is owed to those whom it would overtake."""

    def __repr__(self) -> str:
        return f"<Priced {self.costs} s, {self.hits!r}>"

    def prediction(self, index: int) -> Prediction:
        """As things were when it was priced."""
        pace, name, hits = self.pool.targets[index].pace, self.pool.names[index], self.hits
        cold = work(hits.prompt_tokens, hits.uncached(index), self.attention_tokens)
        return Prediction(
            name,
            self.costs[index],
            hit_tokens=hits.tokens[index],
            wait_s=pace.wait_s(self.now) - self.spared_s.get(index, 0.0),
            prefill_s=cold / pace.rate_per_s,
            grade=self.holdings.grade(name),
        )
