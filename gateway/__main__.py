"""The command line: `headrace gateway | check-settings | ...`.

Commands of other packages of the project are found by the entry points of group
`headrace.commands`, so that the gateway imports none of them.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import asdict

from gateway import __version__
from gateway.apart import apart
from gateway.choose.policies import POLICIES
from gateway.choose.prior import ProfileError, read_profile
from gateway.flags import settings_said
from gateway.section import SettingsError, without_passwords
from gateway.settings import Settings

GROUP = "headrace.commands"


class Command(Protocol):
    """What an entry point of the group offers."""

    help: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


class GatewayCommand:
    """`headrace gateway`."""

    help = "serve: one OpenAI-compatible endpoint in front of many replicas"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Flags for what most people set; the settings file has all the rest."""
        parser.add_argument(
            "--replica", action="append", default=[], metavar="URL",
            help="a replica, such as http://10.0.0.1:8000; say it once for each",
        )  # fmt: skip
        parser.add_argument(
            "--kubernetes", nargs="*", metavar="NAMESPACE",
            help="replicas are the pods labelled headrace.io/model, here or in these namespaces",
        )  # fmt: skip
        parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
        parser.add_argument("--port", type=int, help="port to listen on (default 8000)")
        parser.add_argument(
            "--workers", type=int, metavar="N", help="processes that share the port (default 1)"
        )
        parser.add_argument("--settings", metavar="FILE", help="YAML file with all the knobs")
        parser.add_argument("--policy", choices=sorted(POLICIES), help="how replicas are chosen")
        parser.add_argument(
            "--batch-folder", metavar="FOLDER", help="keep files and batches there: the Batch API"
        )
        parser.add_argument(
            "--tokenizer", metavar="FOLDER", help="the model's, where its replicas' is not here"
        )
        parser.add_argument(
            "--profile", metavar="FILE", help="of `headrace calibrate`: how fast replicas may be"
        )
        parser.add_argument(
            "--access-log", metavar="WHERE", help="stdout (default), off, or a file"
        )
        parser.add_argument(
            "--log-level", default="info", choices=["debug", "info", "warning", "error"],
            help="how much is said on stderr (default info)",
        )  # fmt: skip

    def run(self, args: argparse.Namespace) -> int:
        """Serve until SIGTERM or Ctrl-C."""
        logging.basicConfig(
            level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        try:
            settings = _said(args)
            from gateway.workers import run

            return run(settings)
        except (SettingsError, ProfileError, OSError) as error:
            return _complain(error)


class RecordCommand(GatewayCommand):
    """`headrace record`."""

    help = "serve as `gateway` does, and record the traffic for load tests: hashes, no text"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The file, and all that `gateway` takes."""
        parser.add_argument("recording", metavar="FILE", help="JSON lines, written anew")
        super().add_arguments(parser)


class CheckSettingsCommand:
    """`headrace check-settings`."""

    help = "read a settings file as `gateway` would, and print what it comes to"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """One file."""
        parser.add_argument("file", metavar="FILE", help="YAML settings, or - for standard input")

    def run(self, args: argparse.Namespace) -> int:
        """Print the resolved settings, or what is wrong with them."""
        try:
            settings = Settings.load(_read(args.file), os.environ)
        except (SettingsError, OSError) as error:
            return _complain(error)
        import yaml

        document = without_passwords(settings.document())
        sys.stdout.write(yaml.safe_dump(document, sort_keys=False))
        return 0


OWN: dict[str, Command] = {
    "gateway": GatewayCommand(),
    "record": RecordCommand(),
    "check-settings": CheckSettingsCommand(),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; 2 means that the command line is wrong."""
    parser = argparse.ArgumentParser(
        prog="headrace",
        description="Headrace, an inference gateway for vLLM.",
        epilog="`headrace COMMAND --help` tells more. Try `headrace up --engine sim` first.",
    )
    parser.add_argument("--version", action="version", version=version_line())
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    argv = sys.argv[1:] if argv is None else argv
    for name, command in _commands(argv).items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        command.add_arguments(sub)
        sub.set_defaults(command=command)
    args = parser.parse_args(argv)
    try:
        chosen: Command = args.command
        return chosen.run(args)
    except KeyboardInterrupt:
        return 130


def version_line() -> str:
    """Which Headrace this is; the wheel may hold the hot path as C (docs/adr/0032)."""
    found = find_spec("gateway.life")
    is_compiled = found is not None and not (found.origin or "").endswith(".py")
    return f"headrace {__version__}{' (compiled)' if is_compiled else ''}"


def _commands(argv: list[str]) -> dict[str, Command]:
    """Those here; the rest too, unless it is plain which is wanted.

    A gateway at rest is small: it does not load what it will not run.
    """
    found: dict[str, Command] = dict(OWN)
    if argv and argv[0] in found:
        return found
    from gateway.doctor.command import DoctorCommand
    from gateway.tenants.command import KeysCommand

    found |= {"keys": KeysCommand(), "doctor": DoctorCommand()}
    if argv and argv[0] in found:
        return found
    from importlib.metadata import entry_points

    offered = sorted(entry_points(group=GROUP), key=lambda each: each.name)
    for entry in [each for each in offered if each.name in argv[:1]] or offered:
        loaded: Any = entry.load()
        found[entry.name] = loaded
    return found


def _read(path: str | None) -> str:
    if path is None:
        return ""
    return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")


def _said(args: argparse.Namespace) -> Settings:
    """What this process is told to be, by one that ends: see `gateway.apart`."""
    flags = {name: value for name, value in vars(args).items() if name != "command"}
    if args.profile is not None:
        flags["profile"] = asdict(read_profile(Path(args.profile).read_bytes()))
    return apart(settings_said, _read(args.settings), dict(os.environ), flags)


def _complain(error: Exception) -> int:
    sys.stderr.write(f"headrace: {error}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
