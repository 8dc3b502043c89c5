"""`headrace up`: engines and a gateway on this machine, supervised as one, on loopback.

Decides which engine the machine can run, fetches what is missing, starts everything at once,
says where it is and how to try it, starts a replica again if it dies, and takes everything down
on Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from serving.asking import fetch
from serving.child import POLL_S, Child, ChildSettings, Patience
from serving.display import Display, display_for
from serving.engine_args import EngineKind, EngineSettings
from serving.folders import cache_root
from serving.launch import (
    CannotStart,
    Kit,
    Served,
    add_engine_arguments,
    build_engine,
    child_settings,
    engine_kind,
    prepare,
    sigterm_interrupts,
)
from serving.local_models import EMBEDDING_MODEL
from serving.machine import Machine, choose_engine, look, share_cores

GATEWAY_GRACE_S = 40.0
MAX_RESTARTS = 3
RESTART_PAUSE_S = 1.0
SIDE_MODEL_KV_CACHE_MIB = 256
"""vLLM on CPU refuses to start without a figure unless nearly all memory is free."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the group."""

    child: ChildSettings
    may_restart: bool
    """A replica may die and come back; without the gateway the group is over."""


class PartFailed(Exception):
    """A process of the group ended and the group cannot go on; the text is for the user."""


class Group:
    """The processes of one `headrace up`, kept until we are asked to stop or one fails for good."""

    def __init__(self, parts: Sequence[Part], display: Display) -> None:
        self.parts = parts
        self.stopping = asyncio.Event()
        self._display = display
        self._children: dict[str, Child] = {}
        self._not_ready = {part.child.name for part in parts}
        self._all_ready = asyncio.Event()
        self._patience = Patience(time.monotonic)

    def __repr__(self) -> str:
        return f"<Group {list(self._children.values())}>"

    async def run(self, banner: str) -> None:
        """Start everything, show `banner` when all of it works, return once it has been stopped.

        Raises PartFailed if a process fails for good; everything has been stopped by then.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                keepers = [tasks.create_task(self._keep(part)) for part in self.parts]
                ready = tasks.create_task(self._say_when_ready(banner))
                await self.stopping.wait()
                for task in (*keepers, ready):
                    task.cancel()
        except* PartFailed as failures:
            raise failures.exceptions[0] from None
        finally:
            await self._stop_all()

    def stop(self) -> None:
        """Asked once, stop in order; asked again, end everything now."""
        self.stopping.set()
        if self._patience.asked_again():
            for child in self._children.values():
                child.kill()

    async def _keep(self, part: Part) -> None:
        name, restarts = part.child.name, 0
        while True:
            child = self._children[name] = Child(part.child, time.monotonic)
            await child.start()
            self._display.show(list(self._children.values()))
            if await child.until_ready():
                self._ready(child)
            code = await child.until_gone()
            self._display.show(list(self._children.values()))
            was_ready = child.ready_after_s is not None
            if not (part.may_restart and was_ready and restarts < MAX_RESTARTS):
                raise PartFailed(_obituary(child, code))
            restarts += 1
            self._display.say(
                f"{name} ended ({_how(code)}): starting it again ({restarts} of {MAX_RESTARTS})"
            )
            await asyncio.sleep(RESTART_PAUSE_S)

    def _ready(self, child: Child) -> None:
        self._display.show(list(self._children.values()))
        self._not_ready.discard(child.settings.name)
        if not self._not_ready:
            self._all_ready.set()

    async def _say_when_ready(self, banner: str) -> None:
        await self._all_ready.wait()
        replicas = {part.child.url for part in self.parts if part.may_restart}
        (gateway,) = (part.child for part in self.parts if not part.may_restart)
        # A replica that answers us is not yet one the gateway has seen answer.
        while not sees_all(await fetch(gateway.host, gateway.port, "/debug/fleet"), replicas):
            await asyncio.sleep(POLL_S)
        self._display.ready(banner)

    async def _stop_all(self) -> None:
        children = list(self._children.values())
        self._display.stopping(children)
        # The gateway first: its streams end well only while the replicas still answer.
        for gateway in children:
            if gateway.settings.name == "gateway":
                await gateway.stop()
        await asyncio.gather(*(child.stop() for child in children))
        self._display.show(children)


def sees_all(fleet: bytes | None, urls: Set[str]) -> bool:
    """Does the gateway's /debug/fleet document call all of these replicas healthy?"""
    if fleet is None:
        return False
    replicas = json.loads(fleet)["replicas"]
    return urls <= {replica["url"] for replica in replicas if replica["health"] == "healthy"}


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _obituary(child: Child, code: int) -> str:
    what, log, tail = child.settings.name, child.settings.log, child.log_tail()
    first = first_error(child.log_tail(2000))
    because = f"First error in its log: {first}\n" if first else ""
    return f"{what} ended ({_how(code)}). {because}Its last lines, from {log}:\n{tail}"


def first_error(log: str) -> str | None:
    """The line of a log where the trouble began; what follows is how it spread."""
    found = re.search(r"\b\w*(?:Error|Exception): \S.*", log)
    return None if found is None else found[0]


# What to run --------------------------------------------------------------------------------------


def plan(
    kit: Kit, machine: Machine, ports: Iterator[int], args: argparse.Namespace
) -> list[EngineSettings]:
    """The engines: `args.replicas` of the first model, one of each other, sharing their cores."""
    gpus = range(len(machine.gpus))
    shares = share_cores(machine.cores, args.replicas)
    engines = []
    for index, cores in enumerate(shares):
        engine = _engine(kit.models[0], kit, next(ports), args)
        gpu = (gpus[index % len(gpus)],) if gpus else ()
        events = (next(ports), next(ports))
        engines.append(replace(engine, cores=cores, gpus=gpu, kv_events_ports=events))
    for served in kit.models[1:]:
        engine = _engine(served, kit, next(ports), args)
        # The options about length, cache and the engine's own are about the first model.
        side = replace(engine, max_model_len_tokens=served.max_model_len_tokens, extra=())
        cache = None if kit.kind is EngineKind.VLLM else SIDE_MODEL_KV_CACHE_MIB
        gpu = (gpus[-1],) if gpus else ()
        engines.append(replace(side, cores=shares[-1], gpus=gpu, kv_cache_mib=cache))
    return engines


def _engine(served: Served, kit: Kit, port: int, args: argparse.Namespace) -> EngineSettings:
    # The gateway drains before any engine is asked to stop: there is nothing left to wait for, and
    # vLLM's CPU workers use up whatever time they are given.
    return replace(build_engine(served, kit.kind, port, args), drain_s=0)


def parts_of(
    engines: Sequence[EngineSettings], kit: Kit, logs: Path, args: argparse.Namespace
) -> list[Part]:
    """The processes: the engines and the gateway in front of them."""
    parts = []
    for number, engine in enumerate(engines, start=1):
        name = f"replica-{number}"
        settings = child_settings(name, engine, kit.python, logs / f"{name}.log")
        parts.append(Part(settings, may_restart=True))
    command = [sys.executable, "-m", "gateway", "gateway"]
    command += ["--host", args.host, "--port", str(args.port)]
    command += ["--batch-folder", str(logs.parent.parent / "batches" / logs.name)]
    for engine in engines:
        command += ["--replica", engine.url]
    if args.policy:
        command += ["--policy", args.policy]
    if args.settings:
        command += ["--settings", args.settings]
    gateway = ChildSettings(
        name="gateway",
        command=tuple(command),
        host=args.host,
        port=args.port,
        health_path="/readyz",
        log=logs / "gateway.log",
        grace_s=GATEWAY_GRACE_S,
    )
    return [*parts, Part(gateway, may_restart=False)]


def banner_for(
    engines: Sequence[EngineSettings], kit: Kit, logs: Path, args: argparse.Namespace
) -> str:
    """What is said when everything works: where, what, and a line to paste."""
    url = f"http://{args.host}:{args.port}"
    chat = kit.models[0].served_name
    count = sum(engine.served_name == chat for engine in engines)
    lines = [
        f"Headrace is up at {url}/v1 with {count} x {chat} on {kit.kind}",
        "",
        _curl(
            f"{url}/v1/chat/completions",
            {
                "model": chat,
                "messages": [{"role": "user", "content": "Name three rivers."}],
                "max_tokens": 60,
                "stream": True,
            },
            "-N",
        ),
        *(
            _curl(f"{url}/v1/embeddings", {"model": served.served_name, "input": "a river"})
            for served in kit.models[1:]
        ),
        "",
        f"Console: {url}/console   metrics: {url}/metrics   logs: {logs}",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)


def _curl(url: str, body: object, *flags: str) -> str:
    words = ["curl", *flags, url, "-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return shlex.join(words)


def free_ports(host: str) -> Iterator[int]:
    """Ports nobody listens on, never the same twice; another process may yet be quicker."""
    given: set[int] = set()
    while True:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
        if port not in given:
            given.add(port)
            yield port


# The command --------------------------------------------------------------------------------------


class UpCommand:
    """The `up` command of `headrace`."""

    help = (
        "start real replicas and a gateway on this machine: the quickest way to an OpenAI endpoint"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        add_engine_arguments(parser)
        parser.add_argument(
            "--replicas", type=_positive, default=2, help="of the model (%(default)s)"
        )
        parser.add_argument("--port", type=int, default=8000, help="of the gateway (%(default)s)")
        parser.add_argument(
            "--embeddings", action="store_true", help=f"one more replica, of {EMBEDDING_MODEL.name}"
        )
        parser.add_argument(
            "--policy", help="how the gateway chooses a replica; see headrace gateway"
        )
        parser.add_argument("--settings", metavar="FILE", help="settings of the gateway")

    def run(self, args: argparse.Namespace) -> int:
        """Run until SIGINT or SIGTERM. 1 if something could not start or ended by itself."""
        display = display_for(sys.stdout)
        machine = look()
        choice = choose_engine(machine, engine_kind(args.engine))
        display.say(f"engine: {choice.reason}")
        models = [args.model, EMBEDDING_MODEL.name] if args.embeddings else [args.model]
        try:
            with sigterm_interrupts():
                _require_free(args.host, args.port)
                kit = prepare(choice.kind, models, display.progress)
            return self._supervise(kit, machine, display, args)
        except (CannotStart, PartFailed) as error:
            display.close()
            print(f"headrace: {error}", file=sys.stderr, flush=True)
            return 1
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        finally:
            display.close()

    def _supervise(
        self, kit: Kit, machine: Machine, display: Display, args: argparse.Namespace
    ) -> int:
        logs = cache_root(os.environ, Path.home()) / "logs" / f"up-{args.port}"
        logs.mkdir(parents=True, exist_ok=True)
        for old in logs.glob("*.log"):
            old.unlink()
        engines = plan(kit, machine, free_ports(args.host), args)
        parts = parts_of(engines, kit, logs, args)

        async def supervise() -> None:
            group = Group(parts, display)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, group.stop)
            await group.run(banner_for(engines, kit, logs, args))

        asyncio.run(supervise())
        return 0


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStart(
                f"{host}:{port} is not to be had ({error.strerror}); see --port"
            ) from error


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number


command = UpCommand()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on its own, as `python -m serving.up`."""
    parser = argparse.ArgumentParser(prog="headrace up", description=command.help)
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
