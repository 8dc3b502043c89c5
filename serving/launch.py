"""What must be there before an engine can start, and how it is started: for `headrace replica` and
`headrace up` alike.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from serving.child import ChildSettings
from serving.engine_args import EngineKind, EngineSettings
from serving.engine_command import command as engine_command
from serving.engine_command import environment
from serving.engine_env import InstallFailed, ensure_engine
from serving.folders import Say, cache_root
from serving.local_models import CHAT_MODEL, LOCAL_MODELS, ModelUnavailable, ensure_model

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


def prepare(
    kind: EngineKind, models: Sequence[str], say: Say, python_given: str | None = None
) -> Kit:
    """Install the engine, where no interpreter that has it is given, and make the models.

    Minutes the first time. Raises CannotStart.
    """
    root = cache_root(os.environ, Path.home())
    try:
        python = Path(python_given) if python_given else _python_with(kind, root, say)
        served = tuple(_served(kind, model, root, python, say) for model in models)
    except (InstallFailed, ModelUnavailable, OSError) as error:
        raise CannotStart(str(error)) from error
    return Kit(kind, str(python), served)


def _python_with(kind: EngineKind, root: Path, say: Say) -> Path:
    """Ours if the engine is installed beside us, as in an image made for it; else one we make."""
    module = "sglang" if kind is EngineKind.SGLANG else "vllm"
    if kind is not EngineKind.SIM and find_spec(module) is not None:
        return Path(sys.executable)
    if kind is EngineKind.SGLANG:
        raise CannotStart("SGLang is not installed here: name an interpreter that has it (python)")
    return ensure_engine(kind, root, say)


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
        + f" (default: {CHAT_MODEL.name})",
    )
    kinds = ["auto", *(str(kind) for kind in EngineKind if kind is not EngineKind.SGLANG)]
    parser.add_argument(
        "--engine", choices=kinds, default="auto", help="default: the best one for here"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
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


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """While we prepare, SIGTERM ends us as Ctrl-C does: what we started is ended first."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
