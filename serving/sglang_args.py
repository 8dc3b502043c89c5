"""SGLang's words for what an engine is asked to do.

Pure. Names of flags: SGLang 0.5, python/sglang/srt/server_args.py. Not run here, where there is no
GPU: tested as values.
"""

from __future__ import annotations

import json

from serving.engine_args import EngineSettings, events_topic


def arguments(settings: EngineSettings) -> list[str]:
    """What the engine is told on its command line, after `python -m sglang.launch_server`."""
    words = ["--model-path", settings.model, "--served-model-name", settings.served_name]
    words += ["--host", settings.host, "--port", str(settings.port)]
    if settings.max_model_len_tokens is not None:
        words += ["--context-length", str(settings.max_model_len_tokens)]
    # Without these it has no /metrics, and its responses do not say what was cached.
    words += ["--enable-metrics", "--enable-cache-report"]
    return [*words, *_layout(settings), *_cache(settings), *_model(settings), *settings.extra]


def _layout(settings: EngineSettings) -> list[str]:
    degrees, words = settings.parallelism, []
    for flag, degree in (
        ("--tp-size", degrees.tensor),
        ("--pp-size", degrees.pipeline),
        ("--dp-size", degrees.data),
    ):
        words += [flag, str(degree)] if degree > 1 else []
    if degrees.expert:
        words += ["--ep-size", str(degrees.tensor * degrees.data)]
    if (node := settings.node) is not None:
        words += ["--nnodes", str(node.size), "--node-rank", str(node.rank)]
        words += ["--dist-init-addr", f"{node.leader}:{node.port}"]
    return words


def _cache(settings: EngineSettings) -> list[str]:
    words = []
    if settings.block_size_tokens is not None:
        words += ["--page-size", str(settings.block_size_tokens)]
    if settings.prefix_caching is not None and settings.prefix_caching.enabled is False:
        words += ["--disable-radix-cache"]
    if settings.kv_events_ports is not None:
        publish, replay = settings.kv_events_ports
        events = {
            "publisher": "zmq",
            "endpoint": f"tcp://*:{publish}",
            "replay_endpoint": f"tcp://*:{replay}",
            "topic": events_topic(settings),
        }
        words += ["--kv-events-config", json.dumps(events)]
    return words


def _model(settings: EngineSettings) -> list[str]:
    formats, words = settings.quantisation, []
    for flag, value in (
        ("--quantization", formats.weights),
        ("--kv-cache-dtype", formats.kv_cache),
        ("--dtype", formats.compute),
    ):
        words += [flag, value] if value else []
    if settings.sleep_mode:
        words += ["--enable-memory-saver"]
    if (lora := settings.lora) is not None:
        words += ["--enable-lora", "--max-loras-per-batch", str(lora.most_loaded)]
        words += ["--max-lora-rank", str(lora.most_rank)]
        if lora.adapters:
            words += ["--lora-paths", *(f"{name}={path}" for name, path in lora.adapters.items())]
    return words
