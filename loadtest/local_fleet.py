"""A fleet of our own where no URL is given: `headrace up --engine sim` on loopback."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from time import monotonic
from typing import Final

import gevent

from loadtest.run import EndpointError
from loadtest.scenario import Fleet
from loadtest.stream import Client, Endpoint

_START_S: Final = 120.0
_STOP_S: Final = 60.0


@contextmanager
def local_fleet(fleet: Fleet) -> Iterator[str]:
    """The URL of a gateway before simulated replicas; all of it ends with the block.

    Raises EndpointError when it does not come up.
    """
    port = _free_port()
    command = [
        *(sys.executable, "-m", "gateway", "up", "--engine", "sim", "--port", str(port)),
        *("--replicas", str(fleet.replicas), "--engine-arg=--profile"),
        f"--engine-arg={fleet.profile}",
        *(("--policy", fleet.policy) if fleet.policy else ()),
    ]
    url = f"http://127.0.0.1:{port}"
    with TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            if not _comes_up(process, url, fleet.replicas):
                log.seek(0)
                said = log.read()[-2000:].decode(errors="replace")
                raise EndpointError(f"the simulated fleet did not come up: {said}")
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _comes_up(process: subprocess.Popen[bytes], url: str, replicas: int) -> bool:
    """Waits until the gateway has seen all replicas healthy. False when it will not."""
    give_up = monotonic() + _START_S
    client = Client(Endpoint.of(url), timeout_s=5.0)
    while monotonic() < give_up and process.poll() is None:
        if client.get("/debug/fleet").body.count(b'"health":"healthy"') == replicas:
            client.close()
            return True
        gevent.sleep(0.2)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
