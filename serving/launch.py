"""`headrace replica`: run one engine in the foreground, as a container would.

Installs the engine and makes the model if need be, says when the replica is ready, passes
SIGTERM and Ctrl-C on so that running requests finish, and exits as the engine did.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.child import Child, ChildSettings, Patience
from serving.engine_args import EngineKind, EngineSettings, environment
from serving.engine_args import command as engine_command
from serving.engine_env import InstallFailed, ensure_engine
from serving.folders import Say, cache_root
from serving.local_models import CHAT_MODEL, LOCAL_MODELS, ModelUnavailable, ensure_model
from serving.machine import choose_engine, look

GRACE_BEYOND_DRAIN_S = 5.0
CPU_MAX_MODEL_LEN_TOKENS = 2048
CPU_KV_CACHE_MIB = 1024


class CannotStart(Exception):
    """Something needed before an engine can start is not to be had; the text is for the user."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model as the engine and as clients name it."""

    model: str
    served_name: str
    max_model_len_tokens: int | None
    offline: bool


@dataclass(frozen=True, slots=True)
class Kit:
    """All that must be on disk before engines of one kind can start."""

    kind: EngineKind
    python: str
    models: tuple[Served, ...]


def prepare(kind: EngineKind, models: Sequence[str], say: Say) -> Kit:
    """Install the engine and make the models. Minutes the first time. Raises CannotStart."""
    root = cache_root(os.environ, Path.home())
    try:
        python = ensure_engine(kind, root, say)
        served = tuple(_served(kind, model, root, python, say) for model in models)
    except (InstallFailed, ModelUnavailable, OSError) as error:
        raise CannotStart(str(error)) from error
    return Kit(kind, str(python), served)


def _served(kind: EngineKind, model: str, root: Path, python: Path, say: Say) -> Served:
    name = Path(model).name if Path(model).is_dir() else model
    local = LOCAL_MODELS.get(model)
    if kind is EngineKind.SIM:
        return Served(name, name, None, offline=True)
    if local is not None:
        folder = ensure_model(local, root, python, say)
        return Served(str(folder), name, local.max_model_len_tokens, offline=True)
    limit = CPU_MAX_MODEL_LEN_TOKENS if kind is EngineKind.VLLM_CPU else None
    return Served(model, name, limit, offline=False)


def child_settings(
    name: str, engine: EngineSettings, python: str, log: Path | None
) -> ChildSettings:
    """How an engine is run as a child."""
    return ChildSettings(
        name=name,
        command=tuple(engine_command(engine, python)),
        host=engine.host,
        port=engine.port,
        health_path="/health",
        environ=environment(engine),
        log=log,
        grace_s=engine.drain_s + GRACE_BEYOND_DRAIN_S,
    )


async def run_in_foreground(settings: ChildSettings, say: Say) -> int:
    """Run one child until it ends or we are asked to stop. Returns our exit code."""
    child = Child(settings, time.monotonic)
    asked = asyncio.Event()
    patience = Patience(time.monotonic)
    loop = asyncio.get_running_loop()

    def ask() -> None:
        asked.set()
        if patience.asked_again():
            child.kill()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask)
    await child.start()
    async with asyncio.TaskGroup() as tasks:
        ready = tasks.create_task(_say_ready(child, say))
        gone = tasks.create_task(child.until_gone())
        stop = tasks.create_task(asked.wait())
        await asyncio.wait((gone, stop), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if stop.done():
            say(f"{settings.name}: stopping")
            await child.stop()
        stop.cancel()
    code = gone.result()
    return 0 if asked.is_set() and code in (0, -signal.SIGTERM) else _exit_code(code)


async def _say_ready(child: Child, say: Say) -> None:
    if await child.until_ready():
        where, took = child.settings.url, child.ready_after_s
        say(f"{child.settings.name}: ready at {where} after {took:.1f} s")


def _exit_code(code: int) -> int:
    """A process ended by signal N is reported as shells do, 128 + N."""
    return 128 - code if code < 0 else code


def engine_kind(word: str) -> EngineKind | None:
    """The value of --engine; None for auto."""
    return None if word == "auto" else EngineKind(word)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """The options `replica` and `up` share."""
    parser.add_argument(
        "--model",
        default=CHAT_MODEL.name,
        help="a Hugging Face name or folder, or one of the small models that need no hub: "
        + ", ".join(LOCAL_MODELS)
        + " (default: %(default)s)",
    )
    kinds = ["auto", *(str(kind) for kind in EngineKind)]
    parser.add_argument(
        "--engine", choices=kinds, default="auto", help="default: the best one for here"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--max-model-len", type=int, metavar="TOKENS", help="2048 on CPU, else the model's own"
    )
    parser.add_argument(
        "--kv-cache-mib",
        type=int,
        metavar="MIB",
        help=f"KV cache of each replica ({CPU_KV_CACHE_MIB} on CPU, else the engine decides)",
    )
    parser.add_argument(
        "--engine-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="passed to the engine as it is; repeatable: --engine-arg=--dtype --engine-arg=float16",
    )


def build_engine(
    served: Served, kind: EngineKind, port: int, args: argparse.Namespace
) -> EngineSettings:
    """Engine settings from what the options of `add_engine_arguments` say."""
    cpu_default = CPU_KV_CACHE_MIB if kind is EngineKind.VLLM_CPU else None
    return EngineSettings(
        kind=kind,
        model=served.model,
        served_name=served.served_name,
        port=port,
        host=args.host,
        max_model_len_tokens=args.max_model_len or served.max_model_len_tokens,
        kv_cache_mib=args.kv_cache_mib or cpu_default,
        offline=served.offline,
        extra=tuple(args.engine_arg),
    )


class ReplicaCommand:
    """The `replica` command of `headrace`."""

    help = "run one engine (vLLM on GPU or CPU, or the simulator), installing it first if need be"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        add_engine_arguments(parser)
        parser.add_argument(
            "--port", type=int, default=9001, help="port to listen on (%(default)s)"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Serve until SIGINT or SIGTERM, or until the engine ends."""

        def say(line: str) -> None:
            print(f"headrace: {line}", flush=True)

        choice = choose_engine(look(), engine_kind(args.engine))
        say(f"engine: {choice.reason}")
        try:
            kit = prepare(choice.kind, [args.model], say)
        except CannotStart as error:
            say(f"cannot start: {error}")
            return 1
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        engine = build_engine(kit.models[0], kit.kind, args.port, args)
        settings = child_settings("replica", engine, kit.python, log=None)
        return asyncio.run(run_in_foreground(settings, say))


command = ReplicaCommand()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on its own, as `python -m serving.launch`."""
    parser = argparse.ArgumentParser(prog="headrace replica", description=command.help)
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
