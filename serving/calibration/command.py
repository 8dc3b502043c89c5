"""The `calibrate` command: measure what there is time for, fit, say how well it fits, write.

All points are measured once before any is measured again, so that a machine whose pace drifts is
not mistaken for one that is slow at long prompts; of each point the median counts.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from serving.calibration.engine import CalibratedEngine, EngineError
from serving.calibration.fit import Row, errors, fit, predicted_s
from serving.calibration.measure import Bench
from serving.calibration.points import Limits, Point, plan
from serving.machine import look
from serving.sim.timing import EngineShape, Origin, Profile, StepTiming

MOST_PASSES: Final = 5
ASSUMED_STEP_TOKENS: Final = 2048
ASSUMED_SEQUENCES: Final = 256
_TENSOR: Final = re.compile(r"-tp([0-9]{1,4})\b")


class CalibrateCommand:
    """The `calibrate` command of `headrace`."""

    help = "measure a running engine and write a profile for simulator, planner and gateway"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("url", help="of the engine, such as http://127.0.0.1:9001; idle")
        parser.add_argument("--model", help="the name it serves it under (the first it lists)")
        parser.add_argument("--write", metavar="FILE", help="(NAME-DATE.json)")
        parser.add_argument("--name", help="of the profile (from the model's name)")
        parser.add_argument(
            "--seconds", type=float, default=240.0, help="begin nothing after this (%(default)s)"
        )
        parser.add_argument("--seed", type=int, default=0, help="of the prompts (%(default)s)")
        parser.add_argument("--machine", help="what it runs on (this machine, if it is here)")
        parser.add_argument(
            "--max-num-seqs", type=int, default=ASSUMED_SEQUENCES, metavar="N",
            help="the engine's setting, which it does not tell (%(default)s)",
        )  # fmt: skip
        parser.add_argument(
            "--max-num-batched-tokens", type=int, default=ASSUMED_STEP_TOKENS, metavar="N",
            help="the same (%(default)s)",
        )  # fmt: skip

    def run(self, args: argparse.Namespace) -> int:
        """Measure and write. 1 if the engine does not answer as one, 2 for a URL that is none."""
        console = Console(stderr=True)
        try:
            engine = CalibratedEngine(args.url, args.model)
        except (EngineError, ValueError) as error:
            print(f"headrace calibrate: {error}", file=sys.stderr)
            return 2
        try:
            profile, rows = asyncio.run(_calibrate(engine, args, console))
        except EngineError as error:
            print(f"headrace calibrate: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        target = Path(args.write or f"{profile.name}-{_today()}.json")
        target.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n")
        console.print(_table(profile.timing, rows))
        print(f"written: {target}", file=sys.stderr)
        return 0


async def _calibrate(
    engine: CalibratedEngine, args: argparse.Namespace, console: Console
) -> tuple[Profile, list[Row]]:
    facts = await engine.look()
    limits = Limits(
        facts.max_model_len, facts.block_size, facts.block_size * facts.blocks,
        args.max_num_seqs, args.max_num_batched_tokens,
    )  # fmt: skip
    bench = Bench(engine, args.max_num_batched_tokens, args.seed)
    fingerprint = await engine.fingerprint()
    rows = await _measure(bench, plan(limits), args.seconds, console)
    timing = fit(rows)
    off, most = errors(timing, rows)
    name = args.name or re.sub(r"[^a-z0-9.]+", "-", Path(engine.model).name.lower()).strip("-")
    tensor = _TENSOR.search(fingerprint)
    origin = Origin(
        date=_today(),
        machine=args.machine or _machine(engine.host),
        model=engine.model,
        engine=fingerprint or "not said",
        how=" ".join(["headrace calibrate", *_said(args)]),
        tensor_parallel=int(tensor[1]) if tensor else 1,
        points=len(rows),
        median_error=round(off, 4),
        largest_error=round(most, 4),
    )
    shape = EngineShape(
        facts.block_size,
        facts.blocks,
        args.max_num_seqs,
        args.max_num_batched_tokens,
        facts.max_model_len,
    )
    note = (
        f"The median of each of {len(rows)} points. The engine does not tell max_num_seqs and "
        "max_num_batched_tokens: they are as given."
    )
    return Profile(name, "measured", note, _rounded(timing), shape, origin), rows


async def _measure(
    bench: Bench, points: Sequence[Point], seconds: float, console: Console
) -> list[Row]:
    """The median of what each point took. Raises EngineError if nothing could be measured."""
    until = time.monotonic() + seconds
    seen: dict[Point, list[Row]] = {}
    trouble = None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=MOST_PASSES * len(points))
        for number, point in ((n, point) for n in range(MOST_PASSES) for point in points):
            if time.monotonic() >= until:
                break
            progress.update(task, description=f"pass {number + 1}: {point}", advance=1)
            try:
                seen.setdefault(point, []).append(await bench.measure(point))
            except EngineError as error:
                trouble = error
    rows = [_middle(rows) for rows in seen.values() if rows]
    if not rows:
        raise trouble or EngineError("there was no time to measure anything")
    return rows


def _middle(rows: Sequence[Row]) -> Row:
    middle = median(row.seconds for row in rows)
    first = rows[0]
    return Row(middle, first.work, first.steps, first.with_arrival, first.what)


def _rounded(timing: StepTiming) -> StepTiming:
    """No more digits than mean something."""
    values: Mapping[str, float] = msgspec.structs.asdict(timing)
    return StepTiming(**{name: float(f"{value:.4g}") for name, value in values.items()})


def _table(timing: StepTiming, rows: Sequence[Row]) -> Table:
    table = Table("work", "measured ms", "fitted ms", "off by")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        said = predicted_s(timing, row)
        off = f"{(said / row.seconds - 1) * 100:+.0f} %"
        table.add_row(row.what, f"{row.seconds * 1e3:.1f}", f"{said * 1e3:.1f}", off)
    return table


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _machine(host: str) -> str:
    """This machine in a line, if the engine is on it."""
    if host not in ("127.0.0.1", "localhost", "::1"):
        return "not said"
    machine = look()
    if machine.gpus:
        return f"{len(machine.gpus)} x {machine.gpus[0].name}"
    return f"{len(machine.cores)} cores, {_processor()}"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def _said(args: argparse.Namespace) -> list[str]:
    words = [args.url, f"--seconds {args.seconds:g}", f"--seed {args.seed}"]
    words.append(f"--max-num-seqs {args.max_num_seqs}")
    return [*words, f"--max-num-batched-tokens {args.max_num_batched_tokens}"]


command = CalibrateCommand()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on its own, as `python -m serving.calibration.command`."""
    parser = argparse.ArgumentParser(prog="headrace calibrate", description=command.help)
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
