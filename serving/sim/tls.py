"""TLS as vLLM serves it: files named on the command line, taken up anew when they change."""

import asyncio
import os
import ssl
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

REFRESH_S = 0.1


@dataclass(frozen=True, slots=True)
class Tls:
    """vLLM's flags of these names; with `refresh` as its --enable-ssl-refresh."""

    keyfile: str
    certfile: str
    ca_certs: str | None = None
    cert_reqs: int = ssl.CERT_NONE
    refresh: bool = False

    def context(self) -> ssl.SSLContext:
        """For the listener. Raises OSError for files that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.VerifyMode(self.cert_reqs)
        self._load(context)
        return context

    async def keep_fresh(self, context: ssl.SSLContext) -> None:
        """Look at the files, for ever."""
        seen = self._stamps()
        while self.refresh:
            await asyncio.sleep(REFRESH_S)
            if (now := self._stamps()) != seen:
                try:
                    self._load(context)
                except OSError as error:  # half written: look again
                    print(f"TLS files cannot be used: {error}", flush=True)
                else:
                    seen = now

    def _load(self, context: ssl.SSLContext) -> None:
        context.load_cert_chain(self.certfile, self.keyfile)
        if self.ca_certs is not None:
            context.load_verify_locations(self.ca_certs)

    def _stamps(self) -> tuple[int, ...]:
        paths = (self.keyfile, self.certfile, self.ca_certs)
        return tuple(os.stat(path).st_mtime_ns for path in paths if path is not None)


def add_tls_arguments(parser: ArgumentParser) -> None:
    """Declare the flags."""
    group = parser.add_argument_group("TLS, as vLLM's flags of these names")
    for flag in ("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs"):
        group.add_argument(flag, metavar="FILE")
    group.add_argument("--ssl-cert-reqs", type=int, default=int(ssl.CERT_NONE), metavar="0|1|2")
    group.add_argument("--enable-ssl-refresh", action="store_true", help="take up changed files")


def tls_of(args: Namespace) -> Tls | None:
    """What they say; None: plain HTTP."""
    if args.ssl_keyfile is None or args.ssl_certfile is None:
        return None
    return Tls(
        args.ssl_keyfile,
        args.ssl_certfile,
        args.ssl_ca_certs,
        args.ssl_cert_reqs,
        args.enable_ssl_refresh,
    )
