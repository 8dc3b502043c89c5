"""TLS towards clients: certificates, those of clients, and new ones while streams run."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from gateway.vocabulary import Outcome
from tests.builders import a_chat, a_get, a_post
from tests.house import run, running_house
from tests.scripted import Held, Scripted

LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


class Papers:
    """An authority, and files with what it has signed for the gateway."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.certificate = folder / "certificate.pem"
        self.key = folder / "key.pem"
        self.client_ca = folder / "clients.pem"
        self.authority.cert_pem.write_to_path(self.client_ca)
        self.issue()

    def issue(self) -> None:
        """Sign anew, into the same files."""
        issued = self.authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(self.key)
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def settings(self, *, clients: bool = False) -> dict[str, dict[str, object]]:
        """Settings for the harness."""
        tls: dict[str, object] = {
            "certificate": str(self.certificate),
            "key": str(self.key),
            "reload_every_s": 0.05,
        }
        if clients:
            tls["client_ca"] = str(self.client_ca)
        return {"accept": {"tls": tls}}

    def trusting(self, *, presents: bool = False) -> ssl.SSLContext:
        """What a client uses who trusts the authority."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if presents:
            self.authority.issue_cert("client@example.com").configure_cert(context)
        return context


def serial(wire: object) -> str:
    """The serial number of the certificate a connection was shown."""
    shown = wire.writer.get_extra_info("peercert")  # type: ignore[attr-defined]
    return str(shown["serialNumber"])


@LOOPS
def test_requests_refusals_and_streams_go_over_tls_as_over_tcp(loop: str, tmp_path: Path) -> None:
    async def law() -> None:
        papers = Papers(tmp_path)
        async with running_house(papers.settings()) as running:
            async with running.wire(tls=papers.trusting()) as wire:
                await wire.send(a_post() + a_get() + a_post(a_chat(stream=True)))
                assert (await wire.reply()).status == 200
                assert (await wire.reply()).json() == {"status": "ok"}
                assert (await wire.reply()).body.endswith(b"data: [DONE]\n\n")
                await wire.send(b"\0\r\n\r\n")
                assert (await wire.reply()).code == "malformed_http"
                assert await wire.rest() == b""
            await running.until_quiet()
            assert running.outcomes == {Outcome.FINISHED: 2}

    run(law(), loop=loop)


@LOOPS
def test_plain_http_to_a_tls_port_gets_nothing_and_harms_nobody(loop: str, tmp_path: Path) -> None:
    async def law() -> None:
        papers = Papers(tmp_path)
        async with running_house(papers.settings()) as running:
            async with running.wire() as wire:
                await wire.send(a_get())
                assert b"200 OK" not in await wire.rest()
            async with running.wire(tls=papers.trusting()) as wire:
                await wire.send(a_get())
                assert (await wire.reply()).status == 200

    run(law(), loop=loop)


@LOOPS
def test_a_client_must_show_a_certificate_where_one_is_asked_for(loop: str, tmp_path: Path) -> None:
    async def law() -> None:
        papers = Papers(tmp_path)
        stranger = trustme.CA()
        wrong = papers.trusting()
        stranger.issue_cert("client@example.com").configure_cert(wrong)
        async with running_house(papers.settings(clients=True)) as running:
            async with running.wire(tls=papers.trusting(presents=True)) as wire:
                await wire.send(a_post())
                assert (await wire.reply()).status == 200
            for context in (papers.trusting(), wrong):
                with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                    await refused(running, context)
            await running.until_quiet()
            assert running.outcomes == {Outcome.FINISHED: 1}

    async def refused(running, context: ssl.SSLContext) -> None:  # type: ignore[no-untyped-def]
        wire = await running.connect(tls=context)
        try:
            await wire.send(a_post())
            await wire.reply()
        finally:
            await wire.close()

    run(law(), loop=loop)


@LOOPS
def test_new_certificates_serve_new_handshakes_and_streams_go_on(loop: str, tmp_path: Path) -> None:
    async def law() -> None:
        papers = Papers(tmp_path)
        replica = Scripted(held := Held())
        trusting = papers.trusting()
        async with running_house(papers.settings(), [replica]) as running:
            async with running.wire(tls=trusting) as wire:
                first = serial(wire)
                await wire.send(a_post(a_chat("held", stream=True)))
                await wire.head()
                stream = wire.chunks()
                assert await anext(stream) == Held.HALF
                papers.issue()
                async with asyncio.timeout(5):
                    while True:
                        async with running.wire(tls=trusting) as other:
                            await other.send(a_get())
                            assert (await other.reply()).status == 200
                            if serial(other) != first:
                                break
                        await asyncio.sleep(0.02)
                held.released.set()
                assert b"".join([piece async for piece in stream]) == Held.REST
            await running.until_quiet()

    run(law(), loop=loop)


def test_files_that_cannot_be_used_change_nothing_until_they_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def law() -> None:
        papers = Papers(tmp_path)
        trusting = papers.trusting()
        async with running_house(papers.settings()) as running:

            async def shown() -> str:
                async with running.wire(tls=trusting) as wire:
                    await wire.send(a_get())
                    assert (await wire.reply()).status == 200
                    return serial(wire)

            async def until_said(what: str) -> None:
                async with asyncio.timeout(5):
                    while what not in caplog.text:
                        await asyncio.sleep(0.01)

            first = await shown()
            good = papers.key.read_bytes()
            for spoilt in (
                b"not a key",
                trustme.CA().issue_cert("x").private_key_pem.bytes(),
                None,
            ):
                caplog.clear()
                if spoilt is None:
                    papers.key.unlink()
                else:
                    papers.key.write_bytes(spoilt)
                await until_said("cannot be used")
                assert await shown() == first
            papers.key.write_bytes(good)
            papers.issue()
            await until_said("are in use")
            assert await shown() != first

    with caplog.at_level("INFO", "gateway.accept.tls"):
        run(law())


def test_a_gateway_whose_certificate_cannot_be_read_says_so_and_does_not_start(
    tmp_path: Path,
) -> None:
    papers = Papers(tmp_path)
    papers.key.unlink()
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"accept": {**papers.settings()["accept"], "port": 0}}))
    command = [sys.executable, "-m", "gateway", "gateway", "--settings", str(settings)]
    done = subprocess.run(
        [*command, "--replica", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("headrace: ")
    assert "Traceback" not in done.stderr
