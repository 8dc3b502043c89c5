"""What gateways believe of each other: whatever the network does, the truth stands in the end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kv_cache import Placement
from gateway.peers.book import FORGOTTEN_S, Book
from gateway.peers.rows import Datagram, Key, Kind, Row, Topic
from gateway.peers.share import REMEMBERED_S, Change, Peers
from gateway.peers.voice import MOST_BYTES, Voice
from gateway.peers.wire import HEAD, SEAL_BYTES, Unreadable, decode, encode

SILENT_S = 3.0
NAMES = st.sampled_from(["a:1", "b:1", "c:1", "d" * 200])
ROWS = st.dictionaries(
    st.tuples(st.sampled_from(Topic), NAMES),
    st.lists(st.integers(0, 9), min_size=1, max_size=60).map(tuple),
    max_size=12,
)
HISTORIES = st.lists(st.tuples(ROWS, st.booleans()), min_size=1, max_size=6)
"""What a gateway has at some moments, and whether it says all of it then."""


def said_over(voice: Voice, history: Sequence[tuple[dict[Key, Row], bool]]) -> list[Datagram]:
    """Everything it says of it."""
    return [
        datagram
        for rows, is_whole in history
        for datagram in (voice.whole(rows) if is_whole else voice.delta(rows))
    ]


def believed(changes: Sequence[Change], before: dict[tuple[str, Key], Row] | None = None) -> (
    dict[tuple[str, Key], Row]
):  # fmt: skip
    """What is left when every change is made; each must be one of what was there."""
    rows = {} if before is None else before
    for each in changes:
        assert rows.get((each.peer, each.key)) == each.was
        if each.now is None:
            del rows[each.peer, each.key]
        else:
            rows[each.peer, each.key] = each.now
    return rows


@given(data=st.data(), history=HISTORIES, last=ROWS)
def test_any_loss_doubling_and_order_comes_to_the_truth(
    data: st.DataObject, history: list[tuple[dict[Key, Row], bool]], last: dict[Key, Row]
) -> None:
    voice, peers = Voice("peer", 5), Peers("we", 7, SILENT_S)
    past = said_over(voice, history)
    came = data.draw(st.lists(st.sampled_from(past), max_size=20)) if past else []
    whole = voice.whole(last)
    late = data.draw(st.lists(st.sampled_from(past), max_size=5)) if past else []
    mixed = data.draw(st.permutations([*whole, *late]))
    changes = [each for said in [*came, *mixed] for each in peers.hear(said, 1.0)]
    assert believed(changes) == {("peer", key): row for key, row in last.items()}
    assert {key: row for peer in peers.present for key, row in peer.rows.items()} == last
    for said in [*past, *whole]:  # and nothing that is told again moves it
        assert not peers.hear(said, 2.0)


@given(data=st.data(), first=ROWS, then=HISTORIES)
def test_deltas_after_a_whole_state_are_enough_as_long_as_none_is_lost(
    data: st.DataObject, first: dict[Key, Row], then: list[tuple[dict[Key, Row], bool]]
) -> None:
    voice, peers = Voice("peer", 5), Peers("we", 7, SILENT_S)
    grown: dict[Key, Row] = dict(first)
    history = [(dict(first), True)]
    for rows, _ in then:
        grown = {**grown, **rows}
        history.append((dict(grown), False))
    said = said_over(voice, history)
    changes = [
        each for datagram in data.draw(st.permutations(said)) for each in peers.hear(datagram, 1.0)
    ]
    assert believed(changes) == {("peer", key): row for key, row in grown.items()}


@given(data=st.data(), old=ROWS, new=ROWS)
def test_a_new_life_ends_the_old_one(
    data: st.DataObject, old: dict[Key, Row], new: dict[Key, Row]
) -> None:
    before, after = Voice("peer", 5).whole(old), Voice("peer", 6).whole(new)
    peers = Peers("we", 7, SILENT_S)
    changes = [
        each
        for said in data.draw(st.permutations([*before, *after]))
        for each in peers.hear(said, 1.0)
    ]
    assert believed(changes) == {("peer", key): row for key, row in new.items()}


@given(rows=ROWS, more=ROWS)
def test_a_silent_gateway_has_nothing_and_may_speak_again(
    rows: dict[Key, Row], more: dict[Key, Row]
) -> None:
    voice, peers = Voice("peer", 5), Peers("we", 7, SILENT_S)
    old = voice.whole(rows)
    held = believed([each for said in old for each in peers.hear(said, 1.0)])
    assert not peers.expire(1.0 + SILENT_S - 0.1)
    held = believed(peers.expire(1.0 + SILENT_S), held)
    assert not held
    assert not peers.present
    assert not [each for said in old for each in peers.hear(said, 5.0)]  # replayed
    held = believed([each for said in voice.whole(more) for each in peers.hear(said, 6.0)], held)
    assert held == {("peer", key): row for key, row in more.items()}
    assert [peer.name for peer in peers.present] == ["peer"]


def test_a_replay_keeps_nobody_alive() -> None:
    voice, peers = Voice("peer", 5), Peers("we", 7, SILENT_S)
    (said,) = voice.whole({(Topic.REPLICA, "a:1"): (1,)})
    peers.hear(said, 1.0)
    peers.hear(said, 3.5)
    assert peers.expire(4.0)


def test_who_goes_on_speaking_is_kept() -> None:
    voice, peers = Voice("peer", 5), Peers("we", 7, SILENT_S)
    rows: dict[Key, Row] = {(Topic.REPLICA, "a:1"): (1,)}
    for now in (1.0, 3.5):
        peers.hear(voice.whole(rows)[0], now)
    assert not peers.expire(3.5 + SILENT_S - 0.1)
    assert peers.expire(3.5 + SILENT_S)


@given(rows=ROWS, later=ROWS)
def test_after_a_goodbye_nothing_counts_but_a_new_life(
    rows: dict[Key, Row], later: dict[Key, Row]
) -> None:
    voice, peers = Voice("peer", 5), Peers("we", 7, SILENT_S)
    held = believed([each for said in voice.whole(rows) for each in peers.hear(said, 1.0)])
    late = voice.whole(later)
    held = believed(peers.hear(voice.goodbye(), 1.1), held)
    assert not held
    after = voice.whole(later)  # nobody says it, who has said goodbye
    assert not [each for said in [*late, *after] for each in peers.hear(said, 1.2)]
    assert not peers.present
    assert not peers.expire(1.1 + REMEMBERED_S)


def test_who_was_there_before_us_is_told_apart_and_our_own_voice_is_no_news() -> None:
    peers = Peers("we", 7, SILENT_S)
    rows: dict[Key, Row] = {(Topic.TENANT, "t"): (3,)}
    voice = Voice("elder", 6)
    (elder,) = peers.hear(voice.whole(rows)[0], 1.0)
    (younger,) = peers.hear(Voice("younger", 8).whole(rows)[0], 1.0)
    assert elder.is_past
    assert not younger.is_past
    (later,) = peers.hear(voice.delta({(Topic.TENANT, "u"): (3,)})[0], 1.0)
    assert not later.is_past  # it has told us all before
    assert not peers.hear(Voice("we", 7).whole(rows)[0], 1.0)


@given(rows=ROWS, asks=st.booleans(), secret=st.binary(max_size=64))
def test_what_is_sent_is_what_is_read_and_is_of_a_fit_size(
    rows: dict[Key, Row], asks: bool, secret: bytes
) -> None:
    for said in Voice("peer:1", 1_700_000_000_000_000).whole(rows, asks=asks):
        data = encode(said, secret)
        assert decode(data, secret) == said
        assert len(data) <= MOST_BYTES + 100


PLACEMENTS = st.lists(
    st.builds(
        Placement,
        st.sampled_from(["r1:8000", "r2:8000"]),
        st.floats(0.01, 4.0),
        st.integers(1, 130).map(lambda marks: bytes(8 * marks)),
        st.booleans(),
    ),
    max_size=12,
)


@given(placements=PLACEMENTS)
def test_placements_are_read_as_sent_in_datagrams_of_a_fit_size(
    placements: list[Placement],
) -> None:
    voice, peers = Voice("peer", 5), Peers("we", 7, SILENT_S)
    came: list[Placement] = []
    for said in voice.placed(placements):
        data = encode(said)
        assert len(data) <= MOST_BYTES + 100
        read = decode(data)
        assert peers.is_newest(read)
        assert not peers.hear(read, 1.0)
        assert not peers.is_newest(read)  # it is heard once
        came += read.placements
    assert came == placements


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    for data in (noise, HEAD + noise, HEAD + b"0" * SEAL_BYTES + noise):
        with pytest.raises(Unreadable):
            decode(data)


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=30,
))  # fmt: skip
def test_whatever_is_sealed_is_read_whole_or_refused(value: object) -> None:
    sealed = encode(value)  # type: ignore[arg-type]
    try:
        said = decode(sealed)
    except Unreadable:
        return
    assert encode(said) == encode(decode(encode(said)))


@given(rows=ROWS, at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_datagram_that_was_changed_or_sealed_by_a_stranger_is_refused(
    rows: dict[Key, Row], at: int, bit: int
) -> None:
    data = bytearray(encode(Voice("peer", 5).whole(rows)[0], b"secret"))
    with pytest.raises(Unreadable):
        decode(bytes(data), b"another")
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(Unreadable):
        decode(bytes(data), b"secret")


@pytest.mark.parametrize(
    "datagram",
    [
        Datagram("", 1, 1, Kind.DELTA),
        Datagram("x" * 256, 1, 1, Kind.DELTA),
        Datagram("x", -1, 1, Kind.DELTA),
        Datagram("x", 1, 0, Kind.DELTA),
        Datagram("x", 1, 2, Kind.WHOLE, part=2, parts=2),
        Datagram("x", 1, 2, Kind.WHOLE, part=2, parts=3),
        Datagram("x", 1, 1, Kind.DELTA, rows=[(Topic.TENANT, "t", (float("nan"),))]),
    ],
)
def test_figures_that_no_gateway_sends_are_refused(datagram: Datagram) -> None:
    with pytest.raises(Unreadable):
        decode(encode(datagram))


def test_everybody_is_spoken_to_once_and_we_are_not() -> None:
    book = Book("we")
    book.found([("10.0.0.1", 1), ("10.0.0.2", 1), ("127.0.0.1", 1)])
    assert len(book.targets) == 3
    book.spoke(("10.0.0.1", 1), "we", 1.0)
    book.spoke(("10.0.0.2", 1), "pod", 1.0)
    book.spoke(("127.0.0.1", 1), "pod", 1.0)
    book.spoke(("10.0.0.9", 7), "more workers than we have", 1.0)
    book.spoke(("10.0.0.0", 1), "pod", 1.0)
    assert book.targets == [("10.0.0.2", 1), ("10.0.0.9", 7)]
    assert book.is_known("10.0.0.2")
    assert not book.is_known("10.0.0.9")
    book.forget(1.0 + FORGOTTEN_S)
    assert len(book.targets) == 3  # they may be others by now


def test_who_is_found_later_or_speaks_by_another_name_is_spoken_to_from_then_on() -> None:
    book, one, two = Book("we"), ("10.0.0.1", 1), ("10.0.0.2", 1)
    book.found([one])
    assert book.targets == [one]
    book.found([one, two])
    assert book.targets == [one, two]
    book.spoke(one, "pod", 1.0)
    book.spoke(two, "pod", 1.0)
    assert book.targets == [one], "it is the same one"
    book.spoke(two, "other", 2.0)
    assert book.targets == [one, two]
    book.forget(1.0 + FORGOTTEN_S)
    book.spoke(one, "other", 1.0 + FORGOTTEN_S)
    assert book.targets == [one], "who spoke there less long ago is remembered"
