"""A kubelet: each pod is processes on this machine, on an address of its own.

A pod's init containers run one after another, then its containers; probes are real requests, at the
pace that the pod says. A container that ends is started again, unless the pod is to end with it. A
pod that is deleted runs its preStop hooks, is sent SIGTERM, and is killed when its grace period is
over; then it is gone. What a pod may do (users, capabilities, a read-only root, memory) is not
enforced.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx

from tests.kube.cluster import Cluster, Object, Place, Trouble, now_text
from tests.kube.controllers import PODS, is_going, key_of
from tests.kube.sandbox import Node, Sandbox

Kubeconfig = Callable[[Object], Object | None]
"""How a pod asks the API; None: it has no token."""

_RESTART_S: Final = 0.5
_BOUND: Final = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
"""Nothing is left over when a test run is killed."""
_HELD: Final = 47113
"""The port by which a kubelet holds its addresses, so that another's pods have others."""


class Addresses:
    """Of pods: a block of loopback that nobody else on this machine uses now."""

    def __init__(self) -> None:
        for block in range(1, 255):
            held = socket.socket()
            try:
                held.bind((f"127.{block}.255.254", _HELD))
            except OSError:
                held.close()
            else:
                self._held, self._block = held, block
                break
        self._given = 0

    def __repr__(self) -> str:
        return f"<Addresses 127.{self._block}.*>"

    def give(self) -> str:
        """One that no pod had yet."""
        self._given += 1
        return f"127.{self._block}.{self._given // 250}.{self._given % 250 + 1}"

    def close(self) -> None:
        """Others may have them."""
        self._held.close()


class Kubelet:
    """Of the one machine there is."""

    def __init__(self, node: Node, kubeconfig: Kubeconfig) -> None:
        self._node = node
        self._kubeconfig = kubeconfig
        self._addresses = Addresses()
        self._lives: dict[str, _Life] = {}
        self._web = httpx.AsyncClient(trust_env=False, verify=False)

    def __repr__(self) -> str:
        return f"<Kubelet of {len(self._lives)} pods>"

    def look(self) -> None:
        """Start the pods that are new, and tell those that are deleted."""
        there = {}
        for pod in self._node.cluster.select(Place(*PODS)):
            uid = pod["metadata"]["uid"]
            there[uid] = pod
            if uid not in self._lives:
                sandbox = Sandbox(self._node, pod, self._addresses.give())
                self._lives[uid] = _Life(
                    self._node.cluster, pod, sandbox, self._kubeconfig(pod), self._web
                )
            if is_going(pod):
                self._lives[uid].going.set()
        for uid in self._lives.keys() - there.keys():
            if self._lives[uid].task.done():
                self._lives.pop(uid).task.result()

    def said(self, pod: str) -> str:
        """The end of what the pods of this name have written."""
        logs = sorted((self._node.folder / "pods").glob(f"{pod}*/*.log"))
        return "\n".join(f"== {log}\n{log.read_text()[-3000:]}" for log in logs)

    async def stop(self) -> None:
        """Kill everything."""
        for life in self._lives.values():
            life.task.cancel()
        lives = [life.task for life in self._lives.values()]
        results = await asyncio.gather(*lives, return_exceptions=True)
        self._addresses.close()
        await self._web.aclose()
        for result in results:
            if isinstance(result, Exception):
                raise result


class _Life:
    """A pod, from its start to its end."""

    def __init__(
        self,
        cluster: Cluster,
        pod: Object,
        sandbox: Sandbox,
        kubeconfig: Object | None,
        web: httpx.AsyncClient,
    ) -> None:
        self._cluster = cluster
        self._key = key_of(PODS, pod)
        self._spec = pod["spec"]
        self._sandbox = sandbox
        self._kubeconfig = kubeconfig
        self._web = web
        self.going = asyncio.Event()
        self.task = asyncio.create_task(self._live(), name=f"pod {self._key.name}")

    async def _live(self) -> None:
        try:
            self._sandbox.prepare()
            self._tell(phase="Pending", podIP=self._sandbox.address)
            is_over = await self._until_going(self._run())
        except (OSError, NotImplementedError, KeyError, Trouble) as error:
            is_over = True
            self._tell(phase="Failed", message=repr(error))
        if is_over:  # by itself: it stays to be seen
            await self.going.wait()
        self._cluster.remove(self._key)

    async def _until_going(self, work: Any) -> bool:
        """Until the work is done (True), or the pod is deleted and has ended."""
        running = asyncio.create_task(work)
        told = asyncio.create_task(self.going.wait())
        try:
            await asyncio.wait([running, told], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                await running
                return True
            return False
        finally:
            told.cancel()
            running.cancel()  # which ends its containers, in order if it is going
            with contextlib.suppress(asyncio.CancelledError):
                await running

    async def _run(self) -> None:
        for container in self._spec.get("initContainers", ()):
            async with self._started(container) as process:
                if await process.wait():
                    self._tell(phase="Failed", message=f"{container['name']} failed")
                    return
        policy = self._spec.get("restartPolicy", "Always")
        kept = [self._keep(each, policy) for each in self._spec["containers"]]
        ends = await asyncio.gather(*kept, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        self._tell(phase="Failed" if any(ends) else "Succeeded", conditions=_ready(False))

    async def _keep(self, container: Object, policy: str) -> int:
        """Run a container, again and again if it is to be there always; returns its exit code."""
        restarts = 0
        while True:
            async with self._started(container) as process:
                self._tell(phase="Running", startTime=now_text())
                watch = asyncio.create_task(self._watch(container, process))
                try:
                    code = await process.wait()
                finally:
                    watch.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await watch
            if policy == "Never" or (policy == "OnFailure" and code == 0):
                return code
            restarts += 1
            status = {"name": container["name"], "restartCount": restarts}
            self._tell(conditions=_ready(False), containerStatuses=[status])
            await asyncio.sleep(_RESTART_S)

    @asynccontextmanager
    async def _started(self, container: Object) -> AsyncIterator[Process]:
        """The process of a container; at the end of the `with` it has ended."""
        words = [*container.get("command", ()), *container.get("args", ())]
        process = await self._spawn(container, words)
        try:
            yield process
        finally:
            if process.returncode is None:
                await asyncio.shield(self._end(container, process))

    async def _spawn(self, container: Object, words: list[str]) -> Process:
        with (self._sandbox.folder / f"{container['name']}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *_BOUND, *self._sandbox.command(container, words),
                env=self._sandbox.environment(container, self._kubeconfig),
                cwd=self._sandbox.folder, stdin=asyncio.subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    async def _end(self, container: Object, process: Process) -> None:
        """In order if the pod has been deleted, else at once."""
        if self.going.is_set():
            grace_s = float(self._spec.get("terminationGracePeriodSeconds", 30))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._before_its_end(container)
                    process.send_signal(signal.SIGTERM)
                    await process.wait()
        await _kill(process)

    async def _before_its_end(self, container: Object) -> None:
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec")
        if hook:
            before = await self._spawn(container, hook["command"])
            try:
                await before.wait()
            finally:
                await _kill(before)

    # Probes

    async def _watch(self, container: Object, process: Process) -> None:
        """Probe it for as long as it runs."""
        startup, readiness, liveness = (
            container.get(f"{name}Probe") for name in ("startup", "readiness", "liveness")
        )
        if startup and not await self._passes(container, startup):
            process.kill()
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tell_readiness(container, readiness))
            if liveness:
                group.create_task(self._see_it_live(container, liveness, process))

    async def _passes(self, container: Object, probe: Object) -> bool:
        """It is answered before it has failed too often."""
        for _ in range(probe.get("failureThreshold", 3)):
            if await self._probed(container, probe):
                return True
            await asyncio.sleep(probe.get("periodSeconds", 10))
        return False

    async def _tell_readiness(self, container: Object, probe: Object | None) -> None:
        if probe is None:
            self._tell(conditions=_ready(True))
            return
        failures = 0
        while True:
            if await self._probed(container, probe):
                failures = 0
                self._tell(conditions=_ready(True))
            else:
                failures += 1
                if failures >= probe.get("failureThreshold", 3):
                    self._tell(conditions=_ready(False))
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def _see_it_live(self, container: Object, probe: Object, process: Process) -> None:
        while await self._passes(container, probe):
            await asyncio.sleep(probe.get("periodSeconds", 10))
        process.kill()

    async def _probed(self, container: Object, probe: Object) -> bool:
        asked = probe["httpGet"]
        named = {each.get("name"): each["containerPort"] for each in container.get("ports", ())}
        scheme = asked.get("scheme", "HTTP").lower()
        url = f"{scheme}://{self._sandbox.address}:{named.get(asked['port'], asked['port'])}"
        try:
            answer = await self._web.get(
                url + asked["path"], timeout=probe.get("timeoutSeconds", 1)
            )
        except httpx.TransportError:
            return False
        return answer.status_code < 400

    # What is told of it

    def _tell(self, **status: Any) -> None:
        """Unless the pod has been taken away."""
        if self._key in self._cluster.objects:
            if "podIP" in status:
                status["podIPs"] = [{"ip": status["podIP"]}]
            self._cluster.merge(self._key, {"status": status})


def _ready(is_ready: bool) -> list[Object]:
    said = str(is_ready)
    return [{"type": "ContainersReady", "status": said}, {"type": "Ready", "status": said}]


async def _kill(process: Process) -> None:
    """With whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
