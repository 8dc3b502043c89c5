"""vLLM's words for what an engine is asked to do.

Pure. Names of flags and variables: vLLM 0.32, engine/arg_utils.py, envs.py, entrypoints/cli.
"""

from __future__ import annotations

import json
from typing import Final

from serving.engine_args import MIB, EngineKind, EngineSettings, Node, TlsFiles, events_topic

_CERTIFICATE_REQUIRED: Final = "2"
"""Python's ssl.CERT_REQUIRED."""

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def command(settings: EngineSettings) -> list[str]:
    """Module and arguments, as they follow `python -m`."""
    if settings.answers_http:
        # The `vllm` console script asks for the version of a distribution named vllm; the CPU build
        # has another name and the script dies. The module works for both.
        return ["vllm.entrypoints.openai.api_server", *arguments(settings)]
    # Only the console script's own module knows how to be a node without an API.
    return ["vllm.entrypoints.cli.main", "serve", *arguments(settings), "--headless"]


def arguments(settings: EngineSettings) -> list[str]:
    """What the engine is told on its command line."""
    return [
        *_model(settings),
        *_layout(settings),
        *_cache(settings),
        *_adapters(settings),
        "--enable-prompt-tokens-details",
        # We ask every other second, and the gateway does: that is no news.
        *("--disable-access-log-for-endpoints", "/health,/metrics"),
        *("--shutdown-timeout", str(settings.drain_s)),
        *(["--enable-sleep-mode"] if settings.sleep_mode else []),
        *tls_arguments(settings.tls),
        *settings.extra,
    ]


def tls_arguments(files: TlsFiles | None) -> list[str]:
    """One file for key and chain: whenever it is read they match."""
    if files is None:
        return []
    words = ["--ssl-keyfile", files.certificate, "--ssl-certfile", files.certificate]
    words += ["--ssl-ca-certs", files.authorities, "--ssl-cert-reqs", _CERTIFICATE_REQUIRED]
    return [*words, "--enable-ssl-refresh"]


def environment(settings: EngineSettings) -> dict[str, str]:
    """What the engine is told in its environment."""
    added = {"VLLM_NO_USAGE_STATS": "1"}
    if settings.kind is EngineKind.VLLM_CPU and (settings.threads or settings.cores):
        bound = settings.threads or ",".join(str(core) for core in settings.cores)
        added["VLLM_CPU_OMP_THREADS_BIND"] = bound
    if settings.lora is not None and settings.lora.at_runtime:
        added["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if settings.sleep_mode:
        # The routes that put an engine to sleep are among those vLLM keeps for developers.
        added["VLLM_SERVER_DEV_MODE"] = "1"
    return added


def _model(settings: EngineSettings) -> list[str]:
    words = ["--model", settings.model, "--served-model-name", settings.served_name]
    words += ["--host", settings.host, "--port", str(settings.port)]
    if settings.max_model_len_tokens is not None:
        words += ["--max-model-len", str(settings.max_model_len_tokens)]
    if settings.kind is EngineKind.VLLM_CPU:
        # Compiling the graph takes minutes on a few cores and gains little for small models.
        words += ["--enforce-eager"]
    formats = settings.quantisation
    for flag, value in (
        ("--quantization", formats.weights),
        ("--kv-cache-dtype", formats.kv_cache),
        ("--dtype", formats.compute),
    ):
        words += [flag, value] if value else []
    return words


def _layout(settings: EngineSettings) -> list[str]:
    degrees, words = settings.parallelism, []
    for flag, degree in (
        ("--tensor-parallel-size", degrees.tensor),
        ("--pipeline-parallel-size", degrees.pipeline),
        ("--data-parallel-size", degrees.data),
    ):
        words += [flag, str(degree)] if degree > 1 else []
    if degrees.expert:
        words += ["--enable-expert-parallel"]
    if settings.node is not None:
        words += _nodes(settings.node)
    return words


def _nodes(node: Node) -> list[str]:
    """vLLM works out by itself which ranks, and which data-parallel engines, are this node's."""
    words = ["--nnodes", str(node.size), "--node-rank", str(node.rank)]
    return [*words, "--master-addr", node.leader, "--master-port", str(node.port)]


def _cache(settings: EngineSettings) -> list[str]:
    words = []
    if settings.kv_cache_mib is not None:
        # VLLM_CPU_KVCACHE_SPACE says the same in whole GiB; this flag is finer and serves GPUs too.
        words += ["--kv-cache-memory-bytes", str(settings.kv_cache_mib * MIB)]
    if settings.block_size_tokens is not None:
        words += ["--block-size", str(settings.block_size_tokens)]
    caching = settings.prefix_caching
    if caching is not None and caching.enabled is not None:
        words += ["--enable-prefix-caching" if caching.enabled else "--no-enable-prefix-caching"]
    if caching is not None and caching.enabled is not False:
        words += ["--prefix-caching-hash-algo", caching.hash]
    if settings.kv_events_ports is not None and settings.answers_http:
        publish, replay = settings.kv_events_ports
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": _publishing(settings.host, publish),
            "replay_endpoint": f"tcp://{settings.host}:{replay}",
            "topic": events_topic(settings),
        }
        words += ["--kv-events-config", json.dumps(events)]
    return words


def _publishing(host: str, port: int) -> str:
    """vLLM binds ipc and wildcards, and connects to a host that is named: nobody would be there."""
    return f"ipc://@headrace-{port}" if host in _LOOPBACK else f"tcp://*:{port}"


def _adapters(settings: EngineSettings) -> list[str]:
    lora = settings.lora
    if lora is None:
        return []
    words = ["--enable-lora", "--max-loras", str(lora.most_loaded)]
    words += ["--max-lora-rank", str(lora.most_rank)]
    if lora.adapters:
        words += ["--lora-modules", *(f"{name}={path}" for name, path in lora.adapters.items())]
    return words
