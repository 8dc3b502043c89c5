"""The gateways under test: how to get each one, how to start it, how to know it is ready.

Every peer is given its fastest fair set-up: quiet logs, its cache-aware policy, keep-alive both
ways, worker threads for the one core it is pinned to. Headrace runs with everything on: keys and
limits, metrics, its cache-aware policy, the access log.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from tests.bench.processes import free_ports
from tests.bench.prompts import KEY

PINS: Final = {"vllm-router": "0.1.17", "smg": "1.13.0", "py-spy": "0.4.3"}
RUST_PEERS: Final = ("vllm-router", "smg")
HEADRACE: Final = "headrace"
PURE: Final = "headrace-pure"
SUBJECTS: Final = (HEADRACE, PURE, *RUST_PEERS, "nginx")


class Unavailable(Exception):
    """This subject cannot run here; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One gateway, ready to be started."""

    name: str
    version: str
    command: tuple[str, ...]
    port: int
    ready_path: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every subject is told: the replicas' ports and a folder of its own.

    `python` is the interpreter that has the Headrace to be measured.
    """

    replicas: tuple[int, ...]
    folder: Path
    cache: Path
    root: Path
    python: Path = Path(sys.executable)

    @property
    def urls(self) -> tuple[str, ...]:
        """The replicas' base addresses."""
        return tuple(f"http://127.0.0.1:{port}" for port in self.replicas)


def prepare(name: str, surroundings: Surroundings, *, peer_policy: str) -> Subject:
    """Make a subject ready to start, installing it if need be. Raises Unavailable."""
    return _MAKERS[name](surroundings, peer_policy)


def prepare_other(text: str, surroundings: Surroundings) -> Subject:
    """A subject from `NAME=COMMAND`, where {port}, {replicas} and {replica_flags} are filled in.

    `NAME@PATH=COMMAND` asks PATH whether it is ready; else that is /health. {replicas} becomes the
    addresses apart by spaces, {replica_flags} one `--replica ADDRESS` each.
    """
    named, equals, command = text.partition("=")
    name, _, ready_path = named.partition("@")
    if not equals or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"not NAME=COMMAND: {text!r}")
    (port,) = free_ports(1)
    filled = command.format(
        port=port,
        replicas=" ".join(surroundings.urls),
        replica_flags=" ".join(f"--replica {url}" for url in surroundings.urls),
    )
    return Subject(name, "as given", tuple(shlex.split(filled)), port, ready_path or "/health")


def _headrace(surroundings: Surroundings, _peer_policy: str) -> Subject:
    return _headrace_by(HEADRACE, surroundings.python, surroundings)


def _headrace_pure(surroundings: Surroundings, _peer_policy: str) -> Subject:
    """As it stands in this tree, beside the one that was compiled."""
    python = Path(sys.executable)
    if surroundings.python == python:
        raise Unavailable("nothing else of Headrace is measured (--python)")
    return _headrace_by(PURE, python, surroundings)


def _headrace_by(name: str, python: Path, surroundings: Surroundings) -> Subject:
    (port,) = free_ports(1)
    flags = [part for url in surroundings.urls for part in ("--replica", url)]
    flags += ["--settings", str(_with_tenants(surroundings.folder)), "--port", str(port)]
    command = (str(python), "-P", "-m", "gateway", "gateway", *flags)
    return Subject(name, headrace_version(python), command, port, "/readyz")


def _with_tenants(folder: Path) -> Path:
    """Settings by which whoever sends the load is a tenant with every limit, none within reach."""
    tenants, settings = folder / "tenants.yaml", folder / "settings.yaml"
    tenants.write_text(_TENANTS.format(sha256=sha256(KEY).hexdigest()))
    settings.write_text(f"tenants: {{path: {tenants}}}\n")
    return settings


def headrace_version(python: Path) -> str:
    """Of the Headrace that an interpreter has (-P: installed, not lying where it starts), and of
    what that runs on. Raises Unavailable where it has none."""
    told = subprocess.run(
        [str(python), "-P", "-c", _WHICH], capture_output=True, text=True, check=False
    )
    if told.returncode:
        raise Unavailable(f"{python} has no Headrace: {told.stderr.strip()[-300:]}")
    return told.stdout.strip()


_WHICH: Final = """
import sys
from importlib.metadata import version
from gateway.__main__ import version_line
runs_on = ", ".join(f"{name} {version(name)}" for name in ("uvicorn", "uvloop"))
print(f"{version_line()}, CPython {' '.join(sys.version.split())}, {runs_on}")
"""


def _vllm_router(surroundings: Surroundings, peer_policy: str) -> Subject:
    script = install("vllm-router", surroundings.cache) / "vllm-router"
    port, metrics_port = free_ports(2)
    command = (
        *(str(script), "--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", *surroundings.urls, "--policy", peer_policy),
        *("--log-level", "warning", "--prometheus-port", str(metrics_port)),
        *("--worker-startup-check-interval", "1"),
    )
    return Subject("vllm-router", PINS["vllm-router"], command, port, "/health")


def _smg(surroundings: Surroundings, peer_policy: str) -> Subject:
    script = install("smg", surroundings.cache) / "smg"
    port, metrics_port = free_ports(2)
    command = (
        *(str(script), "launch", "--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", *surroundings.urls, "--policy", peer_policy, "--backend", "vllm"),
        *("--log-level", "warn", "--prometheus-port", str(metrics_port)),
        *("--disable-tokenizer-autoload", "--worker-startup-check-interval", "1"),
    )
    return Subject("smg", PINS["smg"], command, port, "/health")


def _nginx(surroundings: Surroundings, _peer_policy: str) -> Subject:
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Unavailable("nginx is not installed (Debian: apt-get install nginx-light)")
    (port,) = free_ports(1)
    folder = surroundings.folder / "nginx"
    folder.mkdir(exist_ok=True)
    servers = "\n".join(f"    server 127.0.0.1:{replica};" for replica in surroundings.replicas)
    (folder / "nginx.conf").write_text(
        _NGINX_CONF.replace("@SERVERS@", servers).replace("@PORT@", str(port))
    )
    told = subprocess.run([found, "-v"], capture_output=True, text=True, check=True).stderr
    version = told.strip().rpartition("/")[2]
    command = (found, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr")
    return Subject("nginx", version, command, port, "/health")


_MAKERS: Final[dict[str, Callable[[Surroundings, str], Subject]]] = {
    HEADRACE: _headrace,
    PURE: _headrace_pure,
    "vllm-router": _vllm_router,
    "smg": _smg,
    "nginx": _nginx,
}

_TENANTS: Final = """\
tenants:
  - name: bench
    class: interactive
    requests_per_minute: 1000000000
    tokens_per_minute: 1000000000000
    tokens_per_day: 1000000000000000
    max_concurrent: 10000
keys:
  - {{id: bench, tenant: bench, sha256: {sha256}, created: '2026-01-01'}}
"""

# A plain reverse proxy at its best: no log, no disk, connections kept on both sides.
_NGINX_CONF: Final = """\
daemon off;
pid nginx.pid;
worker_processes 1;
error_log stderr error;
events { worker_connections 4096; }
http {
  access_log off;
  client_max_body_size 64m;
  client_body_buffer_size 512k;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  keepalive_requests 100000000;
  upstream replicas {
@SERVERS@
    keepalive 512;
    keepalive_requests 100000000;
  }
  server {
    listen 127.0.0.1:@PORT@;
    location / {
      proxy_pass http://replicas;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }
  }
}
"""


def install(package: str, cache: Path) -> Path:
    """The scripts folder of a virtual environment with this pinned package, made when missing.

    Raises Unavailable when it cannot be installed.
    """
    home = cache / f"{package}-{PINS[package]}"
    if not (home / "complete").is_file():
        print(f"installing {package}=={PINS[package]} into its own environment", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        _call([sys.executable, "-m", "venv", str(home)], package)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q"]
        _call([*pip, f"{package}=={PINS[package]}"], package)
        (home / "complete").touch()
    return home / "bin"


def _call(command: Sequence[str], package: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise Unavailable(f"{package} could not be installed: {done.stderr.strip()[-300:]}")
