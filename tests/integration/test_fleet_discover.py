"""The discoveries: settings, names of this machine, and real files."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway.choose.policies import policy
from gateway.clock import monotonic
from gateway.fleet.discover import Discovery, DnsDiscovery, discoveries
from gateway.fleet.roster import Roster
from gateway.settings import ChooseSettings, DnsSettings, FleetSettings
from gateway.vocabulary import Health

CACHES = policy(ChooseSettings(policy="least-work"), Random(1))


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_true():
            await asyncio.sleep(0.005)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


@asynccontextmanager
async def discovering(*found: Discovery) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in found]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() or task.exception() is None for task in tasks)


def ids(roster: Roster) -> list[str]:
    return sorted(r.id for r in roster.replicas if r.health is not Health.DRAINING)


def listing(*ports: int) -> str:
    return "replicas:\n" + "".join(f"- http://127.0.0.1:{port}\n" for port in ports)


def watching(path: Path) -> FleetSettings:
    return FleetSettings(file=str(path), watch_every_s=0.02)


def test_every_source_in_the_settings_is_heard(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(listing(3))
    settings = FleetSettings.of(
        {
            "replicas": ["http://127.0.0.1:1"],
            "dns": [{"name": "localhost", "port": 2}],
            "file": str(file),
        }
    )

    async def law() -> None:
        roster = Roster(settings)
        async with discovering(*discoveries(settings, roster, CACHES, monotonic, Random(1))):
            await until(lambda: len(ids(roster)) == 3)
        assert ids(roster) == ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]

    run(law())


def rewritten_in_place(path: Path, text: str) -> None:
    path.write_text(text)


def replaced_by_renaming(path: Path, text: str) -> None:
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


def replaced_by_a_symbolic_link(path: Path, text: str) -> None:
    """As a mounted ConfigMap changes."""
    target = path.with_name(f"data-{abs(hash(text))}")
    target.write_text(text)
    link = path.with_suffix(".link")
    link.symlink_to(target)
    link.replace(path)


def rewritten_with_the_old_date(path: Path, text: str) -> None:
    was = path.stat()
    path.write_text(text)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        rewritten_in_place,
        replaced_by_renaming,
        replaced_by_a_symbolic_link,
        rewritten_with_the_old_date,
    ],
)
def test_a_file_is_followed_however_it_is_changed(
    tmp_path: Path, change: Callable[[Path, str], None]
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(listing(1, 2))

    async def law() -> None:
        roster = Roster(FleetSettings())
        async with discovering(*discoveries(watching(file), roster, CACHES, monotonic, Random(1))):
            await until(lambda: ids(roster) == ["127.0.0.1:1", "127.0.0.1:2"])
            kept = roster.replicas[1]
            change(file, listing(2, 3))
            await until(lambda: ids(roster) == ["127.0.0.1:2", "127.0.0.1:3"])
            assert kept in roster.replicas

    run(law())


def test_a_bad_file_keeps_the_last_good_list_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "fleet.yaml"

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("gate")]

    async def law() -> None:
        roster = Roster(FleetSettings())
        async with discovering(*discoveries(watching(file), roster, CACHES, monotonic, Random(1))):
            await until(lambda: len(said()) == 1)
            assert "No such file" in said()[0]
            file.write_text(listing(1))
            await until(lambda: ids(roster) == ["127.0.0.1:1"])
            for bad in ("replicas: [nonsense]", "", "replicas: ["):
                caplog.clear()
                file.write_text(bad)
                await until(lambda: len(said()) == 1)
            file.unlink()
            await until(lambda: len(said()) == 2)
            await asyncio.sleep(0.2)
            assert len(said()) == 2
            assert ids(roster) == ["127.0.0.1:1"]
            file.write_text(listing(1, 2))
            await until(lambda: ids(roster) == ["127.0.0.1:1", "127.0.0.1:2"])
            assert said()[-1].endswith("readable again")
            for _ in range(2):
                file.unlink()
                await until(lambda: "No such file" in said()[-1])
                file.write_text(listing(1, 2))
                await until(lambda: said()[-1].endswith("readable again"))

    with caplog.at_level(logging.INFO):
        run(law())


def test_a_file_being_written_is_not_believed_before_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(listing(1, 2, 3))

    async def law() -> None:
        roster = Roster(FleetSettings())
        async with discovering(*discoveries(watching(file), roster, CACHES, monotonic, Random(1))):
            await until(lambda: len(ids(roster)) == 3)
            whole = listing(1, 2, 3, 4)
            with file.open("w") as writing:
                for line in whole.splitlines(keepends=True):
                    writing.write(line)
                    writing.flush()
                    await asyncio.sleep(0.03)
                    assert len(ids(roster)) == 3
            await until(lambda: len(ids(roster)) == 4)

    run(law())


def test_a_list_made_empty_on_purpose_is_an_empty_fleet(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(listing(1))

    async def law() -> None:
        roster = Roster(FleetSettings())
        async with discovering(*discoveries(watching(file), roster, CACHES, monotonic, Random(1))):
            await until(lambda: len(ids(roster)) == 1)
            file.write_text("replicas: []")
            await until(lambda: roster.replicas == ())

    run(law())


def test_a_name_whose_look_up_fails_keeps_its_last_answer_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def v4(host: str) -> tuple[Any, ...]:
        return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 80))

    def v6(host: str) -> tuple[Any, ...]:
        return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (host, 80, 0, 0))

    answer: list[tuple[Any, ...]] | OSError = [v4("10.0.0.2"), v6("fd00::2"), v4("10.0.0.1")]
    looks = 0

    def resolver(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        nonlocal looks
        looks += 1
        if isinstance(answer, OSError):
            raise answer
        return answer

    async def another_look() -> None:
        seen = looks
        await until(lambda: looks >= seen + 3)

    async def law() -> None:
        nonlocal answer
        roster = Roster(FleetSettings())
        dns = DnsSettings(name="engines.test", port=80, tls=True, models=("m",))
        async with discovering(DnsDiscovery(dns, 0.01, roster)):
            await until(lambda: ids(roster) == ["https://10.0.0.1:80", "https://10.0.0.2:80"])
            kept = roster.replicas
            silences: list[list[tuple[Any, ...]] | OSError] = [socket.gaierror(-3, "again"), []]
            for silence in silences:
                caplog.clear()
                answer = silence
                await another_look()
                assert roster.replicas == kept
                assert len(caplog.messages) == 1
            answer = [v6("fd00::2")]
            await until(lambda: ids(roster) == ["https://[fd00::2]:80"])

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with caplog.at_level(logging.WARNING, "gateway.fleet"):
        run(law())


def test_a_name_that_is_no_name_is_a_complaint_and_not_a_crash(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def law() -> None:
        roster = Roster(FleetSettings())
        dns = DnsSettings(name="a" * 70 + ".test", port=80)
        async with discovering(DnsDiscovery(dns, 0.01, roster)):
            await until(lambda: bool(caplog.messages))
            await asyncio.sleep(0.1)

    run(law())
    assert len(caplog.messages) == 1
    assert not caplog.records[0].exc_info
