"""A replica and a gateway that know each other by SPIFFE alone: both processes' real code, and the
simulator as the engine, with vLLM's flags of TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from watchfiles import awatch

from gateway.trust.identity import Allowed
from gateway.trust.mutual_tls import MutualTls, load_pem
from serving.asking import ask, fetch
from serving.replica.identity import Identity, write
from serving.replica.settings import Spiffe
from tests.builders import MODEL, a_post
from tests.house import run, running_house, until
from tests.workload_api import (
    DOMAIN,
    GATEWAY,
    REPLICA,
    Authority,
    WorkloadApi,
    serving_workload_api,
)


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def running_replica(
    folder: Path, api: WorkloadApi, **more: Any
) -> AsyncIterator[tuple[int, int, Path]]:
    """Its port, its health port, and what it writes."""
    port, health_port = _port(), _port()
    spiffe = {"socket": api.socket, "trust_domain": DOMAIN}
    settings = {"model": MODEL, "engine": "sim", "port": port, "health_port": health_port}
    file, output = folder / "replica.yaml", folder / "output"
    file.write_text(json.dumps({**settings, "spiffe": spiffe, **more}))
    command = (sys.executable, "-m", "serving.replica.command", "--settings", str(file))
    with output.open("w") as sink:
        process = await asyncio.create_subprocess_exec(*command, stdout=sink, stderr=sink)
    try:
        async with asyncio.timeout(40):
            while not await fetch("127.0.0.1", health_port, "/ready"):
                assert process.returncode is None, output.read_text()
                await asyncio.sleep(0.05)
        yield port, health_port, output
    finally:
        if process.returncode is None:
            process.terminate()
        assert await process.wait() == 0, output.read_text()


def client(credentials: Any) -> MutualTls:
    """TLS of whoever has these, and expects the replica."""
    tls = MutualTls(Allowed.of([REPLICA]), lambda: 0.0)
    tls.renew(credentials)
    return tls


def files_of_svids() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("headrace-svid-")}


def test_a_replica_serves_its_svid_renews_it_and_asks_for_one(tmp_path: Path) -> None:
    """The gateway's requests go through, others' do not; the same engine serves a new SVID."""

    async def law() -> None:
        authority, before = Authority(), files_of_svids()
        (tmp_path / "gateway").mkdir()
        with (
            serving_workload_api(tmp_path, authority, REPLICA) as theirs,
            serving_workload_api(tmp_path / "gateway", authority) as ours,
        ):
            async with running_replica(tmp_path, theirs) as (port, health_port, _):
                folders = files_of_svids() - before
                assert {os.stat(f"/dev/shm/{each}").st_mode & 0o777 for each in folders} == {0o700}
                status = json.loads(await fetch("127.0.0.1", health_port, "/status") or b"{}")
                settings = {
                    "trust": {"spiffe": {"socket": ours.socket, "replicas": [REPLICA]}},
                }
                async with running_house(settings, [f"https://127.0.0.1:{port}"]) as running:
                    await until(lambda: running.replicas[0].takes_work, within_s=10)
                    assert (await running.ask(a_post())).status == 200

                    friend = client(authority.credentials(GATEWAY))
                    stranger = client(Authority().credentials(GATEWAY, authority))
                    assert await shown(port, friend) == theirs.svid.serial
                    assert await ask("127.0.0.1", port, "/health", tls=stranger) is None
                    assert await ask("127.0.0.1", port, "/health") is None

                    theirs.tell(renewed := authority.issue(REPLICA), authority)
                    async with asyncio.timeout(10):
                        while await shown(port, friend) != renewed.serial:
                            await asyncio.sleep(0.05)
                    running.house.relay.renew()
                    assert (await running.ask(a_post())).status == 200
                later = json.loads(await fetch("127.0.0.1", health_port, "/status") or b"{}")
                assert later["pid"] == status["pid"]  # the same engine
                assert later["url"] == f"https://127.0.0.1:{port}"
        assert files_of_svids() == before

    run(law())


async def shown(port: int, tls: MutualTls) -> int:
    """The serial number of the certificate that is served there."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    certificate = writer.get_extra_info("peercert")
    writer.close()
    return int(certificate["serialNumber"], 16)


def test_a_replica_that_is_not_told_who_it_is_says_so_and_ends(tmp_path: Path) -> None:
    async def law() -> None:
        before = files_of_svids()
        api = WorkloadApi(tmp_path / "none.sock", Authority(), Authority().issue(REPLICA))
        spiffe = {"socket": api.socket, "trust_domain": DOMAIN, "wait_s": 0.3}
        with pytest.raises(AssertionError, match="does not say who we are"):
            async with running_replica(tmp_path, api, spiffe=spiffe):
                pass
        assert files_of_svids() == before

    run(law())


def test_a_folder_of_svids_is_gone_when_waiting_for_them_is_cancelled(tmp_path: Path) -> None:
    async def law() -> None:
        identity = Identity(Spiffe(f"unix:{tmp_path}/none.sock", DOMAIN), str(tmp_path))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), identity.kept():
                pass

    run(law())
    assert not list(tmp_path.iterdir())


def test_what_is_written_keeps_its_inode_and_says_nothing_old(tmp_path: Path) -> None:
    """A watch on a file is a watch on its inode."""
    path = tmp_path / "file"
    write(str(path), b"long and old")
    inode = path.stat().st_ino
    assert path.stat().st_mode & 0o777 == 0o600
    for content in (b"new", b"longer than it was before", b""):
        write(str(path), content)
        assert path.read_bytes() == content
        assert path.stat().st_ino == inode
    write(str(path), b"same")
    os.utime(path, (1.0, 1.0))
    write(str(path), b"same")
    assert path.stat().st_mtime == 1.0


def test_vllms_watcher_takes_up_what_we_write(tmp_path: Path) -> None:
    """It uses watchfiles on the names it was given, and reads key and chain when one changes."""

    async def law() -> None:
        authority = Authority()
        path = tmp_path / "svid.pem"
        write(str(path), authority.issue(REPLICA).pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_pem(context, path.read_bytes())
        loads = 0

        async def watch() -> None:
            nonlocal loads
            async for _ in awatch(str(path), str(path)):
                context.load_cert_chain(path, path)
                loads += 1

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0.3)
        for round_ in (1, 2):  # a second time: the watch must not have been on a file that has gone
            write(str(path), authority.issue(REPLICA).pem)
            await until(lambda wanted=round_: loads >= wanted, within_s=10)  # type: ignore[misc]
        watching.cancel()

    run(law())
