"""Which replicas are there? From the settings, from DNS, from a watched file, from Kubernetes.

Each source tells the roster its whole truth whenever that changes, and holds on to its last good
answer while the place it looks at is silent or speaks nonsense: a broken resolver or a typing
mistake in a file must not take a working fleet away. What is wrong is logged once, not per look.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final, Protocol

from gateway.apart import apart
from gateway.clock import Clock
from gateway.fleet.listing import read_listing
from gateway.fleet.roster import Roster
from gateway.section import SettingsError
from gateway.settings import DnsSettings, FleetSettings, ReplicaSettings
from gateway.vocabulary import ModelName, ReplicaAddress, Seconds

MAX_FILE_BYTES: Final = 1024 * 1024
SETTLE_S: Final = 0.05  # a file that reads the same twice, so far apart, is not being written

if TYPE_CHECKING:
    from gateway.fleet.pod_prices import Caches

log = logging.getLogger(__name__)


class Discovery(Protocol):
    """A source of replicas."""

    async def run(self) -> None:
        """Keep the roster told, until cancelled or until there is nothing more to tell."""


def discoveries(
    settings: FleetSettings, roster: Roster, caches: Caches, clock: Clock, rng: Random
) -> list[Discovery]:
    """One for each source that the settings name; `caches` says what a pod is worth.

    Raises SettingsError where Kubernetes is to be asked and there is no way to ask it.
    """
    found: list[Discovery] = []
    if settings.replicas:
        found.append(StaticDiscovery(settings.replicas, roster))
    found += [DnsDiscovery(dns, settings.watch_every_s, roster) for dns in settings.dns]
    if settings.file is not None:
        found.append(FileDiscovery(settings.file, settings.watch_every_s, roster))
    if settings.kubernetes.enabled:
        from gateway.fleet.discover_kubernetes import KubernetesDiscovery

        found.append(KubernetesDiscovery(settings.kubernetes, roster, caches, clock, rng))
    return found


class StaticDiscovery:
    """The list in the settings, told once."""

    def __init__(self, replicas: Iterable[ReplicaSettings], roster: Roster) -> None:
        self._addresses = tuple(each for replica in replicas for each in replica.addresses())
        self._roster = roster

    def __repr__(self) -> str:
        return f"<StaticDiscovery of {len(self._addresses)} replicas>"

    async def run(self) -> None:
        """Done at once."""
        self._roster.apply(self._addresses, "static")


async def _for_ever(look: Callable[[], Awaitable[None]], every_s: Seconds) -> None:
    while True:
        try:
            await look()
        except Exception:
            log.exception("discovery has a bug")
        await asyncio.sleep(every_s)


class _Complaint:
    """Says what is wrong when it begins or becomes something else, and when it is over."""

    def __init__(self, about: str) -> None:
        self._about = about
        self._wrong: str | None = None

    def raise_once(self, wrong: str) -> None:
        if wrong != self._wrong:
            self._wrong = wrong
            log.warning("%s: %s; the last good answer stands", self._about, wrong)

    def settle(self) -> None:
        if self._wrong is not None:
            self._wrong = None
            log.info("%s: readable again", self._about)


class DnsDiscovery:
    """Every address behind a name, looked up every `watch_every_s`.

    Of a name with both IPv4 and IPv6 addresses only the IPv4 ones are taken: behind a dual-stack
    Service each replica has one of either, and would count twice.
    """

    def __init__(self, dns: DnsSettings, every_s: Seconds, roster: Roster) -> None:
        self._dns = dns
        self._every_s = every_s
        self._roster = roster
        self._complaint = _Complaint(f"dns {dns.name}")

    def __repr__(self) -> str:
        return f"<DnsDiscovery of {self._dns.name}>"

    async def run(self) -> None:
        """Look, tell, wait, for ever."""
        await _for_ever(self._look, self._every_s)

    async def _look(self) -> None:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                self._dns.name, self._dns.port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            self._complaint.raise_once(str(error))
            return
        hosts = [str(sockaddr[0]) for family, *_, sockaddr in found if family == socket.AF_INET]
        if not hosts:
            hosts = [
                f"[{sockaddr[0]}]" for family, *_, sockaddr in found if family == socket.AF_INET6
            ]
        if not hosts:
            self._complaint.raise_once("no address")
            return
        self._complaint.settle()
        addresses = [each for host in sorted(hosts) for each in self._addresses(host)]
        self._roster.apply(addresses, f"dns:{self._dns.name}")

    def _addresses(self, host: str) -> tuple[ReplicaAddress, ...]:
        scheme = "https" if self._dns.tls else "http"
        models = tuple(ModelName(name) for name in self._dns.models)
        address = ReplicaAddress(f"{scheme}://{host}:{self._dns.port}", models, self._dns.role)
        return address.ranks(self._dns.data_parallel_size)


class FileDiscovery:
    """A file that lists replicas, read every `watch_every_s` and told when its content changes.

    Reading it whole (it is small) instead of trusting its dates sees every way of changing it: in
    place, by renaming another over it, or by the symbolic links of a mounted ConfigMap. A content
    counts only when it reads the same twice, `SETTLE_S` apart: one half written is often valid.
    """

    def __init__(self, path: str, every_s: Seconds, roster: Roster) -> None:
        self._path = Path(path)
        self._every_s = every_s
        self._roster = roster
        self._seen: bytes | None = None
        self._complaint = _Complaint(f"file {path}")

    def __repr__(self) -> str:
        return f"<FileDiscovery of {self._path}>"

    async def run(self) -> None:
        """Look, tell, wait, for ever."""
        await _for_ever(self._look, self._every_s)

    async def _look(self) -> None:
        try:
            content = await self._settled()
            if content is None:
                return
            listing = await asyncio.to_thread(apart, read_listing, content)
        except OSError as error:
            self._seen = None  # so that it is told again when it is back
            self._complaint.raise_once(error.strerror or str(error))
            return
        except SettingsError as error:
            self._complaint.raise_once(str(error))
            return
        self._complaint.settle()
        self._roster.apply(listing.addresses(), f"file:{self._path}")

    async def _settled(self) -> bytes | None:
        """The content, if it is new and nobody is writing it. Raises OSError."""
        content = await asyncio.to_thread(_read, self._path)
        if content == self._seen:
            return None
        await asyncio.sleep(SETTLE_S)
        if await asyncio.to_thread(_read, self._path) != content:
            return None  # the next look will see
        self._seen = content
        return content


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise OSError(f"larger than {MAX_FILE_BYTES} bytes")
    return content
