"""The gateway's own policies, driven through their port. The one place to plug a new one in.

A policy of `gateway.choose.policies.POLICIES` is under test by being there. It sees what it would
see in the gateway: views with what is in flight, a parsed request, and nothing of the caches. For
policies that read the prompt, `prompt_of` makes bytes of the arrival's blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import shake_128
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gateway.choose.cache_aware import CacheAware
from gateway.choose.chooser import Chooser, Claim
from gateway.choose.filters import Decodes
from gateway.choose.pickers import Cheapest
from gateway.choose.policies import POLICIES, policy
from gateway.choose.price import Price
from gateway.request import GenerationRequest, Usage
from gateway.settings import ChooseSettings
from gateway.vocabulary import ROUTES, Health, ModelName, ReplicaAddress, ReplicaId, Role
from tests.bench.routing.cache import BLOCK_TOKENS, Arrival
from tests.bench.routing.engine import ReplicaSpec
from tests.bench.routing.world import Caches, RouterFactory

if TYPE_CHECKING:
    from random import Random

BYTES_PER_TOKEN: Final = 4
OURS: Final = "headrace/"
"""What the names of the gateway's own policies begin with."""

HELD: Final = OURS + "cache-aware-held"
"""The default policy before the gateway's own queues, as it runs; without them it is alone, as the
others are."""


@lru_cache(maxsize=65_536)
def block_bytes(block: int) -> bytes:
    """What a block's tokens look like: 2048 bytes of text, a different one for each id."""
    digest_bytes = BLOCK_TOKENS * BYTES_PER_TOKEN // 2
    return shake_128(block.to_bytes(8)).hexdigest(digest_bytes).encode()


def prompt_of(arrival: Arrival) -> bytes:
    """Four bytes a token: equal leading blocks are equal leading bytes, and only they."""
    whole = b"".join(map(block_bytes, arrival.blocks))
    return whole[: arrival.prompt_tokens * BYTES_PER_TOKEN]


@dataclass(slots=True)
class View:
    """What a policy may read of a simulated replica."""

    index: int
    address: ReplicaAddress
    role: Role = Role.BOTH
    health: Health = Health.HEALTHY
    inflight_requests: int = 0
    inflight_prompt_tokens: int = 0

    @property
    def id(self) -> ReplicaId:
        """Its name."""
        return self.address.id


class GatewayRouter:
    """A policy of the gateway's as a router of the benchmark, with the fleet's bookkeeping."""

    def __init__(self, chooser: Chooser, specs: Sequence[ReplicaSpec]) -> None:
        self.chooser = chooser
        self.views = [
            View(i, ReplicaAddress(f"http://replica-{i}:8000")) for i in range(len(specs))
        ]
        self._alive: Sequence[View] = self.views
        self._claims: dict[int, Claim] = {}
        self._owed: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<GatewayRouter {self.chooser!r}>"

    def members(self, replicas: Sequence[int]) -> None:
        """Whoever is gone is forgotten."""
        for view in self._alive:
            if view.index not in replicas:
                self.chooser.forget(view.id)
        self._alive = [self.views[index] for index in replicas]

    def request(self, arrival: Arrival) -> GenerationRequest:
        """What is asked."""
        return request_of(arrival)

    def choose(self, arrival: Arrival, now: float) -> int:
        """Ask the policy, tell it of the dispatch, and take a lease."""
        request = self.request(arrival)
        choice = self.chooser.choose(request, self._alive, now)
        view = choice.replica
        claim = self.chooser.dispatched(request, choice, now)
        self._claims[arrival.number] = claim.__enter__()
        view.inflight_requests += 1
        view.inflight_prompt_tokens += arrival.prompt_tokens
        self._owed[arrival.number] = arrival.prompt_tokens
        return view.index

    def door(self, arrival: Arrival) -> int:
        """There is one gateway."""
        return 0

    def claim(self, arrival: Arrival) -> Claim:
        """On what was chosen for it."""
        return self._claims[arrival.number]

    def sent(self, arrival: Arrival, replica: int, now: float) -> None:
        """What waited has gone, and nobody else is to be told."""

    def first_token(self, arrival: Arrival, replica: int, now: float) -> None:
        """The first byte came back: its prefill is no longer owed."""
        self.views[replica].inflight_prompt_tokens -= self._owed.pop(arrival.number)
        self._claims[arrival.number].first_byte(now)

    def ended(self, arrival: Arrival, replica: int, now: float, cached_tokens: int | None) -> None:
        """The claim ends and the lease is given back."""
        claim = self._claims.pop(arrival.number)
        if cached_tokens is not None:
            claim.answered(Usage(arrival.prompt_tokens, cached_tokens=cached_tokens), now)
        claim.__exit__(None, None, None)
        self.views[replica].inflight_prompt_tokens -= self._owed.pop(arrival.number, 0)
        self.views[replica].inflight_requests -= 1


def request_of(arrival: Arrival) -> GenerationRequest:
    """As the parser would make it."""
    prompt = prompt_of(arrival)
    return GenerationRequest(
        route=ROUTES[0],
        model=ModelName("m"),
        stream=True,
        prompt_bytes=len(prompt),
        prompt_tokens=arrival.prompt_tokens,
        max_tokens=None,
        prompt=prompt,
        session=None if arrival.session is None else str(arrival.session).encode(),
    )


def _as_set(name: str, specs: Sequence[ReplicaSpec], _caches: Caches, rng: Random) -> GatewayRouter:
    """A policy under the settings it comes with."""
    return GatewayRouter(policy(ChooseSettings(policy=name), rng), specs)


def _sized(name: str, specs: Sequence[ReplicaSpec], _caches: Caches, rng: Random) -> GatewayRouter:
    """A policy that has been told the size of the smallest replica's cache."""
    cache_tokens = min(each.cache_blocks for each in specs) * BLOCK_TOKENS
    settings = ChooseSettings(policy=name, cache_tokens=cache_tokens)
    return GatewayRouter(policy(settings, rng), specs)


def _priced(
    price: Price,
    attention_tokens: int,
    _specs: Sequence[ReplicaSpec],
    _caches: Caches,
    rng: Random,
) -> GatewayRouter:
    settings = ChooseSettings(policy="cache-aware", attention_tokens=attention_tokens)
    scorer = CacheAware(settings, price)
    return GatewayRouter(Chooser((Decodes(),), scorer, Cheapest(rng), memory=scorer), _specs)


GATEWAY: Final[Mapping[str, RouterFactory]] = MappingProxyType(
    {OURS + name: partial(_as_set, name) for name in POLICIES}
    | {OURS + "cache-aware-sized": partial(_sized, "cache-aware")}
    | {HELD: partial(_as_set, "cache-aware")}
)

ATTENTION: Final = 50_000
NO_ATTENTION: Final = 10**9
ABLATIONS: Final[Mapping[str, RouterFactory]] = MappingProxyType(
    {
        f"{OURS}cache-aware: {name}": partial(_priced, price, attention_tokens)
        for name, price, attention_tokens in (
            ("no attention", Price(), NO_ATTENTION),
            ("no footprint", Price(footprint=0.0), ATTENTION),
            ("no congestion", Price(0.0, 0.0, 0.0), ATTENTION),
            ("congestion 4 always", Price(4.0, 4.0, 4.0), ATTENTION),
            ("congestion from 4, idle too", Price(idle_congestion=4.0), ATTENTION),
            ("congestion from 2", Price(2.0, 2.0), ATTENTION),
            ("footprint twice", Price(footprint=0.4), ATTENTION),
        )
    }
)
"""The price with a term changed: what is it worth?"""
