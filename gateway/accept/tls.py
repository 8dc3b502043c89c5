"""New certificates without a restart.

The files are looked at every few seconds; when they have changed, the same SSL context takes them
up, so that new handshakes use them and streams under way are not touched. Files that cannot be used
are reported and the old ones stay. A certificate authority that is taken out of `client_ca` is
trusted until the next start: an SSL context can only learn.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl

from gateway.settings import TlsSettings

_log = logging.getLogger(__name__)


def _stamp(settings: TlsSettings) -> tuple[tuple[int, int] | None, ...]:
    """What the files look like from outside; None for one that is missing."""
    stamps: list[tuple[int, int] | None] = []
    for path in (settings.certificate, settings.key, settings.client_ca):
        try:
            found = os.stat(path) if path is not None else None
        except OSError:
            found = None
        stamps.append(None if found is None else (found.st_mtime_ns, found.st_ino))
    return tuple(stamps)


async def watch_certificates(context: ssl.SSLContext, settings: TlsSettings) -> None:
    """Keep `context` up to date with the files, for ever."""
    seen = _stamp(settings)
    while True:
        await asyncio.sleep(settings.reload_every_s)
        now = _stamp(settings)
        if now == seen or settings.certificate is None:
            continue
        try:
            context.load_cert_chain(settings.certificate, settings.key)
            if settings.client_ca is not None:
                context.load_verify_locations(settings.client_ca)
        except (OSError, ssl.SSLError) as error:
            _log.error("the new TLS files cannot be used, the old ones stay: %s", error)
        else:
            seen = now
            _log.info("new TLS files are in use")
