"""The room's front: what settings say of trust, put together and kept up to date."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from gateway.section import SettingsError
from gateway.trust.identity import Allowed
from gateway.trust.metrics import PolicyCollector, SpiffeCollector
from gateway.trust.mutual_tls import MutualTls
from gateway.trust.opa import Opa

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from prometheus_client.registry import Collector

    from gateway.clock import Clock
    from gateway.settings import SpiffeSettings, TrustSettings
    from gateway.trust.mutual_tls import Credentials


class Trust:
    """`tls` is for connections to https replicas; None: as the machine trusts. `permits` is the
    policy; None: there is none."""

    def __init__(
        self, settings: TrustSettings, replica_ca: str | None, clocks: tuple[Clock, Clock]
    ) -> None:
        """`clocks` are the monotonic one and that of the day. Asks nobody yet.

        Raises SettingsError for what is not installed, OSError for a `replica_ca` that cannot be
        read.
        """
        monotonic, wall = clocks
        self.permits = Opa(settings.opa, monotonic) if settings.opa.url else None
        self._spiffe = Spiffe(settings.spiffe, wall) if settings.spiffe.socket else None
        self.tls: ssl.SSLContext | None = None
        if self._spiffe is not None:
            self.tls = self._spiffe.tls
        elif replica_ca is not None:
            self.tls = ssl.create_default_context(cafile=replica_ca)

    async def start(self) -> None:
        """Be told who we are. Raises OSError where we are not told in time."""
        if self._spiffe is not None:
            await self._spiffe.start()

    def loops(self) -> Iterator[tuple[str, Callable[[], Awaitable[object]]]]:
        """What runs for ever."""
        if self._spiffe is not None:
            yield "spiffe", self._spiffe.run

    def collectors(self) -> Iterator[Collector]:
        """What Prometheus reads of what is on."""
        if self._spiffe is not None:
            yield self._spiffe.metrics
        if self.permits is not None:
            yield PolicyCollector(self.permits)

    def on_renewal(self, tell: Callable[[], None]) -> None:
        """Whom to tell that new connections are made differently."""
        if self._spiffe is not None:
            self._spiffe.on_renewal = tell


class Spiffe:
    """Our own SVID and the trust in replicas', as they change."""

    def __init__(self, settings: SpiffeSettings, wall: Clock) -> None:
        try:
            from gateway.trust.workload_api import WorkloadApi
        except ImportError as error:
            raise SettingsError("trust.spiffe needs `pip install headrace[spiffe]`") from error
        allowed = Allowed.of(settings.replicas)
        self.tls = MutualTls(allowed, wall)
        self.on_renewal: Callable[[], None] = lambda: None
        self._wait_s = settings.wait_s
        self._api = WorkloadApi(settings.socket or "", allowed.trust_domain, self._take)
        self.metrics = SpiffeCollector(self.tls, self._api)

    async def start(self) -> None:
        """Wait for our SVID. Raises OSError."""
        await self._api.first(self._wait_s)

    async def run(self) -> None:
        """Follow what changes, for ever."""
        await self._api.run()

    def _take(self, credentials: Credentials) -> None:
        if credentials == self.tls.credentials:
            return  # told again, as every new stream does
        self.tls.renew(credentials)
        self.on_renewal()
