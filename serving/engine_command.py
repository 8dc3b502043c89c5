"""The command line and the environment that tell an engine what it is asked to do.

Pure: settings in, strings out; each engine's own words are in `vllm_args` and `sglang_args`.
Invariants: an engine listens where its settings say and nowhere else; no engine of ours reports
usage; a model folder of ours never makes the engine ask a hub.
"""

from __future__ import annotations

from serving import sglang_args, vllm_args
from serving.engine_args import EngineKind, EngineSettings, events_topic


def command(settings: EngineSettings, python: str) -> list[str]:
    """The whole command line; `python` is the interpreter in which the engine is installed."""
    if settings.kind is EngineKind.SIM:
        return [python, "-m", "serving.sim.server", *_simulator_arguments(settings)]
    if settings.kind is EngineKind.SGLANG:
        return [python, "-m", "sglang.launch_server", *sglang_args.arguments(settings)]
    return [python, "-m", *vllm_args.command(settings)]


def environment(settings: EngineSettings) -> dict[str, str]:
    """What to add to the inherited environment."""
    if settings.kind is EngineKind.SIM:
        return dict(settings.environ)
    # The compiled files of the engine's Python are part of what we installed: without them each of
    # an engine's three processes compiles half a gigabyte of source anew.
    added = {"DO_NOT_TRACK": "1", "PYTHONDONTWRITEBYTECODE": ""}
    if settings.offline:
        added["HF_HUB_OFFLINE"] = "1"
    if settings.gpus:
        added["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in settings.gpus)
    if settings.prefix_caching is not None:
        added["PYTHONHASHSEED"] = str(settings.prefix_caching.seed)
    if settings.kind is not EngineKind.SGLANG:
        added |= vllm_args.environment(settings)
    return added | dict(settings.environ)


def _simulator_arguments(settings: EngineSettings) -> list[str]:
    arguments = ["--host", settings.host, "--port", str(settings.port)]
    arguments += ["--model", settings.served_name]
    arguments += ["--shutdown-timeout", str(settings.drain_s)]
    if settings.kv_events_ports is not None:
        publish, replay = settings.kv_events_ports
        arguments += ["--kv-events-endpoint", f"tcp://{settings.host}:{publish}"]
        arguments += ["--kv-replay-endpoint", f"tcp://{settings.host}:{replay}"]
        arguments += ["--kv-events-topic", events_topic(settings)]
    for name, path in (settings.lora.adapters if settings.lora else {}).items():
        arguments += ["--lora", f"{name}={path}"]
    return [*arguments, *vllm_args.tls_arguments(settings.tls), *settings.extra]
