"""The command `headrace batch`: `run` is what a Job of Kubernetes runs, or anybody; `check` asks
whether that would work.

Exit codes of `run`: 0 every line was answered; 1 some were not, and are written out to be asked
again; 2 the input, the address or the key is wrong, and trying again will not help; 130
interrupted: the batch goes on, and the same command goes on with it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from serving.jobs import places
from serving.jobs.batch_run import BadInput, Ended, Job, refusal, run_batch
from serving.jobs.calls import Away, BadAddress, Calls, read_key

_ADDRESS = "HEADRACE_ENDPOINT"
_EXAMPLES = """\
examples:
  headrace batch run requests.jsonl --output answers.jsonl
  headrace batch run s3://bucket/requests.jsonl --output s3://bucket/answers.jsonl \\
      --endpoint http://headrace.models.svc:8000 --api-key-file /etc/headrace/key/key

It may be killed and started again at any moment: the same file, under the same name, is the same
batch. Exit codes: 0 all lines answered, 1 some not, 2 bad input.
"""


class BatchCommand:
    """`headrace batch`."""

    help = "have a file of requests answered as one batch, however often this is interrupted"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """`run`, and what it takes."""
        verbs = parser.add_subparsers(metavar="VERB", required=True)
        run = verbs.add_parser("run", help=self.help, description=self.help, epilog=_EXAMPLES,
                               formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        run.add_argument("input", metavar="INPUT.jsonl", help="a path, or a URL fsspec can open")
        run.add_argument("--output", required=True, metavar="OUT.jsonl",
                         help="for answers; errors go to OUT.errors.jsonl beside it")  # fmt: skip
        _add_access(run)
        run.add_argument("--completion-window", default="24h", metavar="TIME",
                         help="30m, 24h, 7d: the rest expires (%(default)s)")  # fmt: skip
        run.add_argument("--name", default="", help="tells this run of a file from earlier ones")
        run.add_argument("--poll", type=_seconds, default=5.0, metavar="SECONDS",
                         help="between looks at how far it is (%(default)s)")  # fmt: skip
        run.set_defaults(verb=self._run)
        told = "say whether the gateway takes batches, and from whoever has this key"
        check = verbs.add_parser("check", help=told, description=told)
        _add_access(check)
        check.set_defaults(verb=self._check)

    def run(self, args: argparse.Namespace) -> int:
        """See the module for what is returned."""
        return int(args.verb(args))

    def _check(self, args: argparse.Namespace) -> int:
        """Asks once."""
        try:
            answer = Calls(args.endpoint, read_key(args.api_key_file)).get("/v1/batches?limit=1")
        except (Away, BadAddress, OSError) as error:
            sys.stderr.write(f"headrace: {args.endpoint}: {error}\n")
            return 2
        if answer.status != 200:
            sys.stderr.write(f"headrace: {refusal(answer)}\n")
            return 2
        print(f"{args.endpoint} takes batches")
        return 0

    def _run(self, args: argparse.Namespace) -> int:
        job = Job(args.input, args.output, args.completion_window, args.name, args.poll)
        try:
            calls = Calls(args.endpoint, read_key(args.api_key_file))
            ended = run_batch(job, calls, Spoken(sys.stderr))
        except KeyboardInterrupt:
            sys.stderr.write("\nheadrace: the batch goes on; the same command goes on with it\n")
            return 130
        except (BadInput, BadAddress, OSError, ValueError, ImportError) as error:
            sys.stderr.write(f"headrace: {error}\n")
            return 2
        print(outcome(job, ended, args))
        return 0 if ended.is_whole else 1


batch_command = BatchCommand()


def _add_access(parser: argparse.ArgumentParser) -> None:
    """Where the gateway is, and who asks."""
    parser.add_argument("--endpoint", metavar="URL",
                        default=os.environ.get(_ADDRESS, "http://127.0.0.1:8000"),
                        help=f"the gateway (${_ADDRESS}, or %(default)s)")  # fmt: skip
    parser.add_argument("--api-key-file", metavar="FILE", help="a file that holds the key alone")


def outcome(job: Job, ended: Ended, args: argparse.Namespace) -> str:
    """What has come of it, and what to do next."""
    said = f"{ended.answered} of {ended.total} lines answered: {job.target}"
    if ended.is_whole:
        return said
    if not ended.failed:
        return f"{said}\nThe batch is {ended.status}: ask anew under another --name"
    again = places.beside(job.target, "again")
    words = ["headrace", "batch", "run", again, "--output", places.beside(job.target, "more")]
    words += ["--endpoint", args.endpoint]
    if args.api_key_file:
        words += ["--api-key-file", args.api_key_file]
    why = "" if ended.status == "completed" else f" (the batch is {ended.status})"
    return (
        f"{said}\n{ended.failed} not{why}; why is in {places.beside(job.target, 'errors')}\n"
        f"To ask for these again:\n  {shlex.join(words)}"
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.01 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("from 0.01 to 3600 seconds")
    return seconds


class Spoken:
    """On a terminal one line that moves; elsewhere a line now and then."""

    _EVERY_S = 10.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._moves = stream.isatty()
        self._began: tuple[float, int] | None = None
        self._said_at = float("-inf")
        self._kind = ""

    def step(self, text: str) -> None:
        """A line that stays."""
        self._stay(text)

    def progress(self, done: int, total: int) -> None:
        """How far it is, how fast, and how long that will take."""
        now = time.monotonic()
        if self._began is None:
            self._began = now, done
        began_at, began_with = self._began
        text = f"{done} of {total} lines" if total else "waiting to be read"
        is_last = bool(total) and done == total
        if done > began_with and now > began_at:
            rate = (done - began_with) / (now - began_at)
            text += f", {rate:.1f}/s" + (
                "" if is_last else f", {(total - done) / rate:.0f} s to go"
            )
        self._move("last" if is_last else "progress", text)

    def away(self, why: str, wait_s: float) -> None:
        """A line that the next one replaces."""
        self._move("away", f"waiting {wait_s:.0f} s for the gateway: {why}")

    def _move(self, kind: str, text: str) -> None:
        """Lines of one kind follow each other slowly where they stay; the last is said once."""
        is_new = kind != self._kind
        if kind == "last" and not is_new:
            return
        self._kind = kind
        if self._moves:
            self._stream.write(f"\r\x1b[2K{text}" + ("\n" if kind == "last" else ""))
            self._stream.flush()
            return
        now = time.monotonic()
        if is_new or now - self._said_at >= self._EVERY_S:
            self._said_at = now
            self._stay(text)

    def _stay(self, text: str) -> None:
        start = "\r\x1b[2K" if self._moves else ""
        self._stream.write(f"{start}headrace: {text}\n")
        self._stream.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on its own, as `python -m serving.jobs.command`."""
    parser = argparse.ArgumentParser(prog="headrace batch", description=batch_command.help)
    batch_command.add_arguments(parser)
    return batch_command.run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
