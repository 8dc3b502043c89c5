"""Several gateways before one replica, and before one tenant: each counts what all have."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.choose.pace import Pace
from gateway.choose.price import Price
from gateway.choose.target import NO_PART as NO_TARGET_PART
from gateway.choose.target import Part as TargetPart
from gateway.choose.target import Target
from gateway.errors import GatewayError
from gateway.fleet.ledger import Lease, Replica
from gateway.hold.capacity import NO_PART as NO_ROOM_PART
from gateway.hold.capacity import UNHEARD_S, Bounds, Load, Room
from gateway.hold.capacity import Part as RoomPart
from gateway.order import place
from gateway.tenants.buckets import DAY_S
from gateway.tenants.limits import MOST_LIVES, Allowance, Limits, Part, Reservation
from gateway.tenants.ration import ALONE, PAUSE_S, TURN_S, Ranks, Ration
from gateway.vocabulary import ReplicaAddress
from tests.builders import a_request

GATEWAYS = 3
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "begun", "end", "spare", "tell", "tell", "die"]),
        st.integers(0, GATEWAYS - 1),
        st.integers(1, 5000),
        st.integers(0, 50),
    ),
    max_size=60,
)


@given(STEPS)
def test_a_replica_has_what_all_gateways_have_there(steps: list[tuple[str, int, int, int]]) -> None:
    replicas = [Replica(ReplicaAddress("http://r1:8000")) for _ in range(GATEWAYS)]
    open_: list[list[Lease]] = [[] for _ in range(GATEWAYS)]

    def tell(who: int) -> None:
        for other, replica in enumerate(replicas):
            if other != who:
                own = replicas[who]
                replica.others(str(who), own.own_requests, own.own_prompt_tokens)

    for what, who, tokens, at in steps:
        mine = open_[who]
        match what:
            case "take":
                mine.append(replicas[who].lease(tokens).__enter__())
            case "begun" if mine:
                mine[at % len(mine)].prefilled()
            case "end" if mine:
                mine.pop(at % len(mine)).__exit__(None, None, None)
            case "tell":
                tell(who)
            case "die":
                for replica in replicas:
                    replica.others(str(who), 0, 0)
        for replica, leases in zip(replicas, open_, strict=True):
            assert replica.own_requests == len(leases)
            assert 0 <= replica.others_requests <= replica.inflight_requests
            assert 0 <= replica.others_prompt_tokens <= replica.inflight_prompt_tokens
    for who in range(GATEWAYS):
        tell(who)
    assert {each.inflight_requests for each in replicas} == {sum(map(len, open_))}
    assert len({each.inflight_prompt_tokens for each in replicas}) == 1
    for who, leases in enumerate(open_):
        for lease in leases:
            lease.__exit__(None, None, None)
        tell(who)
    assert {(each.inflight_requests, each.inflight_prompt_tokens) for each in replicas} == {(0, 0)}


@given(STEPS, st.booleans())
def test_a_room_is_filled_by_all_gateways(
    steps: list[tuple[str, int, int, int]], is_stream: bool
) -> None:
    rooms = [Room(Bounds(commit_tokens=6000, sequences=9)) for _ in range(GATEWAYS)]
    loads: list[list[Load]] = [[] for _ in range(GATEWAYS)]
    now = 1.0

    def tell(who: int) -> None:
        for other, room in enumerate(rooms):
            if other != who:
                room.others(str(who), rooms[who].part(waiting=0), now)

    def die(who: int) -> None:
        for each in rooms:
            each.others(str(who), NO_ROOM_PART, now)

    for what, who, tokens, at in steps:
        now += 0.01
        room, mine = rooms[who], loads[who]
        match what:
            case "take":
                mine.append(Load(tokens, 10, is_stream))
                room.take(mine[-1], now)
            case "begun" if mine:
                room.begun(mine[at % len(mine)], now)
            case "end" if mine:
                room.give_back(mine.pop(at % len(mine)), now)
            case "spare" if mine:
                load = mine[at % len(mine)]
                room.spared(load, min(tokens, load.uncached - 1), now)
            case "tell":
                tell(who)
            case "die":
                die(who)
        for each, own in zip(rooms, loads, strict=True):
            part = each.part(waiting=0)
            assert part.sequences == len(own)
            assert part.unbegun == sum(load.unbegun for load in own)
            assert part.kv_tokens == sum(load.uncached + load.output for load in own)
            assert each.unbegun >= part.unbegun
            assert each.sequences >= part.sequences
            assert not (each.is_open(now) and each.unbegun >= 6000)
    for who in range(GATEWAYS):
        tell(who)
    assert {room.sequences for room in rooms} == {sum(map(len, loads))}
    assert len({room.unbegun for room in rooms}) == 1
    for room, own in zip(rooms, loads, strict=True):
        for load in own:
            room.give_back(load, now)
    for who in range(GATEWAYS):
        tell(who)
    assert {(room.sequences, room.unbegun, room.kv_tokens) for room in rooms} == {(0, 0, 0)}


def test_while_another_gateway_waits_each_keeps_to_its_share() -> None:
    ours, theirs = Room(Bounds(commit_tokens=8000)), Room(Bounds(commit_tokens=8000))
    for _ in range(7):
        ours.take(Load(1000, 0, is_stream=True), 1.0)
    theirs.others("ours", ours.part(waiting=0), 1.0)
    assert ours.is_open(1.0)
    ours.others("theirs", theirs.part(waiting=3), 1.0)
    assert not ours.is_open(1.0)  # seven thousand is more than half
    assert theirs.is_open(1.0)  # there is room, and it has none of it
    ours.others("theirs", theirs.part(waiting=0), 1.1)
    assert ours.is_open(1.1)


@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(commit_tokens=6000),
        Bounds(commit_tokens=10**6, sequences=9),
        Bounds(commit_tokens=10**6, cache_tokens=20_000),
    ],
)
@given(
    gateways=st.integers(1, 6),
    before=st.integers(0, 6000),
    burst=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3000)), min_size=40, max_size=80),
)
def test_a_burst_to_all_gateways_passes_no_bound_by_more_than_a_request_of_each(
    bounds: Bounds, gateways: int, before: int, burst: list[tuple[int, int]]
) -> None:
    """Nobody hears of anybody; what was there before is known to all."""
    rooms = [Room(bounds) for _ in range(gateways)]
    for room in rooms:
        room.beside(gateways)
        if before:
            room.others("gone", RoomPart(before, 1, before, 0, 0), 1.0)
    loads = [(who, Load(tokens, 100, is_stream=True)) for who, tokens in burst]
    sent = [load for who, load in loads if rooms[who % gateways].try_take(load, 1.0)]
    most, others = max(tokens for _, tokens in burst), gateways - 1
    commit, unbegun = bounds.commit_tokens or 0, before + sum(load.unbegun for load in sent)
    assert unbegun <= max(commit + others * most, commit // 2 + gateways * most, before)
    if bounds.sequences is not None:
        assert (before > 0) + len(sent) <= bounds.sequences + others
    if bounds.cache_tokens is not None:
        kv_tokens = before + sum(load.uncached + load.output for load in sent)
        assert kv_tokens <= bounds.cache_tokens + others * (most + 100)


def test_who_alone_sends_there_has_all_of_the_room_once_others_would_have_been_heard() -> None:
    room, now = Room(Bounds(commit_tokens=8000)), 1.0
    room.beside(4)
    went = []
    while room.unbegun < 7500:
        if room.try_take(Load(500, 0, is_stream=True), now):
            went.append(now)
        else:
            due = room.next_due(now)
            assert due is not None
            assert now < due <= now + UNHEARD_S
            now = due
    assert went.count(1.0) == 4, "a fourth of it"
    assert now < 1.0 + 8 * UNHEARD_S
    room.beside(1)
    assert room.next_due(now) is None


def test_what_has_begun_is_not_taken_for_others_to_have_sent() -> None:
    room = Room(Bounds(commit_tokens=8000))
    room.beside(4)
    room.take(load := Load(4000, 0, is_stream=True), 1.0)
    assert not room.is_open(1.0)
    room.begun(load, 1.0)
    assert room.is_open(1.0)
    assert room.fits(8000, 0, 1.0)


@given(STEPS)
def test_what_a_replica_owes_is_owed_by_all_and_nothing_is_left(
    steps: list[tuple[str, int, int, int]],
) -> None:
    targets = [Target(Pace(), Price()) for _ in range(GATEWAYS)]
    open_: list[list[int]] = [[] for _ in range(GATEWAYS)]
    now = 1.0

    def tell(who: int) -> None:
        for other, target in enumerate(targets):
            if other != who:
                target.others(str(who), targets[who].part(), now)

    def first_byte(who: int, at: int) -> None:
        tokens = open_[who].pop(at % len(open_[who]))
        targets[who].read += tokens
        targets[who].pace.prefilled(tokens, now)

    for what, who, tokens, at in steps:
        now += 0.01
        target, mine = targets[who], open_[who]
        match what:
            case "take":
                target.sent += tokens
                target.pace.begin(tokens, now)
                target.footprint.begin(at, 0, tokens)
                mine.append(tokens)
            case "begun" if mine:
                first_byte(who, at)
            case "end" if mine:
                dropped = mine.pop(at % len(mine))
                target.dropped += dropped
                target.pace.dropped(dropped)
            case "spare" if mine:
                less = min(tokens, mine[at % len(mine)] - 1)
                mine[at % len(mine)] -= less
                target.spared += less
                target.pace.spared(less)
            case "tell":
                tell(who)
            case "die":
                for each in targets:
                    each.others(str(who), NO_TARGET_PART, now)
        for each, own in zip(targets, open_, strict=True):
            assert each.part().owed == sum(own)
            assert each.pace.owed == sum(own) + each.pace.others_owed
            assert each.pace.others_owed >= 0
            assert each.footprint.tokens >= each.part().in_use >= 0
    for who in range(GATEWAYS):
        tell(who)
    assert {each.pace.owed for each in targets} == {sum(map(sum, open_))}
    for who, own in enumerate(open_):
        while own:
            first_byte(who, 0)
        tell(who)
    assert {each.pace.owed for each in targets} == {0}
    assert len({each.footprint.tokens for each in targets}) == 1


def test_a_rate_is_learnt_from_what_all_have_had_read() -> None:
    """Three gateways in turn keep one replica busy at 20 000 tokens a second: each of them sees a
    third, and learns the whole."""
    targets = [Target(Pace(), Price()) for _ in range(3)]
    now, queue = 0.0, list[int]()
    for number in range(400):
        who = number % 3
        targets[who].sent += 4000
        targets[who].pace.begin(4000, now)
        queue.append(who)
        for other in range(3):
            if other != who:
                targets[other].others(str(who), targets[who].part(), now)
        if len(queue) > 4:
            now += 4000 / 20_000.0
            first = queue.pop(0)
            targets[first].read += 4000
            targets[first].pace.prefilled(4000, now)
            for other in range(3):
                if other != first:
                    targets[other].others(str(first), targets[first].part(), now)
    for target in targets:
        assert target.pace.rate_per_s == pytest.approx(20_000, rel=0.1)


LIMITS = Limits(
    requests_per_minute=600, tokens_per_minute=60_000, tokens_per_day=100_000, max_concurrent=9
)


@settings(max_examples=60)
@given(STEPS)
def test_a_tenant_is_charged_everywhere_for_what_it_has_anywhere(
    steps: list[tuple[str, int, int, int]],
) -> None:
    """Time stands still, so that buckets hold exactly what is left."""
    allowances = [Allowance(LIMITS, 0.0) for _ in range(GATEWAYS)]
    open_: list[list[Reservation]] = [[] for _ in range(GATEWAYS)]

    def tell(who: int, lives: Sequence[int] = range(GATEWAYS)) -> None:
        for other in lives:
            if other != who:
                part = allowances[who].part(0.0)
                allowances[other].others(f"{who} 1", part, 0.0, is_past=False)

    for what, who, tokens, at in steps:
        mine = open_[who]
        match what:
            case "take":
                with suppress(GatewayError):
                    mine.append(allowances[who].reserve(tokens, 0.0, 5 * DAY_S))
            case "end" | "begun" if mine:
                allowances[who].settle(mine.pop(at % len(mine)), tokens, 0.0)
            case "tell":
                tell(who)
    for who in range(GATEWAYS):
        tell(who)
    used = sum(each.reserved + each.overdrawn - each.returned for each in allowances)
    for each in allowances:
        part = each.part(0.0)
        assert each.open + each.open_elsewhere == sum(map(len, open_))
        assert part.requests_missing == sum(one.admitted for one in allowances)
        assert part.tokens_missing == pytest.approx(used)
        assert each.day is not None
        if each.day.number:
            assert each.day.used + each.day.elsewhere == sum(
                one.day.used for one in allowances if one.day is not None
            )
    for each in allowances:  # gone: nothing is open there, and what was used was used
        missing = each.part(0.0).tokens_missing
        for who in range(GATEWAYS):
            each.others(f"{who} 1", None, 0.0, is_past=False)
        assert each.open_elsewhere == 0
        assert each.part(0.0).tokens_missing == missing


def test_who_begins_beside_others_takes_over_how_far_they_have_come() -> None:
    first, second = Allowance(LIMITS, 0.0), Allowance(LIMITS, 0.0)
    wall = 5 * DAY_S
    for allowance in (first, second):
        for _ in range(4):
            allowance.reserve(6000, 0.0, wall)
    second.others("first 1", first.part(0.0), 0.0, is_past=False)
    first.others("second 2", second.part(0.0), 0.0, is_past=False)
    second.others("first 1", None, 0.0, is_past=False)  # it is gone
    third = Allowance(LIMITS, 0.0)
    third.others("second 2", second.part(0.0), 0.0, is_past=True)
    part = third.part(0.0)
    assert (part.requests_missing, part.tokens_missing) == (8, 48_000)
    assert third.day is not None
    assert third.day.used + third.day.elsewhere == 48_000
    assert third.open_elsewhere == 4


def test_what_is_missing_already_is_not_taken_over_twice() -> None:
    """Two elders have each heard of the other: what they know is largely the same."""
    ours = Allowance(LIMITS, 0.0)
    ours.reserve(3000, 0.0, 5 * DAY_S)
    assert ours.day is not None
    for life, missing, known in (("a 1", 5000.0, 9000), ("b 1", 4000.0, 7000)):
        elder = Part(day=5, day_known=known, requests_missing=3.0, tokens_missing=missing)
        ours.others(life, elder, 0.0, is_past=True)
    part = ours.part(0.0)
    assert (part.requests_missing, part.tokens_missing) == (3.0, 5000.0)
    assert ours.day.used + ours.day.elsewhere == 9000


def test_a_new_day_elsewhere_owes_nothing_to_the_day_before() -> None:
    ours = Allowance(LIMITS, 0.0)
    for day, used in ((5, 900), (6, 40), (6, 70)):
        ours.others("a 1", Part(day=day, day_used=used), 0.0, is_past=False)
    assert ours.day is not None
    assert (ours.day.number, ours.day.elsewhere) == (6, 70)


def test_of_many_lives_the_one_longest_silent_is_forgotten_with_what_it_has_open() -> None:
    ours = Allowance(LIMITS, 0.0)
    for life in range(MOST_LIVES):
        ours.others(f"{life} 1", Part(open=1), 0.0, is_past=False)
    ours.others("0 1", Part(open=2), 0.0, is_past=False)  # it speaks again
    ours.others("new 1", Part(open=5), 0.0, is_past=False)
    assert ours.open_elsewhere == MOST_LIVES - 1 + 1 + 5  # all but number 1
    ours.others("1 1", None, 0.0, is_past=False)
    assert ours.open_elsewhere == MOST_LIVES - 1 + 5  # number 2 made room for that


BURSTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 2), st.floats(0.0, 3 * TURN_S)), max_size=80
)


@given(st.integers(1, 4), st.integers(4, 40), BURSTS, st.floats(0.0, PAUSE_S * 0.99))
def test_together_they_take_no_more_than_there_was(
    gateways: int, there: int, bursts: list[tuple[int, int, float]], late_s: float
) -> None:
    """Whatever comes where and when, as long as news takes no longer than a pause; but for a last
    two that one has in its turn while another has one of them."""
    rations = [Ration() for _ in range(gateways)]
    taken: list[tuple[float, int, int]] = []  # when, by whom, how much
    wall = 1_700_000_000.0
    for where, amount, after_s in bursts:
        wall += after_s
        who = where % gateways
        left = there - sum(much for when, by, much in taken if by == who or when + late_s <= wall)
        ranks = Ranks(gateways, who) if gateways > 1 else ALONE
        if amount <= left and rations[who].allows(amount, left, ranks, wall):
            rations[who].take(amount)
            taken.append((wall, who, amount))
    assert sum(much for *_, much in taken) <= there + 1


@pytest.mark.parametrize("ours", range(4))
def test_the_last_one_may_be_had_by_anybody_who_waits_for_its_turn(ours: int) -> None:
    ration, wall = Ration(), 1_700_000_000.0
    for _ in range(60):
        if ration.allows(1, 1, Ranks(4, ours), wall):
            return
        wall += 0.012
    raise AssertionError("it waited in vain")


def test_of_those_that_wait_elsewhere_as_much_goes_before_a_newcomer_as_of_ours() -> None:
    target = Target(Pace(), Price())
    newcomer = place(a_request().tenant, None, 10.0, 100)
    assert target.behind(newcomer, 100) == (0.0, 0.0)
    target.others("few", TargetPart(sent=90, waiting=1, waiting_work=90), 10.0)
    target.others("many", TargetPart(sent=4000, waiting=4, waiting_work=4000), 10.0)
    assert target.is_crowded
    assert target.behind(newcomer, 1000) == (3.0, 3000.0)
    target.waiting.add(place(a_request().tenant, None, 9.0, 50), 500)
    assert target.behind(newcomer, 1500) == (2.0, 2000.0), "ours goes before it"
    target.waiting.add(place(a_request().tenant, None, 10.0, 10**7), 700)
    assert target.behind(newcomer, 1500) == (3.0, 2700.0)
    assert target.part() == TargetPart(waiting=2, waiting_work=1200)
    for peer in ("few", "many"):
        target.others(peer, NO_TARGET_PART, 11.0)
    assert target.behind(newcomer, 1500) == (1.0, 700.0)
