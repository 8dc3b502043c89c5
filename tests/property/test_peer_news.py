"""What rooms tell of themselves to other gateways and are told of them, without a network."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.account.usage import NOTHING
from gateway.choose.cache_aware import CacheAware
from gateway.choose.chooser import Choice, Chooser
from gateway.choose.pickers import Cheapest
from gateway.fleet.health import Sign
from gateway.fleet.ledger import Replica
from gateway.fleet.roster import Roster
from gateway.hold.cold import ColdHold
from gateway.hold.gate import Gate
from gateway.hold.turn import Turn
from gateway.peer_news import DEMAND_EVERY_S, FIGURES, PeerNews
from gateway.peers.rows import Datagram, Key, Kind, Topic
from gateway.peers.share import Peers
from gateway.peers.voice import Voice
from gateway.request import GenerationRequest, Usage
from gateway.scale.demands import Demands
from gateway.settings import ChooseSettings, FleetSettings, HoldSettings, ScaleSettings
from gateway.supply import Supply
from gateway.tenants.document import read_documents
from gateway.tenants.ration import ALONE, Ranks
from gateway.tenants.tenancy import Tenancy
from gateway.vocabulary import ModelName, ReplicaAddress, ReplicaId
from tests.builders import a_request, altered
from tests.conftest import ManualClock

if TYPE_CHECKING:
    from gateway.delivery import Rooms

M = ModelName("m")
TENANTS = b"""
tenants: [{name: acme, max_concurrent: 9}, {name: free}]
keys: []
"""


@dataclass(eq=False)
class Entry:
    """A request that waits. As much of one as demand sees."""

    request: GenerationRequest
    received_at: float
    dispatched_at: float | None = None
    first_byte_at: float | None = None
    last_byte_at: float | None = None
    uncached: int | None = None
    usage: Usage = NOTHING


@dataclass
class OnTheWay:
    """As much of `Rooms` as news go through."""

    gate: Gate
    chooser: Chooser
    clock: ManualClock


class Side:
    """One gateway: its rooms, and what it knows of the other."""

    def __init__(self, name: str, epoch: int, clock: ManualClock) -> None:
        self.clock = clock
        self.roster = Roster(FleetSettings.of({"models": [M]}))
        self.scorer = CacheAware(ChooseSettings())
        chooser = Chooser((), self.scorer, Cheapest(Random(0)), memory=self.scorer)
        gate = Gate(HoldSettings(commit_tokens=8000, commit_s=None), clock, self.roster.serving)
        cold = ColdHold(HoldSettings(), clock, self.roster.serving)
        supply = Supply(self.roster, chooser, gate, cold, 60.0, clock)
        demands = Demands(ScaleSettings(), supply, clock)
        tenants = Tenancy(clock, lambda: 0.0, 10)
        tenants.adopt(read_documents({"it": TENANTS}))
        self.chooser, self.gate, self.demands, self.tenants = chooser, gate, demands, tenants
        rooms = OnTheWay(gate, chooser, clock)
        self.news = PeerNews(cast("Rooms", rooms), tenants, demands)
        demands.others = self.news
        self.roster.subscribe(self.news)
        self.voice = Voice(name, epoch)
        self.peers = Peers(name, epoch, 3.0)
        self.woken = 0
        self.news.link(self.peers, self.wake)

    def wake(self) -> None:
        self.woken += 1

    def joins(self, *names: str) -> None:
        addresses = [ReplicaAddress(f"http://{name}:8000", (M,)) for name in names]
        self.roster.apply(addresses, "static")
        for replica in self.roster.replicas:
            self.roster.sign(replica, Sign.SUCCESS, 0.0)

    def replica(self, name: str) -> Replica:
        return next(each for each in self.roster.replicas if each.id == f"{name}:8000")

    def told(self) -> list[Datagram]:
        return self.voice.delta(self.news.news())

    def whole(self) -> list[Datagram]:
        return self.voice.whole(self.news.rows())

    def hear(self, said: list[Datagram]) -> None:
        for each in said:
            self.news.heard(self.peers.hear(each, self.clock()))


def two(*replicas: str) -> tuple[Side, Side]:
    clock = ManualClock()
    sides = Side("one", 1, clock), Side("two", 2, clock)
    for side in sides:
        side.joins(*replicas)
        side.news.beside(["one", "two"], side is sides[1])
    return sides


class Client:
    """Somebody."""

    received_at = 1000.0
    body = b""

    def keep_waiting(self) -> None:
        """Nothing is said."""


class Sent:
    """A request at a replica, as it goes through the rooms."""

    def __init__(
        self, side: Side, name: str, tokens: int, *, is_stream: bool = True, prompt: bytes = b""
    ) -> None:
        self.side = side
        replica = side.replica(name)
        request = altered(a_request(stream=is_stream, prompt_tokens=tokens), prompt=prompt)
        self.lease = replica.lease(tokens).__enter__()
        choice = Choice(replica, 0, (replica,))
        self.claim = side.chooser.dispatched(request, choice, side.clock()).__enter__()
        turn = side.gate.turn(request, replica.id, None, Client())
        try:
            turn.send(None)
        except StopIteration as end:
            self.turn: Turn = end.value
        else:
            raise AssertionError("it was to go at once")
        self.turn.claim = self.claim

    def begins(self) -> None:
        self.lease.prefilled()
        self.turn.first_byte(self.side.clock())

    def ends(self) -> None:
        self.turn.__exit__(None, None, None)
        self.claim.__exit__(None, None, None)
        self.lease.__exit__(None, None, None)


def figures(side: Side, name: str) -> tuple[float, ...]:
    """What is in flight, un-begun, owed and in use at a replica, whoever sent it."""
    replica = side.replica(name)
    lane = side.gate._lanes.get(replica.id)
    target = side.scorer.target(replica.id)
    return (
        replica.inflight_requests,
        replica.inflight_prompt_tokens,
        0 if lane is None else lane.room.unbegun,
        0 if lane is None else lane.room.sequences,
        target.pace.owed,
        target.footprint.tokens,
    )


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "unary", "begin", "end", "tell", "whole", "lose", "pass"]),
        st.integers(0, 1),
        st.sampled_from(["a", "b"]),
        st.integers(1, 400),
        st.integers(0, 20),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_whatever_is_lost_both_know_of_both_once_all_is_told(
    steps: list[tuple[str, int, str, int, int]],
) -> None:
    sides = two("a", "b")
    open_: tuple[list[Sent], list[Sent]] = ([], [])
    for what, who, name, tokens, at in steps:
        side, mine = sides[who], open_[who]
        match what:
            case "send" | "unary" if len(mine) < 4:
                mine.append(Sent(side, name, tokens, is_stream=what == "send"))
            case "begin" if mine:
                mine[at % len(mine)].begins()
            case "end" if mine:
                mine.pop(at % len(mine)).ends()
            case "tell":
                sides[1 - who].hear(side.told())
            case "lose":
                side.told()
            case "whole":
                sides[1 - who].hear(side.whole())
            case "pass":
                side.clock.advance(0.1)
    for who, side in enumerate(sides):
        sides[1 - who].hear(side.whole())
    alike(sides)
    for who, side in enumerate(sides):  # from here on nothing is lost, and changes are enough
        while open_[who]:
            open_[who].pop().ends()
        sides[1 - who].hear(side.told())
    alike(sides)
    assert figures(sides[0], "a")[:2] == (0, 0)


def alike(sides: tuple[Side, Side]) -> None:
    for name in ("a", "b"):
        assert figures(sides[0], name) == figures(sides[1], name)


def test_only_what_has_changed_is_looked_at_and_told() -> None:
    one, other = two("a", "b", "c")
    sent = Sent(one, "a", 100)
    assert one.woken
    (told,) = one.told()
    assert [name for _, name, _ in told.rows] == ["a:8000"]
    assert not one.told()
    one.woken = 0
    sent.begins()
    assert one.woken
    sent.ends()
    other.hear([told, *one.told()])
    assert figures(other, "a")[0] == 0
    assert not one.news.news()


def test_who_comes_later_hears_all_there_is() -> None:
    clock = ManualClock()
    old, new = Side("old", 1, clock), Side("new", 2, clock)
    old.joins("a")
    old.news.beside(["old", "new"], 0)
    Sent(old, "a", 100)
    old.told()  # to others
    new.hear(old.whole())
    new.joins("a")  # it finds the replica after it has been told of it
    assert figures(new, "a")[:2] == (1, 100)
    assert new.woken == 0
    Sent(new, "a", 50)
    assert new.woken


def test_a_prompt_of_a_unary_request_is_begun_by_the_clock_and_that_is_told_too() -> None:
    one, other = two("a")
    warm = Sent(one, "a", 2000)
    one.clock.advance(1.0)
    warm.begins()  # a rate is known now
    Sent(one, "a", 1000, is_stream=False)
    other.hear(one.told())
    assert figures(other, "a")[2] == 1000
    one.clock.advance(30.0)
    other.hear(one.told())
    assert figures(other, "a")[2] == 0
    assert not one.news.news()


def test_limited_tenants_are_told_of_and_what_they_have_elsewhere_is_over_with_a_gateway() -> None:
    one, other = two("a")
    allowances = {name: member.allowance for name, member in one.tenants.members.items()}
    for name in ("acme", "free"):
        allowances[name].reserve(10, one.clock(), 0.0)
        one.tenants.touched.add(name)
    said = one.told()
    assert [row[:2] for each in said for row in each.rows] == [(Topic.TENANT, "acme")]
    other.hear(said)
    there = other.tenants.members["acme"].allowance
    assert (there.open_elsewhere, there.open) == (1, 0)
    assert not one.told()
    again = Side("one", 3, one.clock)  # it has died, and come back
    other.hear(again.whole())
    assert there.open_elsewhere == 0
    again.tenants.members["acme"].allowance.reserve(10, one.clock(), 0.0)
    other.hear(again.whole())
    assert there.open_elsewhere == 1
    assert there.part(other.clock()).admitted == 0


def test_who_was_there_before_us_is_taken_over_from() -> None:
    clock = ManualClock()
    old, new = Side("old", 1, clock), Side("new", 2, clock)
    for side in (old, new):
        side.tenants.adopt(
            read_documents({"it": TENANTS.replace(b"max_concurrent", b"tokens_per_day")})
        )
    mine, theirs = (side.tenants.members["acme"].allowance for side in (new, old))
    theirs.reserve(4, clock(), 1.0)
    new.hear(old.whole())
    assert mine.day is not None
    assert mine.day.elsewhere == 4


def test_the_demand_is_told_of_late_and_at_once_when_somebody_begins_to_wait() -> None:
    one, other = two()

    def told() -> list[Key]:
        return [(topic, name) for each in one.told() for topic, name, _ in each.rows]

    assert not told(), "there is no demand"
    one.demands.arrived(Entry(a_request(M, prompt_tokens=700), one.clock()))
    one.clock.advance(DEMAND_EVERY_S / 2)
    assert not told()
    one.clock.advance(DEMAND_EVERY_S)
    activated: list[ModelName] = []
    other.demands.on_activation(activated.append)
    said = one.told()
    other.hear(said)
    assert activated == [M]
    assert other.demands.demand(M).queued_requests == 1
    one.demands.arrived(Entry(a_request(M, prompt_tokens=800), one.clock()))
    assert not told()
    one.woken = 0
    one.news.hurry(M)
    assert one.woken
    other.hear(one.told())
    assert other.demands.demand(M).queued_tokens == 1500
    assert activated == [M], "somebody waited already"
    third = Side("three", 3, one.clock)
    third.hear(one.whole())
    assert third.demands.demand(M).queued_requests == 2


def test_rows_that_are_not_understood_are_left() -> None:
    _, other = two("a")
    row = (1.0, 2.0)
    for topic, name in ((Topic.REPLICA, "a:8000"), (Topic.TENANT, "acme"), (Topic.MODEL, M)):
        said = Datagram("later", 1, 1 + topic, Kind.DELTA, rows=[(topic, name, row)])
        other.hear([said])
    unknown = (Topic.REPLICA, "nobody:1", (1.0,) * FIGURES[Topic.REPLICA])
    other.hear([Datagram("later", 1, 9, Kind.DELTA, rows=[unknown])])
    assert figures(other, "a") == (0,) * 6
    assert other.demands.demand(M).queued_requests == 0
    other.roster.apply([], "static")
    other.joins("a")
    assert figures(other, "a") == (0,) * 6


def test_prompts_are_told_of_while_there_are_others_and_heard_of_replicas_that_are_known() -> None:
    one, other = two("a")
    other.roster.apply([], "static")
    Sent(one, "a", 3000, prompt=bytes(12_000))
    placements = one.news.placements()
    assert [each.replica for each in placements] == ["a:8000"]
    other.news.placed(placements)
    assert len(other.scorer.holdings) == 0
    other.joins("a")
    other.news.placed(placements)
    assert len(other.scorer.holdings)
    assert one.tenants.ranks == Ranks(2, 0)
    Sent(one, "a", 300, prompt=bytes(1200))
    assert not one.news.placements(), "it is read before it could matter"
    one.news.beside(["one"], 0)
    assert one.tenants.ranks is ALONE
    one.joins("b")
    Sent(one, "b", 3000, prompt=bytes(12_000))
    assert not one.news.placements()


def test_that_a_prompt_is_on_its_way_no_longer_is_said_once_of_those_that_were_told_of() -> None:
    one, _ = two("a")
    read = Sent(one, "a", 3000, prompt=b"a" * 12_000)
    (sent,) = one.news.placements()
    read.begins()
    (over,) = one.news.placements()
    assert over == replace(sent, marks=sent.marks[-8:], is_over=True)
    read.ends()
    assert not one.news.placements()
    Sent(one, "a", 3000, prompt=b"b" * 12_000).ends()
    assert [each.is_over for each in one.news.placements()] == [False, True], "it was not read"
    short = Sent(one, "a", 300, prompt=b"c" * 1200)
    short.begins()
    short.ends()
    assert not one.news.placements()
    last = Sent(one, "a", 3000, prompt=b"d" * 12_000)
    assert one.news.placements()
    one.news.beside(["one"], 0)
    last.begins()
    last.ends()
    assert not one.news.placements(), "there is nobody to be told"


def test_who_waits_here_is_told_of() -> None:
    async def law() -> None:
        one, other = two("a")
        full = Sent(one, "a", 8000)
        one.told()
        one.woken = 0
        request = a_request(stream=True, prompt_tokens=100)
        waits = asyncio.create_task(one.gate.turn(request, one.replica("a").id, None, Client()))
        await asyncio.sleep(0)
        assert one.woken
        other.hear(one.whole())
        ((_, row),) = other.peers.rows_of((Topic.REPLICA, "a:8000"))
        assert row[5] == 1
        one.told()
        one.woken = 0
        full.turn.first_byte(one.clock())
        await waits
        assert one.woken
        other.hear(one.told())
        ((_, row),) = other.peers.rows_of((Topic.REPLICA, "a:8000"))
        assert (row[2], row[5]) == (100, 0)

    asyncio.run(law())


def test_the_first_that_waits_has_its_place_by_the_clock_of_who_is_told() -> None:
    async def law() -> None:
        one, other = two("a")
        other.clock = ManualClock()
        other.clock.advance(5000.0)  # another machine: its clock has another origin
        other.news._clock = other.gate.clock = other.clock
        full = Sent(one, "a", 8000)
        for tokens in (900, 100):
            request = a_request(stream=True, prompt_tokens=tokens)
            waits = one.gate.turn(request, one.replica("a").id, None, Client())
            task = asyncio.create_task(waits)
            await asyncio.sleep(0)
        other.hear(one.whole())
        (heard,) = other.gate._lanes[ReplicaId("a:8000")].room._others.values()
        (first_due,) = {each.due for each in one.gate.crowd if each.uncached == 100}
        assert heard.waiting == 2
        assert heard.first_due - other.clock() == pytest.approx(first_due - one.clock(), abs=0.5)
        rank, due = 1, first_due - one.clock() + other.clock()
        assert heard.is_before((rank, due + 1.0))
        assert not heard.is_before((rank, due - 1.0))
        assert not heard.is_before((rank - 1, due + 1.0))
        full.turn.first_byte(one.clock())
        await task

    asyncio.run(law())


def test_a_replica_that_has_left_is_not_spoken_of() -> None:
    one, _ = two("a", "b")
    Sent(one, "a", 100).ends()
    one.joins("b")
    assert not one.told()


def test_a_beginning_that_two_gateways_have_sent_is_owed_and_unbegun_once() -> None:
    """Once both have heard of it, and told each other what became of their parts."""
    sides = one, other = two("a")
    open_ = [Sent(each, "a", 3000, prompt=b"a" * 12_000) for each in sides]
    for mine in open_:
        mine.claim.follow(mine.turn.spared)
    said = [each.news.placements() for each in sides]
    one.news.placed(said[1])
    other.news.placed(said[0])
    other.hear(one.told())
    one.hear(other.told())
    assert figures(one, "a")[2:5] == figures(other, "a")[2:5]
    _, _, unbegun, sequences, owed, _ = figures(one, "a")
    assert sequences == 2
    assert 3000 < unbegun < 3300
    assert 3000 < owed < 3500
    for mine in open_:
        mine.begins()
        mine.ends()
    other.hear(one.told())
    one.hear(other.told())
    assert figures(one, "a")[2:5] == figures(other, "a")[2:5] == (0, 0, 0)


def test_that_less_is_owed_for_another_gateway_is_told() -> None:
    """Though it waits, and nothing happens at the gate."""
    one, other = two("a")
    for each in (one, other):
        Sent(each, "a", 3000, prompt=b"a" * 12_000)
    said = one.news.placements()
    other.told()
    other.woken = 0
    other.news.placed(said)
    assert other.woken
    key = (Topic.REPLICA, "a:8000")
    assert key in other.news.news()
