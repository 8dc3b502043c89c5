"""Several gateways before one fleet: each decides alone, and hears of the others a moment later.

Every gateway is a chooser with a memory of its own. What one sends and sees it tells the others by
what gateways tell each other (`choose.target.Part`, `kv_cache.Placement`), at once or
`peers.tell_every_s` after it last told them anything, and they hear it after `late_s`; or it tells
nothing. What caches hold all of them hear from the engines' own events, late too; every prompt
is read as tokens before the choice, so that it can be looked up. One gateway alone is the same with
nobody to hear from. Before replicas whose requests are held (`held.Door`) each tells of that, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gateway.choose.policies import policy
from gateway.choose.target import Part
from gateway.hold.capacity import NO_PART
from gateway.hold.capacity import Part as Room
from gateway.kv_cache import (
    BlockEvent,
    BlocksRemoved,
    BlocksStored,
    Certainty,
    EngineFacts,
    Placement,
    Reading,
    Tokenised,
)
from gateway.request import GenerationRequest
from gateway.settings import ChooseSettings, PeersSettings
from tests.bench.routing.adapters import BYTES_PER_TOKEN, GatewayRouter, request_of
from tests.bench.routing.cache import BLOCK_TOKENS, Arrival
from tests.bench.routing.engine import ReplicaSpec
from tests.bench.routing.held import Held
from tests.bench.routing.world import Caches, RouterFactory
from tests.builders import altered

if TYPE_CHECKING:
    from random import Random

    from gateway.choose.chooser import Chooser, Claim

SHORTLY_S: Final = (0.001, 0.005)
"""Between an event's being told and its being heard: a network, and two processes with more to do.
Assumed; on a machine with ten times the work it can do, 8 to 19 ms were seen."""
LATE_S: Final = (0.05, 0.15)
TELL_EVERY_S: Final = PeersSettings().tell_every_s


def tokens_of(blocks: Sequence[int]) -> list[int]:
    """What the tokens of some blocks are."""
    return [
        token
        for block in blocks
        for token in range(
            block * BLOCK_TOKENS % 2**40, block * BLOCK_TOKENS % 2**40 + BLOCK_TOKENS
        )
    ]


def read(arrival: Arrival) -> Reading:
    """The prompt in tokens, known to begin anew at every block."""
    reading = Reading()
    blocks = range(1, arrival.prompt_tokens // BLOCK_TOKENS + 1)
    edges = [(each * BLOCK_TOKENS * BYTES_PER_TOKEN, each * BLOCK_TOKENS) for each in blocks]
    reading.end(Tokenised(tokens_of(arrival.blocks)[: arrival.prompt_tokens], edges))
    return reading


class Gateway(GatewayRouter):
    """One of them."""

    def __init__(self, chooser: Chooser, specs: Sequence[ReplicaSpec]) -> None:
        super().__init__(chooser, specs)
        self._others: dict[tuple[int, str], tuple[int, int]] = {}
        self._own = [(0, 0) for _ in specs]
        listener = chooser.listener
        assert listener is not None
        for view, spec in zip(self.views, specs, strict=True):
            listener.described(
                view.id,
                EngineFacts(block_size=BLOCK_TOKENS, cache_tokens=spec.cache_blocks * BLOCK_TOKENS),
            )
            listener.certainty(view.id, Certainty.EXACT)

    def request(self, arrival: Arrival) -> GenerationRequest:
        """With its tokens."""
        request = altered(request_of(arrival), reading=read(arrival))
        assert request.reading is not None
        for _ in self.chooser.name(request.reading):
            pass
        return request

    def part(self, replica: int) -> tuple[int, int, Part]:
        """Its own, to be told: requests, prompt tokens, and what its policy counts."""
        view = self.views[replica]
        others = [had for (at, _), had in self._others.items() if at == replica]
        return (
            view.inflight_requests - sum(requests for requests, _ in others),
            view.inflight_prompt_tokens - sum(tokens for _, tokens in others),
            self.chooser.part(view.id),
        )

    def others(self, peer: str, replica: int, told: tuple[int, int, Part], now: float) -> None:
        """Another gateway's."""
        view = self.views[replica]
        had = self._others.get((replica, peer), (0, 0))
        requests, tokens, part = told
        self._others[replica, peer] = (requests, tokens)
        view.inflight_requests += requests - had[0]
        view.inflight_prompt_tokens += tokens - had[1]
        self.chooser.others(view.id, peer, part, now)

    def stored(self, replica: int, events: Sequence[BlockEvent]) -> None:
        """An engine tells of its cache."""
        if self.chooser.listener is not None:
            self.chooser.listener.apply(self.views[replica].id, events)


class Several:
    """A router of the benchmark: arrivals go to any of the gateways."""

    def __init__(
        self,
        gateways: Sequence[Gateway],
        world: Caches,
        rng: Random,
        late_s: tuple[float, float],
        *,
        is_told: bool,
    ) -> None:
        """`is_told`: what the others do."""
        self._gateways = gateways
        self._at = world.at
        self._held = world if isinstance(world, Held) else None
        self._rng = rng
        self._late_s = late_s
        self._is_told = is_told
        self._where: dict[int, int] = {}  # the gateway of an arrival
        self._untold: list[set[int]] = [set() for _ in gateways]  # replicas
        self._told_at = [-TELL_EVERY_S for _ in gateways]
        self._last: dict[object, float] = {}
        self._untimed: list[tuple[int, Sequence[BlockEvent]]] = []

    def __repr__(self) -> str:
        return f"<Several: {len(self._gateways)} gateways>"

    def members(self, replicas: Sequence[int]) -> None:
        """All see for themselves."""
        for gateway in self._gateways:
            gateway.members(replicas)

    def blocks(self, replica: int, blocks: Sequence[int], fresh: Sequence[int],
               dropped: Sequence[int]) -> None:  # fmt: skip
        """A cache has changed: of these leading blocks of a prompt some were not there."""
        events: list[BlockEvent] = []
        run: list[int] = []
        for at in fresh:
            if run and at != run[-1] + 1:
                events.append(_stored(blocks, run))
                run = []
            run.append(at)
        if run:
            events.append(_stored(blocks, run))
        if dropped:
            events.append(BlocksRemoved(dropped))
        self._untimed.append((replica, events))

    def choose(self, arrival: Arrival, now: float) -> int:
        """By whichever gateway it comes to; again, by the same."""
        self._catch_up(now)
        which = self._where.setdefault(arrival.number, self._rng.randrange(len(self._gateways)))
        replica = self._gateways[which].choose(arrival, now)
        self._tell(which, replica, now)
        return replica

    def door(self, arrival: Arrival) -> int:
        """The gateway it came to."""
        return self._where[arrival.number]

    def claim(self, arrival: Arrival) -> Claim:
        """On what was chosen for it there."""
        return self._gateways[self._where[arrival.number]].claim(arrival)

    def sent(self, arrival: Arrival, replica: int, now: float) -> None:
        """It waited until now, and others counted it so."""
        self._tell(self._where[arrival.number], replica, now)

    def first_token(self, arrival: Arrival, replica: int, now: float) -> None:
        """Its own gateway sees it."""
        self._catch_up(now)
        which = self._where[arrival.number]
        self._gateways[which].first_token(arrival, replica, now)
        self._tell(which, replica, now)

    def ended(self, arrival: Arrival, replica: int, now: float, cached_tokens: int | None) -> None:
        """The same."""
        self._catch_up(now)
        which = self._where[arrival.number]
        self._gateways[which].ended(arrival, replica, now, cached_tokens)
        self._tell(which, replica, now)

    def _tell(self, which: int, replica: int, now: float) -> None:
        if not self._is_told or len(self._gateways) == 1:
            return
        if not self._untold[which]:
            self._at(max(now, self._told_at[which] + TELL_EVERY_S), partial(self._say, which))
        self._untold[which].add(replica)

    def _say(self, which: int, now: float) -> None:
        """One gateway tells what has changed since it last did."""
        teller, self._told_at[which] = self._gateways[which], now
        untold, self._untold[which] = self._untold[which], set()
        told = [(each, teller.part(each), self._room(which, each, now)) for each in sorted(untold)]
        placements = teller.chooser.placements()
        self._later(which, partial(self._hear, which, told, placements), now)

    def _room(self, which: int, replica: int, now: float) -> Room:
        """What it holds back there, and has sent."""
        return NO_PART if self._held is None else self._held.doors[which].part(replica, now)

    def _hear(
        self,
        which: int,
        told: Sequence[tuple[int, tuple[int, int, Part], Room]],
        placements: Sequence[Placement],
        now: float,
    ) -> None:
        """All others hear what one has told."""
        for other, gateway in enumerate(self._gateways):
            if other == which:
                continue
            for placement in placements:
                if gateway.chooser.placed(placement, now):
                    at = next(each.index for each in gateway.views if each.id == placement.replica)
                    self._tell(other, at, now)
            for replica, part, room in told:
                gateway.others(str(which), replica, part, now)
                if self._held is not None:
                    door = self._held.doors[other]
                    door.rooms[replica].others(str(which), room, now)
                    self._held.serve(door, replica, now)

    def _later(self, source: object, hear: Callable[[float], None], now: float) -> None:
        """Of one source everything is heard in its order."""
        due = max(now + self._rng.uniform(*self._late_s), self._last.get(source, 0.0))
        self._last[source] = due
        self._at(due, hear)

    def _catch_up(self, now: float) -> None:
        """What caches did until now is on its way."""
        untimed, self._untimed = self._untimed, []
        for replica, events in untimed:
            self._later(f"engine {replica}", partial(self._stored, replica, events), now)

    def _stored(self, replica: int, events: Sequence[BlockEvent], _: float) -> None:
        for gateway in self._gateways:
            gateway.stored(replica, events)


def _stored(blocks: Sequence[int], run: Sequence[int]) -> BlocksStored:
    stored = [blocks[at] for at in run]
    parent = blocks[run[0] - 1] if run[0] else None
    return BlocksStored(stored, parent, tokens_of(stored), BLOCK_TOKENS)


def _several(
    number: int,
    late_s: tuple[float, float],
    is_told: bool,
    specs: Sequence[ReplicaSpec],
    caches: Caches,
    rng: Random,
) -> Several:
    cache_tokens = min(each.cache_blocks for each in specs) * BLOCK_TOKENS
    settings = ChooseSettings(policy="cache-aware", cache_tokens=cache_tokens)
    gateways = [Gateway(policy(settings, rng), specs) for _ in range(number)]
    several = Several(gateways, caches, rng, late_s, is_told=is_told)
    caches.listen(several.blocks)
    for at, gateway in enumerate(gateways):
        gateway.chooser.beside(number if is_told else 1, at)
    return several


HELD_GATEWAYS: Final[Mapping[str, int]] = MappingProxyType({"one held": 1, "four held": 4})
"""Those before whose replicas requests wait, and how many they are."""

GATEWAYS: Final[Mapping[str, RouterFactory]] = MappingProxyType(
    {
        "one gateway": partial(_several, 1, SHORTLY_S, True),
        "four gateways": partial(_several, 4, SHORTLY_S, True),
        "four told late": partial(_several, 4, LATE_S, True),
        "four not told": partial(_several, 4, SHORTLY_S, False),
        "sixteen gateways": partial(_several, 16, SHORTLY_S, True),
    }
    | {name: partial(_several, number, SHORTLY_S, True) for name, number in HELD_GATEWAYS.items()}
)
"""How many gateways, and what they know of each other."""
