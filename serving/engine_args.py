"""What one engine is asked to do, and the command line and environment that say so.

Pure: settings in, strings out. Invariants: an engine listens where its settings say and nowhere
else; no engine of ours reports usage; a model folder of ours never makes the engine ask a hub.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MIB: Final = 1024 * 1024

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class EngineKind(StrEnum):
    """The engines a replica can run."""

    VLLM = "vllm"
    """vLLM on an NVIDIA GPU."""
    VLLM_CPU = "vllm-cpu"
    """vLLM's CPU build; Linux on x86-64 only."""
    SIM = "sim"
    """Our simulator: the same API, no model."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One replica's engine."""

    kind: EngineKind
    model: str
    """A folder, or a name the engine looks up itself."""
    served_name: str
    """The name clients write in `model`."""
    port: int
    host: str = "127.0.0.1"
    max_model_len_tokens: int | None = None
    """None: what the model's own configuration says."""
    kv_cache_mib: int | None = None
    """None: the engine decides (on CPU it would take a large part of the memory)."""
    block_size_tokens: int | None = None
    """A multiple of 32 on CPU; None: the engine's default, there 128."""
    cores: tuple[int, ...] = ()
    """CPU cores to compute on; empty: the engine decides."""
    gpu: int | None = None
    kv_events_ports: tuple[int, int] | None = None
    """Where KV-cache events are published, and where past ones are asked for. None: no events."""
    offline: bool = False
    """The model is on disk in full: ask no hub about it."""
    drain_s: int = 10
    """How long running requests may go on after SIGTERM."""
    extra: tuple[str, ...] = ()
    """Arguments passed to the engine as they are, last, so that they win."""

    @property
    def url(self) -> str:
        """Where the replica is reached."""
        return f"http://{self.host}:{self.port}"


def command(settings: EngineSettings, python: str) -> list[str]:
    """The whole command line; `python` is the interpreter in which the engine is installed."""
    if settings.kind is EngineKind.SIM:
        return [python, "-m", "serving.sim.server", *_simulator_arguments(settings)]
    # The `vllm` console script asks for the version of a distribution named vllm; the CPU build
    # has another name and the script dies. The module works for both.
    return [python, "-m", "vllm.entrypoints.openai.api_server", *_vllm_arguments(settings)]


def environment(settings: EngineSettings) -> dict[str, str]:
    """What to add to the inherited environment."""
    if settings.kind is EngineKind.SIM:
        return {}
    # The compiled files of the engine's Python are part of what we installed: without them each of
    # an engine's three processes compiles half a gigabyte of source anew.
    added = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONDONTWRITEBYTECODE": ""}
    if settings.offline:
        added["HF_HUB_OFFLINE"] = "1"
    if settings.kind is EngineKind.VLLM_CPU and settings.cores:
        added["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(str(core) for core in settings.cores)
    if settings.kind is EngineKind.VLLM and settings.gpu is not None:
        added["CUDA_VISIBLE_DEVICES"] = str(settings.gpu)
    return added


def _vllm_arguments(settings: EngineSettings) -> list[str]:
    arguments = ["--model", settings.model, "--served-model-name", settings.served_name]
    arguments += ["--host", settings.host, "--port", str(settings.port)]
    if settings.max_model_len_tokens is not None:
        arguments += ["--max-model-len", str(settings.max_model_len_tokens)]
    if settings.kv_cache_mib is not None:
        # VLLM_CPU_KVCACHE_SPACE says the same in whole GiB; this flag is finer and serves GPUs too.
        arguments += ["--kv-cache-memory-bytes", str(settings.kv_cache_mib * MIB)]
    if settings.block_size_tokens is not None:
        arguments += ["--block-size", str(settings.block_size_tokens)]
    if settings.kind is EngineKind.VLLM_CPU:
        # Compiling the graph takes minutes on a few cores and gains little for small models.
        arguments += ["--enforce-eager"]
    arguments += ["--enable-prompt-tokens-details"]
    arguments += ["--shutdown-timeout", str(settings.drain_s)]
    if settings.kv_events_ports is not None:
        publish, replay = settings.kv_events_ports
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": _publishing(settings.host, publish),
            "replay_endpoint": f"tcp://{settings.host}:{replay}",
            "topic": _topic(settings),
        }
        arguments += ["--kv-events-config", json.dumps(events)]
    return [*arguments, *settings.extra]


def _simulator_arguments(settings: EngineSettings) -> list[str]:
    arguments = ["--host", settings.host, "--port", str(settings.port)]
    arguments += ["--model", settings.served_name]
    if settings.kv_events_ports is not None:
        publish, replay = settings.kv_events_ports
        arguments += ["--kv-events-endpoint", f"tcp://{settings.host}:{publish}"]
        arguments += ["--kv-replay-endpoint", f"tcp://{settings.host}:{replay}"]
        arguments += ["--kv-events-topic", _topic(settings)]
    return [*arguments, *settings.extra]


def _publishing(host: str, port: int) -> str:
    """vLLM binds ipc and wildcards, and connects to a host that is named: nobody would be there."""
    return f"ipc://@headrace-{port}" if host in _LOOPBACK else f"tcp://*:{port}"


def _topic(settings: EngineSettings) -> str:
    return f"kv@{settings.host}:{settings.port}@{settings.served_name}"
