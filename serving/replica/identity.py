"""A replica's SVID: handed to its engine in files of memory, and shown when we ask the engine.

Asked: "keep who we are up to date", inside a `with`. The engine (vLLM with
--enable-ssl-refresh) watches two files: the private key with its chain in one, so that they always
match; the authorities in the other. They are written in place, because a watch is on the file and
not on its name. The folder is this user's alone, in /dev/shm: a key of ours is never on a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.trust.identity import Allowed
from gateway.trust.mutual_tls import MutualTls
from serving.engine_args import TlsFiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.trust.mutual_tls import Credentials
    from serving.replica.settings import Spiffe

MEMORY: Final = "/dev/shm"


class Identity:
    """Owner of the files."""

    def __init__(self, settings: Spiffe, memory: str = MEMORY) -> None:
        """Raises ImportError where the library is not installed, OSError without `memory`."""
        # Between fork and exec gRPC would set itself up anew in the child, which may kill it; no
        # child of ours uses what it inherits of it.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
        from gateway.trust.workload_api import WorkloadApi

        # Whoever is asked at our own engine's port is somebody of ours.
        self.tls = MutualTls(Allowed.of([f"spiffe://{settings.trust_domain}/*"]), time.time)
        self._api = WorkloadApi(settings.socket, settings.trust_domain, self._take)
        self._wait_s = settings.wait_s
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-svid-", dir=memory))
        self.files = TlsFiles(str(self._folder / "svid.pem"), str(self._folder / "authorities.pem"))

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """The files are there inside the `with`, up to date, and nothing of them is left after it.

        Raises OSError where we are not told who we are.
        """
        try:
            await self._api.first(self._wait_s)
            following = asyncio.create_task(self._api.run())
            try:
                yield
            finally:
                following.cancel()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _take(self, credentials: Credentials) -> None:
        self.tls.renew(credentials)  # which refuses what cannot be used
        write(self.files.authorities, credentials.authorities.encode())
        write(self.files.certificate, credentials.pem)


def write(path: str, content: bytes) -> None:
    """Into the file that is there, if there is one, readable for us alone; not at all if it says
    the same."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.pread(file, len(content) + 1, 0) != content:
            os.pwrite(file, content, 0)
            os.ftruncate(file, len(content))
    finally:
        os.close(file)
