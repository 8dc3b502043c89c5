"""The stand-in's kubelet: what becomes of a pod whose processes do not do as they should."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.house import run, until
from tests.kube.cluster import Key, Object
from tests.kube.controllers import PODS, is_ready
from tests.kube.services import SERVICES
from tests.kube.world import World, running_world

KEY = Key(*PODS, "models", "p")
SERVE = """
import http.server, pathlib, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if pathlib.Path(sys.argv[2]).exists() else 200)
        self.end_headers()
http.server.HTTPServer((sys.argv[1], 8000), Answers).serve_forever()
"""
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w")
time.sleep(60)
"""


def python(name: str, code: str, *words: str, **fields: Any) -> Object:
    """A container with the volume `v` at /v."""
    mounted = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    return {
        "name": name,
        "image": "i",
        "command": ["python", "-c", code, *words],
        **mounted,
    } | fields


@asynccontextmanager
async def a_pod(
    folder: Path, *containers: Object, **spec: Any
) -> AsyncIterator[tuple[World, Callable[[], Object]]]:
    """The world it is in, and how it is now."""
    volumes = [{"name": "v", "hostPath": {"path": "/v"}}]
    whole = {"containers": list(containers), "volumes": volumes, **spec}
    async with running_world(folder) as world:
        cluster = world.api.cluster
        cluster.create(KEY, {"metadata": {"labels": {"app": "p"}}, "spec": whole})
        yield world, lambda: cluster.get(KEY).get("status", {})


def shared(folder: Path) -> Path:
    """What is at /v."""
    return folder / "shared/host/v"


def test_what_comes_first_must_succeed(tmp_path: Path) -> None:
    async def law() -> None:
        first = python("first", "import sys; open(sys.argv[1], 'w'); sys.exit(3)", "/v/first")
        then = python("then", "import sys; open(sys.argv[1], 'w')", "/v/then")
        async with a_pod(tmp_path, then, initContainers=[first]) as (world, status):
            await until(lambda: status().get("phase") == "Failed", within_s=20)
            assert {path.name for path in shared(tmp_path).iterdir()} == {"first"}
            world.api.cluster.delete(KEY)
            await until(lambda: KEY not in world.api.cluster.objects)

    run(law())


def test_a_service_leads_to_a_pod_while_it_is_ready_and_a_dead_one_is_started_again(
    tmp_path: Path,
) -> None:
    probe = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 0.1, "failureThreshold": 2}
    patient = probe | {"failureThreshold": 100}
    deadly = probe | {"failureThreshold": 20}
    container = python(
        "c", SERVE, "0.0.0.0", "/v/ill", ports=[{"name": "http", "containerPort": 8000}],
        startupProbe=patient, readinessProbe=probe, livenessProbe=deadly,
    )  # fmt: skip
    service = {"spec": {"selector": {"app": "p"}, "ports": [{"port": 80, "targetPort": "http"}]}}

    async def law() -> None:
        async with a_pod(tmp_path, container) as (world, status):
            cluster = world.api.cluster
            cluster.create(Key(*SERVICES, "models", "s"), service)

            def leads() -> list[str]:
                return world.services.addresses("s.models.svc")

            await until(leads, within_s=20)
            assert leads() == [status()["podIP"]]
            (shared(tmp_path) / "ill").touch()
            await until(lambda: not leads(), within_s=20)
            assert not is_ready(cluster.get(KEY))
            await until(lambda: status().get("containerStatuses"), within_s=20)
            assert status()["containerStatuses"][0]["restartCount"] == 1
            (shared(tmp_path) / "ill").unlink()
            await until(leads, within_s=20)

    run(law())


def test_who_does_not_go_is_killed_when_the_grace_period_is_over(tmp_path: Path) -> None:
    hook = ["python", "-c", "import sys; open(sys.argv[1], 'w')", "/v/told"]
    container = python("c", STUBBORN, "/v/up", lifecycle={"preStop": {"exec": {"command": hook}}})

    async def law() -> None:
        async with a_pod(tmp_path, container, terminationGracePeriodSeconds=2) as (world, status):
            await until((shared(tmp_path) / "up").exists, within_s=20)
            assert status()["phase"] == "Running"
            world.api.cluster.delete(KEY)
            told_at = time.monotonic()
            await until(lambda: KEY not in world.api.cluster.objects, within_s=20)
            assert time.monotonic() - told_at > 1.9
            assert (shared(tmp_path) / "told").exists()

    run(law())


def test_a_pod_that_is_to_end_ends(tmp_path: Path) -> None:
    async def law() -> None:
        code = "import os; print(os.environ['SAID'])"
        said = [{"name": "SAID", "value": "at 0.0.0.0 and /v/x, not /very"}]
        container = python("c", code, env=said)
        async with a_pod(tmp_path, container, restartPolicy="Never") as (world, status):
            await until(lambda: status().get("phase") == "Succeeded", within_s=20)
            (line,) = world.kubelet.said("p").splitlines()[1:]
            assert line == f"at {status()['podIP']} and {shared(tmp_path) / 'x'}, not /very"

    run(law())
