"""A cluster in turmoil before a whole gateway: a thousand changes of pods, and everything that an
API server can do to who watches it.

The pods are addresses of the loopback network behind one server that answers at all of them for
ever, alive or deleted: a replica that the gateway wrongly keeps looks well to its probes, and only
discovery can take it away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway.fleet import watching
from gateway.vocabulary import Health
from tests.builders import a_post
from tests.house import RunningHouse, run, running_house, until
from tests.kube.cluster import Object, Trouble
from tests.kube.makings import a_pod, pod_key
from tests.kube.server import ApiServer, running_api_server
from tests.scripted import Received, Scripted, a_reply

EVENTS = 1000
GRACE_S = 1.0
"""From the answer to a list until the gateway must have read it, on a machine that is busy."""
ADDRESSES = [f"127.0.{n // 250 + 1}.{n % 250 + 1}" for n in range(600)]


@dataclass
class Turmoil:
    """The cluster as it should be known, and what the pods have been sent."""

    api: ApiServer
    rng: Random
    alive: dict[str, Object] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)  # address -> version of its deletion
    sent: int = 0
    wronged: list[str] = field(default_factory=list)
    listed_at: list[tuple[int, float]] = field(default_factory=list)  # (version, instant)

    # What pods are sent

    async def answer(
        self, _: Received, __: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """As any pod; and was it still to be sent anything?"""
        address = writer.get_extra_info("sockname")[0]
        self.sent += 1
        if self.must_be_known_as_gone(address):
            self.wronged.append(address)
        writer.write(a_reply())
        await writer.drain()

    def must_be_known_as_gone(self, address: str) -> bool:
        """Was it deleted before a list that the gateway has had for a while?"""
        version = self.deleted.get(address)
        by = asyncio.get_running_loop().time() - GRACE_S
        return version is not None and any(
            version <= listed and at <= by for listed, at in reversed(self.listed_at[-200:])
        )

    def note_lists(self) -> None:
        """Remember when lists were answered."""
        now = asyncio.get_running_loop().time()
        self.listed_at += [(version, now) for what, version in self.api.listed if what == "pods"]
        self.api.listed.clear()

    # What happens to pods

    def _put(self, pod: Object) -> None:
        key = pod_key(pod["metadata"]["name"])
        if key in self.api.cluster.objects:
            self.api.cluster.replace(key, pod)
        else:
            self.api.cluster.create(key, pod)
        self.alive[pod["metadata"]["name"]] = pod

    def born(self, name: str, *, ready: bool) -> None:
        """A pod, at an address that nobody has had before it."""
        self._put(_pod(name, ADDRESSES[len(self.deleted) + len(self.alive)], ready=ready))

    def _gone(self, name: str) -> str:
        pod = self.alive.pop(name)
        self.api.cluster.delete(pod_key(name))
        self.deleted[pod["status"]["podIP"]] = self.api.cluster.version
        return name

    def happen(self, nth: int) -> None:
        """One change of one pod."""
        rng, names = self.rng, sorted(self.alive)
        what = rng.choice(
            ["born", "ready", "unready", "going", "gone", "gone", "again", "unlabelled"]
        )
        if len(names) < 8 or (what == "born" and len(names) < 40):
            self.born(f"p{nth}", ready=rng.random() < 0.8)
            return
        name = rng.choice(names)
        pod = self.alive[name]
        address = pod["status"]["podIP"]
        match what:
            case "going":
                going = _pod(name, address)
                going["metadata"]["deletionTimestamp"] = "2026-11-26T00:00:00Z"
                self._put(going)
            case "gone" | "born":
                self._gone(name)
            case "again":  # as a StatefulSet's would be: the same name, another pod
                self._gone(name)
                self.born(name, ready=True)
            case "unlabelled":
                self._put(_pod(name, address, model=None))
            case _:
                self._put(_pod(name, address, ready=what == "ready"))

    def trouble(self) -> None:
        """Something that an API server does to who watches it."""
        api, rng = self.api, self.rng
        if api.troubles:
            return  # it has enough to do
        what = rng.choice(
            ["drop", "drop", "compact", "lose", "lose", "throttle", "500", "410", "401"]
        )
        match what:
            case "drop":
                pass
            case "compact":
                api.cluster.compact()
            case "lose":
                api.cluster.lose_next += rng.randint(1, 3)
            case "throttle":
                api.throttle(rng.randint(1, 4), rng.choice([0, 0, 0, 1]))
            case status:
                api.troubles.append(Trouble(int(status), "Trouble", "it happens"))
        if what != "lose":
            api.cluster.drop_watches()
        api.says_gone_in_stream = rng.random() < 0.5

    def truth(self) -> tuple[set[str], set[str]]:
        """The addresses of pods that may take work, and of those that may come to."""
        ready, known = set(), set()
        for pod in self.alive.values():
            meta = pod["metadata"]
            if "deletionTimestamp" in meta or "headrace.io/model" not in meta["labels"]:
                continue
            known.add(pod["status"]["podIP"])
            if pod["status"]["conditions"][0]["status"] == "True":
                ready.add(pod["status"]["podIP"])
        return ready, known


def _pod(name: str, address: str, **fields: Any) -> Object:
    return a_pod(name, address, annotations={"headrace.io/models": "m"}, **fields)


def believed(house: RunningHouse) -> tuple[set[str], set[str]]:
    """The same, as the roster has it."""

    def addresses(known: list[Any]) -> set[str]:
        return {each.id.partition(":")[0] for each in known}

    known = [each for each in house.replicas if each.health is not Health.DRAINING]
    return addresses([each for each in known if each.takes_work]), addresses(known)


@asynccontextmanager
async def in_turmoil(folder: Path, seed: int) -> AsyncIterator[tuple[Turmoil, RunningHouse]]:
    async with running_api_server() as api:
        turmoil = Turmoil(api, Random(seed))
        pods = Scripted(turmoil.answer, hosts=ADDRESSES)
        async with pods.running():
            kubernetes = {
                "enabled": True,
                "kubeconfig": str(api.kubeconfig(folder)),
                "port": pods.port,
                "resync_s": 1.0,
            }
            fleet = {"kubernetes": kubernetes, "probe_every_s": 0.3}
            async with running_house({"fleet": fleet}, []) as house:
                yield turmoil, house


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_a_thousand_changes_the_roster_is_the_truth_and_no_dead_pod_was_asked(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "BACK_OFF_S", 0.02)
    monkeypatch.setattr(watching, "BACK_OFF_MAX_S", 0.2)

    async def law() -> None:
        async with in_turmoil(tmp_path, seed) as (turmoil, house):
            for n in range(10):
                turmoil.born(f"first{n}", ready=True)
            await until(lambda: len(believed(house)[0]) == 10)
            asking = asyncio.create_task(ask(house))
            for nth in range(EVENTS):
                turmoil.happen(nth)
                if turmoil.rng.random() < 0.05:
                    turmoil.trouble()
                if nth % 3 == 0:
                    await asyncio.sleep(0.012)
                turmoil.note_lists()
            turmoil.api.troubles.clear()
            turmoil.api.cluster.lose_next = 0
            with contextlib.suppress(TimeoutError):
                await until(lambda: believed(house) == turmoil.truth(), within_s=10.0)
            turmoil.note_lists()
            asking.cancel()
            await asyncio.wait([asking])
            assert not turmoil.wronged
            assert believed(house) == turmoil.truth()
            assert turmoil.sent > 50
            assert len(turmoil.listed_at) > 4

    run(law(), within_s=60)


async def ask(house: RunningHouse) -> None:
    """Requests, one after another on a connection each, until cancelled."""
    while True:
        answer = await house.ask(a_post())
        assert answer.status in (200, 502, 503), answer
        await asyncio.sleep(0.002)
