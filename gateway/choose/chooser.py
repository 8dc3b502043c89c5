"""A policy at work: filter, score, pick.

Invariants. What is chosen is one of what was given. A filter that would leave nothing is ignored: a
request is refused by the fleet ("no replica") or by a replica, never by a preference. Scores depend
on the views alone, so permuting replicas permutes scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, Protocol, Self, TypeVar

from gateway import ports
from gateway.choose.dispatch import Dispatch
from gateway.choose.holdings import Holdings
from gateway.choose.sticky import Sticky
from gateway.choose.target import NO_PART, Part
from gateway.choose.text_chain import Hash
from gateway.kv_cache import BlockListener, Placement, Reading, Tokenised
from gateway.request import GenerationRequest, Usage
from gateway.vocabulary import Prediction, ReplicaId, ReplicaView, Seconds, Tokens

if TYPE_CHECKING:
    from gateway.choose.shadow import Shadow
    from gateway.order import Place

WORTH_READING: Final[Tokens] = 1024
"""Shorter prompts are prefilled sooner than they are read and looked up."""

R = TypeVar("R", bound=ReplicaView)
R_co = TypeVar("R_co", bound=ReplicaView, covariant=True)


class Filter(Protocol):
    """Which of these may serve this request?"""

    __slots__ = ()

    def sift(self, request: GenerationRequest, replicas: Sequence[R]) -> Sequence[R]:
        """Some of them, in their order. If it is all, then `replicas` itself: who remembers
        something of a tuple of replicas knows it again."""


class Quote(Protocol):
    """What a request would cost on each of some replicas, and how that was found."""

    __slots__ = ()

    @property
    def costs(self) -> list[float]:
        """In the order of the replicas that were asked about; any one unit, least wins."""

    def prediction(self, index: int) -> Prediction:
        """What is expected to happen on one of them, for those who ask why."""


class Scorer(Protocol):
    """What would the request cost on each replica?"""

    __slots__ = ()

    def quote(
        self, request: GenerationRequest, replicas: Sequence[ReplicaView], now: Seconds
    ) -> Quote: ...


class Picker(Protocol):
    """Which one, given the costs? Returns an index into them; there is at least one."""

    __slots__ = ()

    def pick(self, costs: list[float]) -> int: ...


class Choice(Generic[R_co]):
    """What was chosen, and out of what.

    `quote` is None where nothing was priced: there was one replica to choose from.
    """

    __slots__ = ("index", "quote", "replica", "replicas")

    def __init__(
        self, replica: R_co, index: int, replicas: Sequence[R_co], quote: Quote | None = None
    ) -> None:
        self.replica: Final = replica
        self.index: Final = index
        self.replicas: Final = replicas
        self.quote: Final = quote

    def __repr__(self) -> str:
        return f"<Choice {self.replica!r} of {len(self.replicas)}>"

    def uncached(self, prompt_tokens: Tokens) -> Tokens | None:
        """Of so many prompt tokens, those that the replica does not hold; None: nobody knows."""
        hit = None if self.quote is None else self.quote.prediction(self.index).hit_tokens
        return None if hit is None else prompt_tokens - hit


class Claim(ports.Claim, Protocol):
    """What a policy remembers of one dispatch, until it ends. Used by `with`."""

    __slots__ = ()

    @property
    def dispatch(self) -> Dispatch | None:
        """For `Chooser.learn`: what was expected of the cache. None where nothing was."""

    @property
    def wants_report(self) -> bool:
        """The engine is to be asked to tell what it reuses (`kv_cache_report_mode`)."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Memory(Protocol):
    """A policy that remembers is told what becomes of its choices."""

    __slots__ = ()

    def dispatched(
        self, request: GenerationRequest, choice: Choice[ReplicaView], now: Seconds
    ) -> Claim: ...

    def forget(self, replica: ReplicaId) -> None:
        """It has left."""

    def part(self, replica: ReplicaId) -> Part:
        """Our own part in what a replica has been sent, for other gateways."""

    def others(self, replica: ReplicaId, peer: str, part: Part, now: Seconds) -> None:
        """Another gateway's; `NO_PART` once it is gone."""

    def beside(self, gateways: int, ours: int) -> None:
        """There are so many that share all requests, and we are this one of them."""

    def news(self) -> list[Placement]:
        """Prompts sent since the last call, and those no longer on their way, to be told to other
        gateways; empty while there are none."""

    def placed(self, placement: Placement, now: Seconds) -> bool:
        """Another gateway has sent one, or one of its is over. Does our own part become another
        for that?"""

    def learn(self, claim: Claim, tokenised: Tokenised) -> Iterator[None]:
        """The prompt of a dispatch in tokens. Off the critical path: stops after every slice."""

    def doubts(self, request: GenerationRequest, replicas: Sequence[ReplicaView]) -> bool:
        """Could the choice be another if the prompt's tokens were known?"""

    def name(self, reading: Reading) -> Iterator[None]:
        """The names of its blocks, before the choice: stops after every slice."""

    def repairs(self) -> list[ReplicaId]:
        """Replicas whose events are to be told again from the beginning; each is named once."""

    def rate_per_s(self, replica: ReplicaId) -> float | None:
        """Work of prefill a second, as it has shown; None: it has shown nothing yet."""

    def work(self, prompt_tokens: Tokens, uncached: Tokens) -> float:
        """Of a prompt, in the unit of `rate_per_s`."""

    def tidy(self, now: Seconds) -> None:
        """Forget what is over; to be called some times a second."""


class _NoClaim:
    """The claim of a policy that remembers nothing."""

    __slots__ = ()
    dispatch = None
    wants_report = False

    uncached: Final[Tokens | None] = None
    alone: Final[Tokens | None] = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def waits(self, place: Place) -> None: ...

    def goes(self) -> None: ...

    def follow(self, on_less: Callable[[Tokens], object]) -> None: ...

    def first_byte(self, now: Seconds) -> None: ...

    def answered(self, usage: Usage, now: Seconds) -> None: ...


NO_CLAIM: Final[Claim] = _NoClaim()


@dataclass(frozen=True, slots=True)
class Chooser:
    """A profile of filters, scorer and picker, and the memory of those that have one."""

    filters: tuple[Filter, ...]
    scorer: Scorer
    picker: Picker
    memory: Memory | None = None
    listener: BlockListener | None = None
    """Wants to hear what the caches hold."""
    holdings: Holdings | None = None
    """What it has come to believe of them."""
    sticky: Sticky | None = None
    """Keeps sessions where they are, whatever it costs."""
    shadow: Shadow | None = None
    """Another policy, asked without effect."""

    def choose(
        self, request: GenerationRequest, replicas: Sequence[R], now: Seconds = 0.0
    ) -> Choice[R]:
        """Where to send `request`; `replicas` holds at least one.

        `now` matters to policies that keep clocks. O(replicas), and what the scorer says.
        """
        replicas = self._able(request, replicas)
        if len(replicas) == 1:
            return Choice(replicas[0], 0, replicas)
        quote = self.scorer.quote(request, replicas, now)
        home = None if self.sticky is None else self.sticky.home(request.session, replicas)
        index = self.picker.pick(quote.costs) if home is None else home
        return Choice(replicas[index], index, replicas, quote)

    def quote(
        self, request: GenerationRequest, replicas: Sequence[R], now: Seconds
    ) -> tuple[Quote, Sequence[R]]:
        """What it would cost, and on which replicas, without choosing: nothing is remembered."""
        able = self._able(request, replicas)
        return self.scorer.quote(request, able, now), able

    def _able(self, request: GenerationRequest, replicas: Sequence[R]) -> Sequence[R]:
        for each in self.filters:
            replicas = each.sift(request, replicas) or replicas
        return replicas

    def dispatched(
        self, request: GenerationRequest, choice: Choice[ReplicaView], now: Seconds
    ) -> Claim:
        """It goes there. The claim is to be entered, told of the first byte, and left."""
        if self.sticky is not None:
            self.sticky.sent(request.session, choice.replica.id)
        claim: Claim = NO_CLAIM
        if self.memory is not None:
            claim = self.memory.dispatched(request, choice, now)
        if self.shadow is not None:
            claim = self.shadow.dispatched(request, choice, claim, now)
        return claim

    def forget(self, replica: ReplicaId) -> None:
        """A replica has left."""
        if self.memory is not None:
            self.memory.forget(replica)
        if self.shadow is not None:
            self.shadow.forget(replica)

    def part(self, replica: ReplicaId) -> Part:
        """Our own part in what a replica has been sent, for other gateways."""
        return NO_PART if self.memory is None else self.memory.part(replica)

    def others(self, replica: ReplicaId, peer: str, part: Part, now: Seconds) -> None:
        """Another gateway's; `NO_PART` once it is gone. A policy that remembers nothing sees it
        in the replica's view."""
        if self.memory is not None:
            self.memory.others(replica, peer, part, now)

    def beside(self, gateways: int, ours: int = 0) -> None:
        """There are so many gateways, and we are this one: others are to be told, or nobody."""
        if self.memory is not None:
            self.memory.beside(gateways, ours)

    def placements(self) -> list[Placement]:
        """The prompts that were sent since the last call, and those that are over."""
        return [] if self.memory is None else self.memory.news()

    def placed(self, placement: Placement, now: Seconds) -> bool:
        """Another gateway has sent a prompt to a replica, or one of its is over. True where our own
        part there is another for that: what both have sent is read once."""
        return self.memory is not None and self.memory.placed(placement, now)

    def learn(self, claim: Claim, tokenised: Tokenised) -> Iterator[None]:
        """The prompt of a dispatch in tokens. To be iterated to its end, off the critical path: it
        stops after every slice of work (under a millisecond) for others to have a turn."""
        return iter(()) if self.memory is None else self.memory.learn(claim, tokenised)

    def doubts(self, request: GenerationRequest, replicas: Sequence[ReplicaView]) -> bool:
        """Could the choice be another if the prompt's tokens were known? Then they are worth a
        short wait. False for most, at once; never for a prompt that has been read already."""
        if self.memory is None or request.prompt_tokens < WORTH_READING:
            return False
        if len(replicas) < 2 or request.reading is not None or not request.route.generates:
            return False
        return self.memory.doubts(request, replicas)

    def name(self, reading: Reading) -> Iterator[None]:
        """Work out the names of the blocks of a prompt that was read before the choice, which is
        then made by them. To be iterated to its end, as `learn`."""
        return iter(()) if self.memory is None else self.memory.name(reading)

    def held_tokens(self, replica: ReplicaId) -> Tokens:
        """How much a replica's cache holds, about; 0 where the policy does not think of it."""
        return 0 if self.holdings is None else self.holdings.held_tokens(replica)

    def spread(self, hashes: list[Hash]) -> Mapping[ReplicaId, Tokens]:
        """How much of a prompt with these beginnings (a `Dispatch`'s) each cache holds, about."""
        return {} if self.holdings is None else self.holdings.spread(hashes)

    def repairs(self) -> list[ReplicaId]:
        """Replicas whose events are to be told again from the beginning; each is named once."""
        return [] if self.memory is None else self.memory.repairs()

    def rate_per_s(self, replica: ReplicaId) -> float | None:
        """Work of prefill a second, as a replica has shown it; None where nothing is learnt."""
        return None if self.memory is None else self.memory.rate_per_s(replica)

    def work(self, prompt_tokens: Tokens, uncached: Tokens) -> float:
        """Of a prompt, in the unit of `rate_per_s`: its uncached tokens, unless the policy knows
        better."""
        return uncached if self.memory is None else self.memory.work(prompt_tokens, uncached)

    def tidy(self, now: Seconds) -> None:
        """Forget what is over; to be called some times a second, takes about a millisecond."""
        if self.memory is not None:
            self.memory.tidy(now)
        if self.shadow is not None:
            self.shadow.tidy(now)
