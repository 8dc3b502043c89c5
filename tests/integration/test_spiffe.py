"""Mutual TLS with replicas by X.509-SVIDs: a Workload API, a gateway and replicas, all for real."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.section import SettingsError
from gateway.settings import SpiffeSettings
from gateway.trust.identity import Allowed
from gateway.trust.mutual_tls import MutualTls
from gateway.trust.service import Spiffe
from gateway.trust.workload_api import WorkloadApi as Follower
from gateway.vocabulary import Outcome
from tests.builders import MODEL, a_chat, a_get, a_post
from tests.house import RunningHouse, run, running_house, until
from tests.scripted import Held, Received, Scripted, a_reply
from tests.workload_api import (
    DOMAIN,
    GATEWAY,
    REPLICA,
    Authority,
    Issued,
    WorkloadApi,
    serving_workload_api,
)

LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def api(tmp_path: Path, authority: Authority) -> Iterator[WorkloadApi]:
    with serving_workload_api(tmp_path, authority) as api:
        yield api


def trusting(api: WorkloadApi, *replicas: str) -> dict[str, Any]:
    """Settings of a gateway that goes by what the API tells."""
    return {
        "trust": {"spiffe": {"socket": api.socket, "replicas": list(replicas or (REPLICA,))}},
        "relay": {"max_attempts": 1},
    }


class Seen:
    """A script: notes the serial number of the SVID that each request came with."""

    def __init__(self, held: Held | None = None) -> None:
        self.serials: list[int] = []
        self.names: list[str] = []
        self._held = held

    async def __call__(
        self, received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        shown = writer.get_extra_info("peercert")
        self.serials.append(int(shown["serialNumber"], 16))
        self.names += [name for kind, name in shown["subjectAltName"] if kind == "URI"]
        if self._held is not None:
            await self._held(received, reader, writer)
        else:
            writer.write(a_reply())
            await writer.drain()


async def metric(running: RunningHouse, name: str) -> float:
    async with running.wire() as wire:
        await wire.send(a_get("/metrics"))
        page = (await wire.reply()).body.decode()
    found = [line for line in page.splitlines() if line.startswith(f"{name} ")]
    assert len(found) == 1, (name, found)
    return float(found[0].split(" ")[1])


@LOOPS
def test_both_sides_show_who_they_are(loop: str, api: WorkloadApi, authority: Authority) -> None:
    async def law() -> None:
        seen = Seen()
        replica = Scripted(seen, tls=authority.server(REPLICA))
        async with running_house(trusting(api), [replica]) as running:
            assert (await running.ask(a_post())).status == 200
            assert seen.names == [GATEWAY]
            assert seen.serials == [api.svid.serial]
            assert await metric(running, "gateway_workload_api_up") == 1
            expires = api.svid.certificate.not_valid_after_utc.timestamp()
            assert await metric(running, "gateway_svid_expiry_timestamp_seconds") == expires
            await running.until_quiet()

    run(law(), loop=loop)


@LOOPS
def test_a_stream_goes_on_while_svids_and_authorities_are_replaced(
    loop: str, api: WorkloadApi, authority: Authority
) -> None:
    """The stream's connection stays as it was made; the next request goes by what is new."""

    async def law() -> None:
        held = Held()
        old = Scripted(seen := Seen(held), tls=authority.server(REPLICA))
        async with running_house(trusting(api), [old]) as running, running.wire() as wire:
            first = api.svid.serial
            await wire.send(a_post(a_chat("held", stream=True)))
            await wire.head()
            stream = wire.chunks()
            assert await anext(stream) == Held.HALF
            assert (await running.ask(a_post())).status == 200  # leaves an idle connection

            second = authority.issue(GATEWAY)
            api.tell(second, authority)
            await taken(running, second)
            assert (await running.ask(a_post())).status == 200
            held.released.set()
            assert b"".join([piece async for piece in stream]) == Held.REST
            await running.until_quiet()
            assert (await running.ask(a_post())).status == 200
            assert seen.serials == [first, first, second.serial, second.serial]

    run(law(), loop=loop)


async def taken(running: RunningHouse, svid: Issued) -> None:
    """Wait until the gateway has it."""
    tls = running.house.trust.tls
    assert isinstance(tls, MutualTls)
    await until(lambda: tls.credentials is not None and tls.credentials.serial == svid.serial)


def test_an_authority_that_is_taken_away_is_trusted_no_more(
    api: WorkloadApi, authority: Authority
) -> None:
    async def law() -> None:
        replica = Scripted(tls=authority.server(REPLICA))
        async with running_house(trusting(api), [replica]) as running:
            assert (await running.ask(a_post())).status == 200
            other = Authority()
            api.tell(svid := other.issue(GATEWAY), other)
            await taken(running, svid)
            assert (await running.ask(a_post())).status == 502
            api.tell(svid := authority.issue(GATEWAY), authority, other)
            await taken(running, svid)
            await until(lambda: any(one.takes_work for one in running.replicas))
            assert (await running.ask(a_post())).status == 200

    run(law())


@LOOPS
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("another workload", "not_allowed"),
        ("another trust domain", "not_allowed"),
        ("another trust domain, federated", "untrusted"),
        ("another authority", "untrusted"),
        ("expired", "untrusted"),
        ("two names", "not_allowed"),
        ("no SPIFFE ID", "not_allowed"),
    ],
)
def test_a_replica_that_is_not_who_it_should_be_is_sent_nothing(
    loop: str, case: str, reason: str, api: WorkloadApi, authority: Authority
) -> None:
    foreign = Authority("foreign.example")
    tls = {
        "another workload": lambda: authority.server(f"spiffe://{DOMAIN}/ns/models/other"),
        "another trust domain": lambda: authority.server("spiffe://foreign.example/ns/models/a"),
        "another trust domain, federated": lambda: foreign.server(REPLICA),
        "another authority": lambda: Authority().server(REPLICA),
        "expired": lambda: authority.server(REPLICA, lasts_s=-1.0),
        "two names": lambda: authority.server(REPLICA, f"{REPLICA}/two"),
        "no SPIFFE ID": lambda: authority.server("https://example.org/models"),
    }[case]()
    tls.verify_mode = ssl.CERT_NONE  # it would take anybody
    api.federated = (foreign,)

    async def law() -> None:
        replica = Scripted(tls=tls)
        async with replica.running():
            known = {"url": replica.url, "models": [MODEL]}
            settings = {**trusting(api), "fleet": {"replicas": [known]}}
            async with running_house(settings, []) as running:
                refused = f'gateway_svid_refused_handshakes_total{{reason="{reason}"}}'
                assert (await running.ask(a_post())).status in (502, 503)
                assert await metric(running, refused) >= 1
                await running.until_quiet()
                assert Outcome.FINISHED not in running.outcomes
            assert not replica.received

    run(law(), loop=loop)


def test_without_the_workload_api_a_gateway_says_so_and_does_not_start(tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    spiffe = {"socket": f"unix:{tmp_path}/none.sock", "replicas": [REPLICA], "wait_s": 0.5}
    settings.write_text(json.dumps({"accept": {"port": 0}, "trust": {"spiffe": spiffe}}))
    command = [sys.executable, "-m", "gateway", "gateway", "--settings", str(settings)]
    done = subprocess.run(
        [*command, "--replica", "https://127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert f"the SPIFFE Workload API at unix:{tmp_path}/none.sock does not say" in done.stderr
    assert "Traceback" not in done.stderr


def test_where_it_is_off_nothing_of_it_is_loaded_and_where_it_is_not_installed_it_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("spiffe", "grpc", "cryptography")
    look = f"import sys, gateway.app; sys.exit(any(each in sys.modules for each in {names}))"
    subprocess.run([sys.executable, "-c", look], check=True, timeout=60)
    monkeypatch.delitem(sys.modules, "gateway.trust.workload_api", raising=False)
    monkeypatch.setitem(sys.modules, "spiffe", None)
    settings = SpiffeSettings(socket="unix:/none", replicas=(REPLICA,))
    with pytest.raises(SettingsError, match=r"headrace\[spiffe\]"):
        Spiffe(settings, time.time)


def test_a_gateway_waits_for_the_workload_api(tmp_path: Path, authority: Authority) -> None:
    api = WorkloadApi(tmp_path / "api.sock", authority, authority.issue(GATEWAY))

    async def law() -> None:
        replica = Scripted(tls=authority.server(REPLICA))
        asyncio.get_running_loop().call_later(0.5, api.start)
        async with running_house(trusting(api), [replica]) as running:
            assert (await running.ask(a_post())).status == 200

    try:
        run(law())
    finally:
        api.stop()


def test_a_gateway_that_is_told_to_stop_while_it_waits_stops(tmp_path: Path) -> None:
    async def law() -> None:
        tls = MutualTls(Allowed.of([REPLICA]), time.time)
        waiting = Follower(f"unix:{tmp_path}/none.sock", DOMAIN, tls.renew).first(30.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await waiting
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(law())


def test_while_the_workload_api_is_away_what_we_have_goes_on(
    api: WorkloadApi, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async def law() -> None:
        replica = Scripted(tls=authority.server(REPLICA))
        async with running_house(trusting(api), [replica]) as running:
            await until(lambda: api.streams >= 2)  # the first was the start's
            await asyncio.get_running_loop().run_in_executor(None, api.stop)
            api.path.unlink(missing_ok=True)
            await until(lambda: "is away" in caplog.text)
            running.house.relay.renew()  # a new connection is needed
            assert (await running.ask(a_post())).status == 200
            assert await metric(running, "gateway_workload_api_up") == 0
            assert caplog.text.count("is away") == 1
            api.tell(svid := authority.issue(GATEWAY), authority)
            api.start()
            await taken(running, svid)
            assert await metric(running, "gateway_workload_api_up") == 1

    with caplog.at_level("INFO", "gateway.trust.workload_api"):
        run(law())


@LOOPS
def test_an_svid_of_ours_that_has_expired_is_not_shown(
    loop: str, api: WorkloadApi, authority: Authority
) -> None:
    async def law() -> None:
        replica = Scripted(tls=authority.server(REPLICA))
        async with running_house(trusting(api), [replica]) as running:
            assert (await running.ask(a_post())).status == 200
            api.tell(svid := authority.issue(GATEWAY, lasts_s=-1.0), authority)
            await taken(running, svid)
            answer = await running.ask(a_post())
            assert answer.status in (502, 503)
            assert "SVID" not in answer.body.decode()  # how we stand is not the client's business
            refused = 'gateway_svid_refused_handshakes_total{reason="no_svid"}'
            assert await metric(running, refused) >= 1
            assert len(replica.received) == 1

    run(law(), loop=loop)


def test_what_the_workload_api_says_and_cannot_be_used_changes_nothing(
    api: WorkloadApi, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async def law() -> None:
        replica = Scripted(tls=authority.server(REPLICA))
        async with running_house(trusting(api), [replica]) as running:
            foreign = Authority("foreign.example")
            api.tell(foreign.issue("spiffe://foreign.example/gateway"), foreign)
            await until(lambda: "cannot be used" in caplog.text)
            assert (await running.ask(a_post())).status == 200

    with caplog.at_level("INFO", "gateway.trust.workload_api"):
        run(law())


def test_a_gateway_of_another_trust_domain_knows_replicas_by_its_federated_bundle(
    api: WorkloadApi, authority: Authority
) -> None:
    ours = Authority("ours.example")
    api.federated = (authority,)
    api.tell(ours.issue("spiffe://ours.example/gateway"), ours)

    async def law() -> None:
        tls = authority.server(REPLICA)
        tls.load_verify_locations(cadata=ours.pem)
        seen = Seen()
        async with running_house(trusting(api), [Scripted(seen, tls=tls)]) as running:
            assert (await running.ask(a_post())).status == 200
            assert seen.names == ["spiffe://ours.example/gateway"]

    run(law())


@LOOPS
def test_cancelled_while_it_waits_for_a_handshake_a_request_leaves_nothing(
    loop: str, api: WorkloadApi, authority: Authority
) -> None:
    """A replica that has been there takes the connection and says nothing; the client leaves."""

    async def law() -> None:
        replica = Scripted(tls=authority.server(REPLICA))
        async with AsyncExitStack() as stack, replica.running():
            fleet = {"replicas": [replica.url], "probe_every_s": 60.0}
            settings = {**trusting(api), "fleet": fleet}
            running = await stack.enter_async_context(running_house(settings, []))
            await until(lambda: running.replicas[0].takes_work)
            left = stack.pop_all()
        async with left:
            silent = await asyncio.get_running_loop().create_server(
                asyncio.Protocol, "127.0.0.1", replica.port
            )
            wire = await running.connect()
            await wire.send(a_post())
            await until(lambda: running.ledgers[0][0] == 1)
            wire.abort()
            await running.until_quiet()
            assert running.outcomes == {Outcome.CLIENT_GONE: 1}
            silent.close()

    run(law(), loop=loop)
