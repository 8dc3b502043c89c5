"""A second policy on live traffic, without effect: would it have done better?

Every dispatch is also put to the policy in the shadow, which chooses among the same replicas and is
told that it had its way: its memory, the requests in flight it sees and the caches it fills are
those of its own choices. What became of a request is what truly became of it, wherever it was: its
first byte and its end come when the live ones do. So nothing drifts, and everything that begins
ends; but how long a request takes at another replica is not known, and a shadow that learns rates
learns those of whoever answered. Where replicas are very unequal, believe its hits, not its pace.

Both policies are measured by the same yardstick, whatever they think of themselves: what a
cache-aware memory of their own placements says is cached there, and how long the prompt would wait
and be read, at the rates the live traffic has taught.

Invariants. Nothing here changes where a request goes. When nothing runs, nothing is in flight on
either side. A request for which there was one replica counts as no decision.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from gateway.choose.cache_aware import CacheAware
from gateway.choose.chooser import Choice, Chooser, Claim
from gateway.choose.dispatch import Dispatch
from gateway.request import GenerationRequest, Usage
from gateway.settings import ChooseSettings
from gateway.vocabulary import Health, ReplicaAddress, ReplicaId, ReplicaView, Role, Seconds, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.order import Place


class Ghost:
    """A replica as it would be if one side's choices were all that it had. A `ReplicaView`."""

    __slots__ = ("inflight_prompt_tokens", "inflight_requests", "view")

    def __init__(self, view: ReplicaView) -> None:
        self.view = view
        self.inflight_requests = 0
        self.inflight_prompt_tokens: Tokens = 0

    def __repr__(self) -> str:
        return f"<Ghost of {self.id}: {self.inflight_requests} requests>"

    @property
    def id(self) -> ReplicaId:
        """Its name."""
        return self.view.id

    @property
    def address(self) -> ReplicaAddress:
        """Where it answers."""
        return self.view.address

    @property
    def role(self) -> Role:
        """What it does."""
        return self.view.role

    @property
    def health(self) -> Health:
        """Its true one."""
        return self.view.health


class Side:
    """One policy's placements, and what the yardstick makes of them."""

    def __init__(self, settings: ChooseSettings) -> None:
        self.mark: Final = CacheAware(settings)
        self.ghosts: Final[dict[ReplicaId, Ghost]] = {}
        self.hit_tokens: Tokens = 0
        self.predicted_s: Seconds = 0.0

    def __repr__(self) -> str:
        return f"<Side {self.hit_tokens} hit tokens, {self.predicted_s:.1f} s, {self.ghosts!r}>"

    @property
    def busiest(self) -> int:
        """The most requests in flight at any replica."""
        return max((each.inflight_requests for each in self.ghosts.values()), default=0)

    def ghost(self, view: ReplicaView) -> Ghost:
        """Of a replica."""
        found = self.ghosts.get(view.id)
        if found is None:
            found = self.ghosts[view.id] = Ghost(view)
        return found

    def forget(self, replica: ReplicaId) -> None:
        """It has left, or started anew."""
        self.mark.forget(replica)
        self.ghosts.pop(replica, None)


class Shadow:
    """What a policy would do, beside what is done."""

    def __init__(self, chooser: Chooser, settings: ChooseSettings) -> None:
        """`chooser` is of the policy in the shadow, and nobody else's."""
        self._chooser = chooser
        self.live: Final = Side(settings)
        self.shadow: Final = Side(settings)
        self.decisions = 0
        self.agreements = 0

    def __repr__(self) -> str:
        return f"<Shadow {self.agreements} of {self.decisions} alike>"

    def dispatched(
        self, request: GenerationRequest, choice: Choice[ReplicaView], claim: Claim, now: Seconds
    ) -> Claim:
        """It goes there, and `claim` is what the live policy makes of it."""
        ghosts = [self.shadow.ghost(each) for each in choice.replicas]
        theirs = self._chooser.choose(request, ghosts, now)
        if len(ghosts) > 1:
            self.decisions += 1
            self.agreements += theirs.replica.id == choice.replica.id
            self._expect(self.live, request, choice.replica, now)
            self._expect(self.shadow, request, theirs.replica, now)
        claims = [
            claim,
            self._chooser.dispatched(request, theirs, now),
            _placed(self.live, request, self.live.ghost(choice.replica), now),
            _placed(self.shadow, request, theirs.replica, now),
        ]
        return Shadowed(
            claims,
            [self.live.ghost(choice.replica), theirs.replica],
            request.prompt_tokens,
        )

    def _expect(
        self, side: Side, request: GenerationRequest, replica: ReplicaView, now: Seconds
    ) -> None:
        """Both sides at the rates of the live one: the shadow's are learnt from others' answers."""
        expected = side.mark.quote(request, (replica,), now).prediction(0)
        rates = [each.mark.target(replica.id).pace.rate_per_s for each in (side, self.live)]
        side.hit_tokens += expected.hit_tokens or 0
        side.predicted_s += (
            ((expected.wait_s or 0.0) + (expected.prefill_s or 0.0)) * rates[0] / rates[1]
        )

    def forget(self, replica: ReplicaId) -> None:
        """It has left, or started anew."""
        self._chooser.forget(replica)
        self.live.forget(replica)
        self.shadow.forget(replica)

    def tidy(self, now: Seconds) -> None:
        """To be called some times a second."""
        self._chooser.tidy(now)
        self.live.mark.tidy(now)
        self.shadow.mark.tidy(now)


def _placed(side: Side, request: GenerationRequest, ghost: Ghost, now: Seconds) -> Claim:
    return side.mark.dispatched(request, Choice(ghost, 0, (ghost,)), now)


class Shadowed:
    """One dispatch on all sides; the live one comes first. A `Claim`."""

    __slots__ = ("_claims", "_ghosts", "_tokens")

    def __init__(self, claims: list[Claim], ghosts: list[Ghost], tokens: Tokens) -> None:
        self._claims = claims
        self._ghosts = ghosts
        self._tokens = tokens

    def __repr__(self) -> str:
        return f"<Shadowed {self._claims[0]!r}>"

    @property
    def dispatch(self) -> Dispatch | None:
        """The live one's."""
        return self._claims[0].dispatch

    @property
    def wants_report(self) -> bool:
        """The live one's."""
        return self._claims[0].wants_report

    @property
    def uncached(self) -> Tokens | None:
        """The live one's."""
        return self._claims[0].uncached

    @property
    def alone(self) -> Tokens | None:
        """The live one's."""
        return self._claims[0].alone

    def __enter__(self) -> Self:
        for claim in self._claims:
            claim.__enter__()
        for ghost in self._ghosts:
            ghost.inflight_requests += 1
            ghost.inflight_prompt_tokens += self._tokens
        return self

    def waits(self, place: Place) -> None:
        """It waits for the live policy's replica, and so on all sides."""
        for claim in self._claims:
            claim.waits(place)

    def goes(self) -> None:
        """It is sent now."""
        for claim in self._claims:
            claim.goes()

    def follow(self, on_less: Callable[[Tokens], object]) -> None:
        """Of the live one's."""
        self._claims[0].follow(on_less)

    def first_byte(self, now: Seconds) -> None:
        """Its prompt has been read, wherever it was."""
        for claim in self._claims:
            claim.first_byte(now)
        self._read()

    def answered(self, usage: Usage, now: Seconds) -> None:
        """What the response says of its cache is true of the live placement alone."""
        self._claims[0].answered(usage, now)
        self._claims[2].answered(usage, now)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for claim in self._claims:
            claim.__exit__(kind, error, traceback)
        for ghost in self._ghosts:
            ghost.inflight_requests -= 1
        self._read()

    def _read(self) -> None:
        tokens, self._tokens = self._tokens, 0
        for ghost in self._ghosts:
            ghost.inflight_prompt_tokens -= tokens
