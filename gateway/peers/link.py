"""The socket between gateways: what is ours goes out, what is theirs comes in.

UDP, because a figure that is late is worth nothing and the next one replaces it: nothing is ever
sent again, nobody is waited for, and there are no connections to keep. A change goes out in the
tick after it, unless something was told less than `tell_every_s` ago: then as soon as that is over,
with all that has changed until then. So where little happens all of it is told at once, where much
happens what is told costs no more, and where nothing does, nothing. All we have goes out every
`whole_every_s`, or at the next sweep where somebody who is new asks.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from gateway.loops import kept
from gateway.peers.book import Address, Book
from gateway.peers.rows import Kind
from gateway.peers.share import Change, Peers
from gateway.peers.voice import Voice
from gateway.peers.wire import MOST_SECRET_BYTES, Unreadable, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.clock import Clock
    from gateway.kv_cache import Placement
    from gateway.peers.rows import Datagram, Rows
    from gateway.settings import PeersSettings

SWEEP_EVERY_S: Final = 0.1
"""How often it is looked who has fallen silent, and what has changed of itself."""
RECEIVE_BYTES: Final = 1 << 20
"""Of datagrams that came while we were busy."""

log = logging.getLogger(__name__)


class Rooms(Protocol):
    """Whose figures are told, and who is told others'."""

    def rows(self) -> Rows:
        """All of ours, as they are now."""

    def news(self) -> Rows:
        """Those that may be others than at the last call of either."""

    def heard(self, changes: Sequence[Change]) -> None:
        """Others' have changed."""

    def placements(self) -> Sequence[Placement]:
        """Prompts that we have sent since the last call."""

    def placed(self, placements: Sequence[Placement]) -> None:
        """Others have sent these."""

    def beside(self, gateways: Sequence[str], ours: int) -> None:
        """These are there, in an order that all agree on, and we are this one."""


class Link(asyncio.DatagramProtocol):
    """One gateway's end."""

    def __init__(
        self,
        settings: PeersSettings,
        rooms: Rooms,
        clocks: tuple[Clock, Callable[[], float]],
        sock: socket.socket,
        siblings: Sequence[Address] = (),
    ) -> None:
        """`clocks`: the monotonic, and the wall's. `sock` is bound; the link closes it. `siblings`
        are other workers of the same gateway. Raises OSError for a secret that is none."""
        self._settings = settings
        self._rooms = rooms
        self._clock, wall = clocks
        self._secret = _secret(settings.secret)
        self._sock = sock
        self._family = sock.family
        port: int = sock.getsockname()[1]
        self.name: Final = f"{socket.gethostname()}:{port}"
        epoch = int(wall() * 1e6)
        self._voice = Voice(self.name, epoch)
        self.peers: Final = Peers(self.name, epoch, settings.silent_s)
        self._siblings = tuple(siblings)
        self._book = Book(self.name)
        self._book.found(self._siblings)
        self._named: dict[Address, set[Address]] = {}  # by what is to be looked up
        self._names: list[str] = []
        self._transport: asyncio.DatagramTransport | None = None
        self._timer: asyncio.Handle | None = None  # until what has changed is told
        self._told_at = -inf
        self._is_asked = True  # to tell everything
        self._complaint: str | None = None
        self.datagrams: Final = Counter[str]()  # by what became of them

    def __repr__(self) -> str:
        return f"<Link of {self.name}: {self.peers!r}>"

    async def run(self) -> None:
        """Speak and listen until cancelled; then say goodbye."""
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        await loop.create_datagram_endpoint(lambda: self, sock=self._sock)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(kept("finding other gateways", self._find), name="find peers")
                tasks.create_task(kept("speaking to them", self._speak), name="speak to peers")
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._say([self._voice.goodbye()])
            if self._transport is not None:
                self._transport.close()

    def document(self) -> list[dict[str, object]]:
        """The others that are heard: since when they live, how long ago they spoke, and of how much
        they tell. Built anew on each call."""
        now = self._clock()
        return [
            {
                "name": peer.name,
                "began_at": peer.epoch / 1e6,
                "heard_s_ago": round(now - peer.heard_at, 3),
                "rows": len(peer.rows),
                "has_told_all": peer.has_told_all,
            }
            for peer in self.peers.present
        ]

    # What comes in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Somebody speaks, perhaps a stranger."""
        address: Address = (addr[0], addr[1])
        if not self._secret and not self._book.is_known(address[0]):
            self.datagrams["strange"] += 1
            return
        try:
            said = decode(data, self._secret)
        except Unreadable:
            self.datagrams["unreadable"] += 1
            return
        self.datagrams["heard"] += 1
        now = self._clock()
        if self.peers.is_newest(said) or self._book.is_known(address[0]):
            self._book.spoke(address, said.name, now)  # a replay from elsewhere turns nobody away
        if said.name == self.name:
            return
        if said.placements and self.peers.is_newest(said):
            self._rooms.placed(said.placements)
        changes = self.peers.hear(said, now)
        if changes:
            self._rooms.heard(changes)
        if said.name not in self._names or said.kind is Kind.GOODBYE:
            self._count()
        self._is_asked = self._is_asked or said.asks

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there, or not any more: others may."""
        self.datagrams["undelivered"] += 1

    # What goes out

    def wake(self) -> None:
        """Something of ours has changed. O(1) until it is told."""
        if self._timer is not None or not self._names[1:]:
            return
        loop = asyncio.get_running_loop()
        wait_s = self._told_at + self._settings.tell_every_s - self._clock()
        if wait_s > 0.0:
            self._timer = loop.call_later(wait_s, self._tell)
        else:
            self._timer = loop.call_soon(self._tell)

    def _tell(self) -> None:
        """What has changed."""
        self._timer = None
        said = self._voice.placed(self._rooms.placements())
        said += self._voice.delta(self._rooms.news())
        if said:
            self._told_at = self._clock()
            self._say(said)

    def _tell_all(self, *, asks: bool = False) -> None:
        self._is_asked = False
        self._say(self._voice.whole(self._rooms.rows(), asks=asks))

    async def _speak(self) -> None:
        settings, clock = self._settings, self._clock
        whole_at = clock()
        asks = True
        while True:
            now = clock()
            self._book.forget(now)
            gone = self.peers.expire(now)
            if gone:
                self._rooms.heard(gone)
            self._count()
            if now >= whole_at or self._is_asked:
                whole_at = now + settings.whole_every_s
                self._tell_all(asks=asks)
                asks = False
            else:
                self.wake()
            await asyncio.sleep(min(SWEEP_EVERY_S, settings.whole_every_s))

    def _count(self) -> None:
        names = sorted([self.name, *(peer.name for peer in self.peers.present)])
        if names != self._names:
            self._names = names
            self._rooms.beside(names, names.index(self.name))

    def _say(self, datagrams: Sequence[Datagram]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        for datagram in datagrams:
            data = encode(datagram, self._secret)
            for address in self._book.targets:
                transport.sendto(data, address)
                self.datagrams["sent"] += 1

    # Whom to speak to

    async def _find(self) -> None:
        while True:
            await self._look_up()
            await asyncio.sleep(self._settings.find_every_s)

    async def _look_up(self) -> None:
        """All addresses there are, each with every worker's port; of a name that cannot be looked
        up now, those that it had."""
        settings = self._settings
        wanted = [_split(each) for each in settings.addresses]
        if settings.dns is not None and settings.port is not None:
            wanted += [(settings.dns, settings.port + each) for each in range(settings.workers)]
        wrong: str | None = None
        for host, port in wanted:
            try:
                infos = await asyncio.get_running_loop().getaddrinfo(
                    host, port, family=self._family, type=socket.SOCK_DGRAM
                )
            except (OSError, UnicodeError) as error:
                wrong = f"{host}: {error}"
            else:
                self._named[host, port] = {(str(at[0]), int(at[1])) for *_, at in infos}
        self._complain(wrong)
        self._book.found(set(self._siblings).union(*self._named.values()))

    def _complain(self, wrong: str | None) -> None:
        if wrong != self._complaint:
            self._complaint = wrong
            log.warning("peers: %s", wrong or "found again")


def _secret(path: str | None) -> bytes:
    if path is None:
        return b""
    said = Path(path).read_bytes().strip()
    if not said:
        raise OSError(f"peers.secret: {path} is empty, which is no secret")
    return blake2b(said, digest_size=MOST_SECRET_BYTES).digest()


def _split(address: str) -> Address:
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def listen(settings: PeersSettings, worker: int = 0) -> socket.socket:
    """The socket of one worker. Raises OSError where it is taken."""
    host = settings.listen_host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.bind((host, settings.port + worker if settings.port is not None else 0))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"peers: {host}, UDP port: {error.strerror}") from None
    sock.setblocking(False)
    return sock
