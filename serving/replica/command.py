"""The `replica` command: read the settings, check them against what is here, start, watch.

Exit codes: 0 told to stop, 1 something that must be there is not to be had, 2 settings that are
wrong or contradict the machine, else the engine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from serving.asking import fetch
from serving.engine_args import MIB, EngineKind, EngineSettings, Node, TlsFiles
from serving.folders import cache_root
from serving.launch import (
    CPU_KV_CACHE_MIB,
    CannotStart,
    Kit,
    add_engine_arguments,
    child_settings,
    engine_kind,
    prepare,
    sigterm_interrupts,
)
from serving.local_models import CHAT_MODEL
from serving.machine import Machine, choose_engine, look
from serving.replica.checks import Findings, Plan, contradictions, degrees_of
from serving.replica.front import serving_health
from serving.replica.identity import Identity
from serving.replica.logs import LogSink
from serving.replica.nodes import node_of
from serving.replica.settings import DEFAULT_PORT, ReplicaSettings, SettingsError, parse, read_file
from serving.replica.supervisor import Supervisor, Watch

_FLAGS: Final = (
    "model", "engine", "host", "port", "health_port", "max_model_len", "kv_cache_mib", "log",
)  # fmt: skip
_SHM: Final = "/dev/shm"


class ReplicaCommand:
    """The `replica` command of `headrace`."""

    help = "run one engine (vLLM, SGLang or the simulator) and watch over it, as a pod does"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options; what is not said is left to the file."""
        parser.add_argument(
            "action", nargs="?", choices=["run", "drain"], default="run",
            help="drain: tell the replica on this machine's --health-port to finish (a preStop)",
        )  # fmt: skip
        parser.add_argument("--settings", metavar="FILE", help="YAML: see docs/replicas.md")
        add_engine_arguments(parser)
        parser.add_argument("--port", type=int, help=f"port to listen on ({DEFAULT_PORT})")
        parser.add_argument("--health-port", type=int, help="/live, /ready and /drain (nowhere)")
        parser.add_argument(
            "--log", choices=["json", "plain"], help="json, unless this is a terminal"
        )
        parser.set_defaults(model=None, engine=None, host=None)

    def run(self, args: argparse.Namespace) -> int:
        """Serve until SIGINT or SIGTERM, or until the engine has died for good."""
        try:
            settings = settings_of(args)
            node = node_of(os.environ)
            if args.action == "drain":
                return asyncio.run(_drain(settings))
            sink = LogSink(sys.stdout, is_json=_logs_json(settings), wall=time.time)
            return _start(settings, node, sink)
        except SettingsError as error:
            print(f"headrace replica: {error}", file=sys.stderr)
            return 2
        except (CannotStart, OSError) as error:
            print(f"headrace replica: cannot start: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 128 + signal.SIGINT


def settings_of(args: argparse.Namespace) -> ReplicaSettings:
    """The file's settings, with what the command line says in their place."""
    keys: dict[str, Any] = read_file(args.settings) if args.settings else {"model": CHAT_MODEL.name}
    said = {name: getattr(args, name) for name in _FLAGS}
    keys |= {name: value for name, value in said.items() if value is not None}
    if args.engine_arg:
        keys["args"] = [*keys.get("args", []), *args.engine_arg]
    return parse(keys)


def _logs_json(settings: ReplicaSettings) -> bool:
    return settings.log == "json" if settings.log else not sys.stdout.isatty()


def _start(settings: ReplicaSettings, node: Node | None, sink: LogSink) -> int:
    machine = look()
    choice = choose_engine(machine, engine_kind(settings.engine))
    sink.say(f"engine: {choice.reason}")
    _refuse_contradictions(settings, choice.kind, node, machine)
    with sigterm_interrupts():
        kit = prepare(choice.kind, [settings.model], sink.say, settings.python)
        return asyncio.run(_known(settings, kit, node, sink))


async def _known(settings: ReplicaSettings, kit: Kit, node: Node | None, sink: LogSink) -> int:
    """Serve, by SPIFFE where it is on."""
    if settings.spiffe is None:
        return await _serve(_watch(settings, kit, node, None), sink)
    if kit.kind is EngineKind.SGLANG:
        raise SettingsError("spiffe: of the engines, vLLM alone takes up certificates that change")
    try:
        identity = Identity(settings.spiffe)
    except ImportError as error:
        raise SettingsError("spiffe needs `pip install headrace[spiffe]`") from error
    async with identity.kept():
        return await _serve(_watch(settings, kit, node, identity), sink)


def _watch(
    settings: ReplicaSettings, kit: Kit, node: Node | None, identity: Identity | None
) -> Watch:
    engine = engine_of(settings, kit, node, identity.files if identity else None)
    child = child_settings("replica", engine, kit.python, log=None)
    if identity is not None:
        child = replace(child, tls=identity.tls)
    return Watch(child, engine.served_name, settings, engine.answers_http)


def _refuse_contradictions(
    settings: ReplicaSettings, kind: EngineKind, node: Node | None, machine: Machine
) -> None:
    try:
        degrees = degrees_of(settings.parallelism, settings.args)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    cpu = settings.cpu
    plan = Plan(kind, degrees, settings.gpus, node, cpu.threads, cpu.shm_mib)
    found = Findings(
        machine.gpus, len(machine.cores), _shm_mib(), _model_config(settings.model, kind)
    )
    if complaints := contradictions(plan, found):
        raise SettingsError("; ".join(complaints))


def _shm_mib() -> int | None:
    try:
        room = os.statvfs(_SHM)
    except OSError:
        return None
    return room.f_blocks * room.f_frsize // MIB


def _model_config(model: str, kind: EngineKind) -> Mapping[str, Any] | None:
    """The model's config.json, if it is on disk; the simulator has no model."""
    if kind is EngineKind.SIM:
        return None
    for folder in (Path(model), cache_root(os.environ, Path.home()) / "models" / model):
        try:
            config = json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError):
            continue
        return config if isinstance(config, dict) else None
    return None


def engine_of(
    settings: ReplicaSettings, kit: Kit, node: Node | None, tls: TlsFiles | None = None
) -> EngineSettings:
    """What the engine is asked to do."""
    served = kit.models[0]
    cpu_default = CPU_KV_CACHE_MIB if kit.kind is EngineKind.VLLM_CPU else None
    events = settings.kv_events
    return EngineSettings(
        kind=kit.kind,
        model=served.model,
        served_name=settings.served_name or served.served_name,
        port=settings.port,
        host=settings.host,
        max_model_len_tokens=settings.max_model_len or served.max_model_len_tokens,
        kv_cache_mib=settings.kv_cache_mib or cpu_default,
        block_size_tokens=settings.block_size,
        threads=settings.cpu.threads,
        kv_events_ports=(events.port, events.replay_port) if events else None,
        offline=served.offline,
        drain_s=settings.drain_s,
        parallelism=settings.parallelism,
        node=node,
        prefix_caching=settings.prefix_caching,
        lora=settings.lora,
        quantisation=settings.quantisation,
        tls=tls,
        sleep_mode=settings.sleep_mode,
        environ=settings.env,
        extra=settings.args,
    )


async def _serve(watch: Watch, sink: LogSink) -> int:
    supervisor = Supervisor(watch, sink.say, sink.hear, time.monotonic)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.stop)
    async with serving_health(supervisor, watch.child.host, watch.rules.health_port):
        return await supervisor.run()


async def _drain(settings: ReplicaSettings) -> int:
    if settings.health_port is None:
        raise SettingsError("drain needs a health_port to ask")
    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host
    patience_s = settings.drain_s + settings.settle_s + 5.0
    said = await fetch(host, settings.health_port, "/drain", patience_s)
    if said is None:
        raise CannotStart(f"no replica answers at {host}:{settings.health_port}")
    print(said.decode().strip())
    return 0


command = ReplicaCommand()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on its own, as `python -m serving.replica.command`."""
    parser = argparse.ArgumentParser(prog="headrace replica", description=command.help)
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
