"""One end of the link between gateways, by itself or with another on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import monotonic
from gateway.kv_cache import Placement
from gateway.peers.book import Address
from gateway.peers.link import SWEEP_EVERY_S, Link, listen
from gateway.peers.rows import Datagram, Key, Kind, Row, Rows, Topic
from gateway.peers.share import Change
from gateway.peers.wire import encode
from gateway.settings import PeersSettings
from tests.house import run, until

KEY: Key = (Topic.REPLICA, "r1:8000")
ROW: Row = (1.0, 2.0)
PROMPT = Placement("r1:8000", 0.25, bytes(8))
NEVER_S = 600.0


class Rooms:
    """As much of a gateway as a link sees."""

    def __init__(self) -> None:
        self.own: dict[Key, Row] = {}
        self.sent: list[Placement] = []
        self.theirs: dict[Key, Row | None] = {}
        self.elsewhere: list[Placement] = []
        self.names: list[str] = []
        self.looks = 0

    def rows(self) -> Rows:
        return dict(self.own)

    def news(self) -> Rows:
        self.looks += 1
        return dict(self.own)

    def heard(self, changes: Sequence[Change]) -> None:
        self.theirs |= {each.key: each.now for each in changes}

    def placements(self) -> Sequence[Placement]:
        sent, self.sent = self.sent, []
        return sent

    def placed(self, placements: Sequence[Placement]) -> None:
        self.elsewhere += placements

    def beside(self, gateways: Sequence[str], ours: int) -> None:
        self.names = list(gateways)


def a_link(
    *siblings: Address, rooms: Rooms | None = None, **knobs: Any
) -> tuple[Link, Rooms, Address]:
    settings = PeersSettings.of({"host": "127.0.0.1", **knobs})
    sock, rooms = listen(settings), rooms or Rooms()
    return (
        Link(settings, rooms, (monotonic, time.time), sock, siblings),
        rooms,
        sock.getsockname(),
    )


@contextmanager
def a_mute_link() -> Iterator[tuple[Link, Rooms, Address]]:
    """It is told what comes in, and nothing goes out."""
    settings, rooms = PeersSettings(host="127.0.0.1"), Rooms()
    with listen(settings) as sock:
        link = Link(settings, rooms, (monotonic, time.time), sock, [("127.0.0.1", 9)])
        yield link, rooms, sock.getsockname()


@asynccontextmanager
async def speaking(*links: Link) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(link.run()) for link in links]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def a_pair(**knobs: Any) -> AsyncIterator[tuple[tuple[Link, Rooms], tuple[Link, Rooms]]]:
    """Two who have heard each other. Only the second one knows where the first one is."""
    one, ours, at = a_link(("127.0.0.1", 9), **knobs)
    two, theirs, _ = a_link(at, **knobs)
    async with speaking(one, two):
        await until(lambda: len(ours.names) == len(theirs.names) == 2)
        yield (one, ours), (two, theirs)


def test_who_is_found_is_heard_and_counted_the_moment_it_speaks() -> None:
    with a_mute_link() as (link, rooms, _):
        said = Datagram("other", 1, 1, Kind.WHOLE, rows=[(*KEY, ROW)], placements=[PROMPT])
        link.datagram_received(encode(said), ("127.0.0.2", 9))
        assert not rooms.theirs
        link.datagram_received(encode(said), ("127.0.0.1", 9))
        assert rooms.theirs == {KEY: ROW}
        assert rooms.names == sorted([link.name, "other"])
        link.datagram_received(encode(said), ("127.0.0.1", 9))  # it comes twice
        assert rooms.elsewhere == [PROMPT]
        bye = Datagram("other", 1, 2, Kind.GOODBYE)
        link.datagram_received(encode(bye), ("127.0.0.1", 9))
        assert rooms.theirs == {KEY: None}
        assert rooms.names == [link.name]
        link.datagram_received(b"noise", ("127.0.0.1", 9))
        assert link.datagrams == {"strange": 1, "heard": 3, "unreadable": 1}


def test_what_was_overheard_and_is_sent_again_from_elsewhere_turns_nobody_away(
    tmp_path: Path,
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"between gateways")
    secret = blake2b(b"between gateways", digest_size=64).digest()
    overheard = encode(Datagram("other", 1, 1, Kind.WHOLE, rows=[(*KEY, ROW)]), secret)

    async def law() -> None:
        link, rooms, at = a_link(secret=str(file), whole_every_s=0.05)
        with listen(PeersSettings()) as one, listen(PeersSettings()) as another:
            thief, other = sorted((one, another), key=lambda sock: sock.getsockname())
            async with speaking(link):
                other.sendto(overheard, at)
                await until(lambda: rooms.theirs)
                thief.sendto(overheard, at)
                await until(lambda: link.datagrams["heard"] == 2)
                sent = link.datagrams["sent"]
                await until(lambda: link.datagrams["sent"] > sent + 2)
            assert other.recv(2000)
            with pytest.raises(BlockingIOError):
                thief.recv(2000)

    run(law())


def test_an_empty_file_is_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("\n")
    settings = PeersSettings(host="127.0.0.1", secret=str(file))
    with listen(settings) as sock, pytest.raises(OSError, match="is empty"):
        Link(settings, Rooms(), (monotonic, time.time), sock)


def test_our_own_voice_is_not_answered() -> None:
    with a_mute_link() as (link, rooms, at):
        said = Datagram(link.name, 1, 1, Kind.WHOLE, asks=True, placements=[PROMPT])
        link.datagram_received(encode(said), at)
        assert not rooms.elsewhere
        assert not rooms.names


def test_whoever_comes_asks_and_is_told_everything_soon() -> None:
    async def law() -> None:
        rooms = Rooms()
        rooms.own[KEY] = ROW
        one, _, at = a_link(("127.0.0.1", 9), rooms=rooms, whole_every_s=NEVER_S, silent_s=900.0)
        async with speaking(one):
            await asyncio.sleep(3 * SWEEP_EVERY_S)  # it has said all it has to say
            two, theirs, _ = a_link(at, whole_every_s=NEVER_S, silent_s=900.0)
            async with speaking(two):
                await until(lambda: theirs.theirs == {KEY: ROW}, within_s=2.0)

    run(law())


def test_what_changes_without_a_word_is_told_by_the_next_sweep() -> None:
    async def law() -> None:
        async with a_pair(whole_every_s=NEVER_S, silent_s=900.0) as ((_, ours), (_, theirs)):
            await asyncio.sleep(3 * SWEEP_EVERY_S)
            ours.own[KEY] = ROW
            ours.sent.append(PROMPT)
            await until(lambda: theirs.theirs == {KEY: ROW}, within_s=2.0)
            assert theirs.elsewhere == [PROMPT]

    run(law())


def test_what_was_lost_is_in_the_next_whole_state() -> None:
    async def law() -> None:
        async with a_pair(whole_every_s=0.2) as ((one, ours), (_, theirs)):
            ours.own[KEY] = ROW
            await until(lambda: theirs.theirs == {KEY: ROW})
            del ours.own[KEY]  # that a row has ended is never said by itself
            await until(lambda: theirs.theirs == {KEY: None}, within_s=2.0)
            sent = one.datagrams["sent"]
            await asyncio.sleep(1.0)
            assert 1 <= one.datagrams["sent"] - sent <= 12, "and no more often than that"

    run(law())


def test_much_is_told_no_more_often_than_it_is_to_be() -> None:
    async def law() -> None:
        knobs = {"whole_every_s": NEVER_S, "silent_s": 900.0, "tell_every_s": 0.2}
        async with a_pair(**knobs) as ((one, ours), (_, theirs)):
            await asyncio.sleep(3 * SWEEP_EVERY_S)
            sent, began = one.datagrams["sent"], monotonic()
            ours.own[KEY] = (0.0,)
            one.wake()
            await until(lambda: theirs.theirs == {KEY: (0.0,)})
            number = 0.0
            while monotonic() - began < 1.0:
                number += 1.0
                ours.own[KEY] = (number,)
                one.wake()
                await asyncio.sleep(0.005)
            assert one.datagrams["sent"] - sent <= 2 * 8  # to two addresses
            assert ours.looks <= 30, "for many changes it is looked once"
            await until(lambda: theirs.theirs == {KEY: (number,)}, within_s=2.0)

    run(law())


def test_nobody_is_told_while_nobody_is_heard() -> None:
    async def law() -> None:
        link, rooms, _ = a_link(("127.0.0.1", 9), whole_every_s=NEVER_S)
        async with speaking(link):
            await until(lambda: link.datagrams["sent"])
            rooms.own[KEY] = ROW
            link.wake()
            await asyncio.sleep(3 * SWEEP_EVERY_S)
            assert link.datagrams["sent"] == 1

    run(law())


def test_who_leaves_says_so_and_who_falls_silent_is_found_out() -> None:
    async def law() -> None:
        one, ours, at = a_link(("127.0.0.1", 9), silent_s=0.6, whole_every_s=0.1)
        async with speaking(one):
            two, theirs, _ = a_link(at, whole_every_s=0.1)
            theirs.own[KEY] = ROW
            async with speaking(two):
                await until(lambda: ours.theirs == {KEY: ROW})
            await until(lambda: ours.theirs == {KEY: None}, within_s=0.4)
            said = Datagram("dead", 1, 1, Kind.WHOLE, rows=[(*KEY, ROW)])
            one.datagram_received(encode(said), ("127.0.0.1", 9))
            assert ours.theirs == {KEY: ROW}
            await until(lambda: ours.theirs == {KEY: None})
            assert ours.names == [one.name]

    run(law())


def test_a_bug_met_while_it_speaks_or_looks_ends_neither(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Rooms):
        is_broken = True

        def rows(self) -> Rows:
            if self.is_broken:
                raise ZeroDivisionError
            return super().rows()

    async def law() -> None:
        rooms = Broken()
        one, _, at = a_link(("127.0.0.1", 9), rooms=rooms)
        two, theirs, _ = a_link(at)
        async with speaking(one, two):
            await until(lambda: "speaking to them has a bug" in caplog.text)
            assert not theirs.names[1:]
            rooms.is_broken = False
            await until(lambda: len(theirs.names) == 2)

    run(law())


def test_a_name_that_is_not_found_keeps_nobody_else_from_being_found() -> None:
    async def law() -> None:
        one, ours, at = a_link(("127.0.0.1", 9))
        addresses = ["nowhere.invalid:7946", f"127.0.0.1:{at[1]}"]
        two, theirs, _ = a_link(addresses=addresses)
        async with speaking(one, two):
            await until(lambda: len(ours.names) == len(theirs.names) == 2)

    run(law())
