"""What the servers say of the same run: their `/metrics`, before, meanwhile and after.

A gateway of ours is asked which replicas it has (`/debug/fleet`), and each is read; any other
endpoint with vLLM's metrics is its own only replica; one without is left alone. What cannot be
reached is left out: these figures are company for ours, not a condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final

import gevent
import msgspec

from loadtest.exposition import Sums, sums
from loadtest.record import GatewayFigures, ReplicaFigures
from loadtest.stream import Client, Endpoint

_EVERY_S: Final = 1.0
_TIMEOUT_S: Final = 3.0
_IS_ENGINE: Final = "vllm:num_requests_running"
_IS_GATEWAY: Final = "gateway_requests_received_total"


class _Server:
    """One page, read again and again."""

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        self.name = name
        self.before: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.inflight: list[tuple[float, float]] = []
        self.kv_usage: list[tuple[float, float]] = []
        self._client = Client(endpoint, _TIMEOUT_S)

    def read(self) -> dict[str, float]:
        """The sums now; those of last time where it cannot be reached."""
        reply = self._client.get("/metrics")
        if reply.error is None:
            self.latest = sums(reply.body)
        return self.latest

    def note(self, at_s: float) -> None:
        now = self.read()
        inflight = now.get(_IS_ENGINE, 0.0) + now.get("vllm:num_requests_waiting", 0.0)
        self.inflight.append((round(at_s, 3), inflight))
        self.kv_usage.append((round(at_s, 3), now.get("vllm:kv_cache_usage_perc", 0.0)))

    def close(self) -> None:
        self._client.close()


class Servers:
    """The gateway, if it is one, and the replicas of a run."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Looks who is there; takes as long as they take to answer."""
        front = _Server(endpoint.url, endpoint)
        page = front.read()
        self._gateway = front if _IS_GATEWAY in page else None
        self._replicas = [front] if _IS_ENGINE in page else []
        if self._gateway is not None:
            found = [_Server(url, Endpoint.of(url)) for url in _replicas_of(endpoint)]
            self._replicas = [each for each in found if _IS_ENGINE in each.read()]
        self._greenlet: gevent.Greenlet | None = None
        self._started_s = 0.0

    def __repr__(self) -> str:
        return f"<Servers, {len(self._replicas)} replicas>"

    def start(self) -> None:
        """Take the first reading, and go on until `stop`."""
        for each in self._all():
            each.before = each.read()
        self._started_s = perf_counter()
        self._greenlet = gevent.spawn(self._note)

    def stop(self) -> None:
        """Take the last reading."""
        if self._greenlet is not None:
            self._greenlet.kill()
        for each in self._all():
            each.read()
            each.close()

    def replicas(self) -> list[ReplicaFigures]:
        """What each of them says."""
        return [_replica(each) for each in self._replicas]

    def gateway(self) -> GatewayFigures | None:
        """What the gateway says, where there is one of ours."""
        if self._gateway is None:
            return None
        told = Sums(self._gateway.before, self._gateway.latest)
        prompt_tokens = told.count("gateway_prompt_tokens_total")
        return GatewayFigures(
            requests=int(told.count("gateway_requests_total")),
            retries=int(told.count("gateway_retries_total")),
            ttft_mean_s=told.mean("gateway_time_to_first_token_seconds"),
            duration_mean_s=told.mean("gateway_request_duration_seconds"),
            queue_mean_s=told.mean("gateway_queue_time_seconds"),
            hit_ratio=_ratio(told.count("gateway_cached_tokens_total"), prompt_tokens),
        )

    def _all(self) -> Sequence[_Server]:
        return [*self._replicas, *([self._gateway] if self._gateway is not None else [])]

    def _note(self) -> None:
        while True:
            for each in self._replicas:
                each.note(perf_counter() - self._started_s)
            gevent.sleep(_EVERY_S)


def _replicas_of(endpoint: Endpoint) -> list[str]:
    client = Client(endpoint, _TIMEOUT_S)
    reply = client.get("/debug/fleet")
    client.close()
    if reply.error is not None:
        return []
    try:
        fleet: Any = msgspec.json.decode(reply.body)
        return [replica["url"] for replica in fleet["replicas"]]
    except (msgspec.DecodeError, KeyError, TypeError):
        return []


def _replica(server: _Server) -> ReplicaFigures:
    told = Sums(server.before, server.latest)
    queries = told.count("vllm:prefix_cache_queries_total")
    return ReplicaFigures(
        name=server.name.removeprefix("http://"),
        requests=int(told.count("vllm:request_success_total")),
        prompt_tokens=int(told.count("vllm:prompt_tokens_total")),
        output_tokens=int(told.count("vllm:generation_tokens_total")),
        hit_ratio=_ratio(told.count("vllm:prefix_cache_hits_total"), queries),
        preemptions=int(told.count("vllm:num_preemptions_total")),
        ttft_mean_s=told.mean("vllm:time_to_first_token_seconds"),
        tpot_mean_s=told.mean("vllm:request_time_per_output_token_seconds"),
        e2e_mean_s=told.mean("vllm:e2e_request_latency_seconds"),
        inflight=server.inflight,
        kv_usage=server.kv_usage,
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
