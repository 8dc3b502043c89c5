"""The gateways compared, each under one policy: how it is started before these replicas.

Everything not named here is at the gateway's default. What is named, and why: worker checks every
second, so that start-up costs none of the run; logs at warning. kv_aware is told the event
endpoint, block size and model of every replica, as its help asks. smg's tokenizer is not loaded: it
is used for gRPC workers only; and it polls queue lengths every second instead of every ten, because
its overload protection leaves out a replica by the last length it saw (eight waiting or more), and
in a run as short and as quick as these ten seconds are an age: its mean is 2.7 times as long then,
and longer also with that protection or its warm-up switched off instead. nginx chooses nothing: it
is there for what a proxy in C takes to pass the same streams on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.bench.peers.replicas import MODEL
from tests.bench.processes import free_ports
from tests.bench.subjects import (
    HEADRACE,
    PINS,
    Subject,
    Surroundings,
    Unavailable,
    headrace_version,
    install,
    prepare,
)

BLOCK_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class Behind:
    """The replicas of one run: addresses, and where each publishes its events."""

    urls: tuple[str, ...]
    event_endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contender:
    """A gateway under one policy; the same name without the policy is the same gateway."""

    gateway: str
    policy: str

    @property
    def name(self) -> str:
        """`gateway/policy`."""
        return f"{self.gateway}/{self.policy}"

    @property
    def is_ours(self) -> bool:
        """Whether it is Headrace."""
        return self.gateway == HEADRACE

    @property
    def is_floor(self) -> bool:
        """Whether it takes replicas in turn: what the gateway costs without routing."""
        return self.policy.replace("_", "-") == "round-robin"


OURS: Final = Contender(HEADRACE, "cache-aware")
KV_AWARE: Final = Contender("vllm-router", "kv_aware")
CONTENDERS: Final = (
    OURS,
    Contender(HEADRACE, "least-work"),
    Contender(HEADRACE, "round-robin"),
    KV_AWARE,
    Contender("vllm-router", "cache_aware"),
    Contender("vllm-router", "round_robin"),
    Contender("smg", "cache_aware"),
    Contender("smg", "round_robin"),
    Contender("nginx", "round_robin"),
)


def available(contenders: Sequence[Contender], cache: Path) -> dict[str, str]:
    """Install what is missing; which gateways cannot be had, and why."""
    missing = {}
    for gateway in dict.fromkeys(each.gateway for each in contenders):
        if gateway in PINS:
            try:
                install(gateway, cache)
            except Unavailable as reason:
                missing[gateway] = str(reason)
    return missing


def command(contender: Contender, behind: Behind, surroundings: Surroundings) -> Subject:
    """How to start it. Raises Unavailable."""
    return _MAKERS[contender.gateway](contender, behind, surroundings)


def _headrace(contender: Contender, behind: Behind, surroundings: Surroundings) -> Subject:
    python = surroundings.python
    (port,) = free_ports(1)
    replicas = [part for url in behind.urls for part in ("--replica", url)]
    flags = ("--port", str(port), "--policy", contender.policy)
    line = (str(python), "-P", "-m", "gateway", "gateway", *replicas, *flags)
    return Subject(contender.name, headrace_version(python), line, port, "/readyz")


def _vllm_router(contender: Contender, behind: Behind, surroundings: Surroundings) -> Subject:
    script = install("vllm-router", surroundings.cache) / "vllm-router"
    port, metrics_port = free_ports(2)
    line = [str(script), "--host", "127.0.0.1", "--port", str(port)]
    line += ["--worker-urls", *behind.urls, "--policy", contender.policy]
    line += ["--log-level", "warning", "--prometheus-port", str(metrics_port)]
    line += ["--worker-startup-check-interval", "1"]
    if contender == KV_AWARE:
        for url, endpoint in zip(behind.urls, behind.event_endpoints, strict=True):
            line += ["--kv-event-source", f"{url}={endpoint}"]
        line += ["--kv-event-block-size", str(BLOCK_SIZE), "--kv-event-model", MODEL]
    return Subject(contender.name, PINS["vllm-router"], tuple(line), port, "/health")


def _smg(contender: Contender, behind: Behind, surroundings: Surroundings) -> Subject:
    script = install("smg", surroundings.cache) / "smg"
    port, metrics_port = free_ports(2)
    line = [str(script), "launch", "--host", "127.0.0.1", "--port", str(port)]
    line += ["--worker-urls", *behind.urls, "--policy", contender.policy, "--backend", "vllm"]
    line += ["--log-level", "warn", "--prometheus-port", str(metrics_port)]
    line += ["--disable-tokenizer-autoload", "--worker-startup-check-interval", "1"]
    line += ["--load-monitor-interval", "1"]
    return Subject(contender.name, PINS["smg"], tuple(line), port, "/health")


def _nginx(contender: Contender, _behind: Behind, surroundings: Surroundings) -> Subject:
    subject = prepare("nginx", surroundings, peer_policy=contender.policy)
    return replace(subject, name=contender.name)


_MAKERS: Final[dict[str, Callable[[Contender, Behind, Surroundings], Subject]]] = {
    HEADRACE: _headrace,
    "vllm-router": _vllm_router,
    "smg": _smg,
    "nginx": _nginx,
}
