"""The SPIFFE Workload API: who we are, told anew whenever it changes.

Asked: "keep them up to date" (`run`), after "who are we?" (`first`, which waits). The API is a gRPC
stream on a socket of this machine; the library follows it on a thread of its own, and what comes is
taken on the event loop. While the API is away what we have stays in use, until it expires.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import TrustDomain, WorkloadApiClient
from spiffe.errors import PySpiffeError

from gateway.trust.mutual_tls import Credentials

if TYPE_CHECKING:
    from spiffe.workloadapi.x509_context import X509Context

    from gateway.vocabulary import Seconds

_log = logging.getLogger(__name__)

AGAIN_S: Final = 1.0
"""Between two tries."""


class CannotTell(OSError):
    """The Workload API did not say who we are."""


class WorkloadApi:
    """Follows the API at one socket, for credentials towards one trust domain."""

    def __init__(self, socket: str, trust_domain: str, take: Callable[[Credentials], None]) -> None:
        """`take` is handed what comes; it may raise OSError for what it cannot use."""
        self.is_up = False
        self.updates = 0
        self._socket = socket
        self._domain = TrustDomain(trust_domain)
        self._take = take
        self._expires_at: Seconds = 0.0
        self._is_told = asyncio.Event()
        self._trouble: Exception | None = None

    def __repr__(self) -> str:
        return f"<WorkloadApi {self._socket} {'up' if self.is_up else 'away'}>"

    async def first(self, wait_s: Seconds) -> None:
        """Wait for the first credentials. Raises CannotTell after `wait_s`."""
        following = asyncio.create_task(self.run())
        try:
            async with asyncio.timeout(wait_s):
                await self._is_told.wait()
        except TimeoutError:
            raise CannotTell(
                f"the SPIFFE Workload API at {self._socket} does not say who we are: "
                f"{self._trouble or 'no answer'}"
            ) from None
        finally:
            following.cancel()
            await asyncio.wait([following])

    async def run(self) -> None:
        """Take what comes, for ever."""
        while True:
            self._trouble = await self._follow()
            if self.is_up:
                self.is_up = False
                until = datetime.fromtimestamp(self._expires_at, UTC).isoformat(timespec="seconds")
                _log.warning(
                    "the SPIFFE Workload API is away (%s); the SVID we have is good until %s",
                    self._trouble,
                    until,
                )
            await asyncio.sleep(AGAIN_S)

    async def _follow(self) -> Exception:
        """One stream, to its end; why it ended."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Exception] = loop.create_future()
        try:
            client = WorkloadApiClient(self._socket)
        except PySpiffeError as error:  # there is no such socket
            return error
        stream = client.stream_x509_contexts(
            lambda context: _told(loop, self._heard, context),
            lambda error: _told(loop, _end, ended, error),
            retry_connect=False,
        )
        try:
            return await ended
        finally:
            stream.cancel()
            client.close()

    def _heard(self, context: X509Context) -> None:
        was_up = self.is_up
        try:
            self._took(context)
        except OSError as error:
            self._trouble = error
            _log.error("what the SPIFFE Workload API says cannot be used: %s", error)
        if not was_up:
            _log.info("the SPIFFE Workload API is there")

    def _took(self, context: X509Context) -> None:
        """Raises OSError."""
        self.is_up = True
        credentials = credentials_of(context, self._domain)
        self._take(credentials)
        self._expires_at = credentials.expires_at
        self.updates += 1
        self._is_told.set()


def credentials_of(context: X509Context, domain: TrustDomain) -> Credentials:
    """The default SVID, with the authorities of `domain`. Raises CannotTell without these."""
    svid = context.default_svid
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(domain)
    if bundle is None or not bundle.x509_authorities:
        raise CannotTell(f"no authorities of {domain.name} are known")
    chain = b"".join(each.public_bytes(Encoding.PEM) for each in svid.cert_chain)
    key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Credentials(
        str(svid.spiffe_id),
        svid.leaf.serial_number,
        svid.leaf.not_valid_after_utc.timestamp(),
        key + chain,
        "".join(each.public_bytes(Encoding.PEM).decode() for each in bundle.x509_authorities),
    )


def _told(loop: asyncio.AbstractEventLoop, what: Callable[..., None], *args: object) -> None:
    """On the library's thread."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(what, *args)


def _end(ended: asyncio.Future[Exception], error: Exception) -> None:
    if not ended.done():
        ended.set_result(error)
