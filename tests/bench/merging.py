"""Small calls sharing upstream calls, on against off.

    python -m tests.bench.merging http://127.0.0.1:9001 [more replicas] [--seconds 5] [--rounds 3]

Two gateways before the same replicas, one that merges and one that does not; 1, 8 and 64 callers in
a closed loop, each with one text of its own at a time, the two taking turns. Tells texts per second
and how long a call took. Answers are checked: every caller must have got one vector.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import yaml

from tests.bench.machine import describe
from tests.bench.processes import Cores, free_ports, running

ROOT: Final = Path(__file__).parents[2]
CALLERS: Final = (1, 8, 64)
WORDS: Final = ("river", "stone", "lantern", "copper", "meadow", "harvest", "signal", "timber")
START_S: Final = 20.0


def text(rng: Random) -> str:
    """A sentence or two."""
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(8, 40)))


class Wire:
    """One kept connection. A client library would cost more than what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def post(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        """The answer's JSON. Raises ValueError for any status but 200."""
        body = json.dumps(document).encode()
        self._writer.write(
            b"POST %b HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (path.encode(), len(body), body)
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        answer: dict[str, Any] = json.loads(await self._reader.readexactly(length))
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise ValueError(f"{head[:40]!r}: {answer}")
        return answer

    def close(self) -> None:
        """No more."""
        self._writer.close()


async def call(wire: Wire, model: str, rng: Random, *, ids: bool) -> float:
    """One call; how long it took, in seconds."""
    item = [rng.randrange(1000) for _ in range(rng.randrange(10, 50))] if ids else text(rng)
    document = {"model": model, "input": item}
    begun = time.perf_counter()
    answer = await wire.post("/v1/embeddings", document)
    took = time.perf_counter() - begun
    if len(answer["data"]) != 1:
        raise ValueError("a caller was answered with what is not its own")
    return took


async def measure(
    url: str, model: str, callers: int, args: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """A closed loop for so long."""
    took: list[float] = []
    where = urlsplit(url)

    async def caller(number: int) -> None:
        rng = Random(f"{seed} {number}")
        wire = Wire(*await asyncio.open_connection(where.hostname, where.port))
        while time.perf_counter() < ends_at:
            took.append(await call(wire, model, rng, ids=args.ids))
        wire.close()

    begun = time.perf_counter()
    ends_at = begun + args.seconds
    await asyncio.gather(*(caller(number) for number in range(callers)))
    span = time.perf_counter() - begun
    took.sort()
    return {
        "callers": callers,
        "texts_per_s": len(took) / span,
        "p50_s": statistics.median(took),
        "p99_s": took[int(len(took) * 0.99)],
        "calls": len(took),
    }


def until_ready(url: str) -> None:
    """Raises TimeoutError."""
    ends_at = time.monotonic() + START_S
    while time.monotonic() < ends_at:
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{url} is not ready")


def main() -> int:
    """Measure, print a table, and write the raw figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replicas", nargs="+", metavar="URL")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--ids", action="store_true", help="token ids for texts: a simulator has no tokenizer"
    )
    parser.add_argument("--tokenizer", help="the model's folder, where the replicas do not say it")
    parser.add_argument("--out", metavar="FILE", help="the raw figures, as JSON")
    args = parser.parse_args()
    listed = httpx.get(f"{args.replicas[0]}/v1/models", trust_env=False).json()
    model = listed["data"][0]["id"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        ports = dict(zip(("off", "on"), free_ports(2), strict=True))
        children = []
        for name, port in ports.items():
            settings = Path(folder) / f"{name}.yaml"
            document: dict[str, Any] = {
                "accept": {"port": port},
                "merge": {"enabled": name == "on"},
                "fleet": {"replicas": args.replicas},
                "account": {"access_log": "off"},
            }
            if args.tokenizer:
                document["tokens"] = {"folder": args.tokenizer}
            settings.write_text(yaml.safe_dump(document))
            command = [sys.executable, "-m", "gateway", "gateway", "--settings", str(settings)]
            children.append((name, command))
        with ExitStack() as started:
            for name, command in children:
                started.enter_context(
                    running(
                        name, command, core=Cores.allot().subject, folder=Path(folder), root=ROOT
                    )
                )
            for port in ports.values():
                until_ready(f"http://127.0.0.1:{port}")
            for round_ in range(args.rounds):
                for callers in CALLERS:
                    for name in ("off", "on") if round_ % 2 else ("on", "off"):
                        url = f"http://127.0.0.1:{ports[name]}"
                        found = asyncio.run(measure(url, model, callers, args, round_))
                        rows.append({"merge": name, "round": round_, **found})
                        print(rows[-1], flush=True)
    print_table(rows)
    if args.out:
        told = {"machine": describe(ROOT), "model": model, "argv": sys.argv[1:], "rows": rows}
        Path(args.out).write_text(json.dumps(told, indent=1))
    return 0


def print_table(rows: list[dict[str, Any]]) -> None:
    """Medians over rounds, and the range."""
    print("| callers | merge | texts/s | p50 ms | p99 ms |\n|---|---|---|---|---|")
    for callers in CALLERS:
        for name in ("off", "on"):
            mine = [row for row in rows if (row["callers"], row["merge"]) == (callers, name)]
            rates = sorted(row["texts_per_s"] for row in mine)
            p50 = statistics.median(row["p50_s"] for row in mine) * 1e3
            p99 = statistics.median(row["p99_s"] for row in mine) * 1e3
            print(
                f"| {callers} | {name} | {statistics.median(rates):.1f} "
                f"({rates[0]:.1f} to {rates[-1]:.1f}) | {p50:.1f} | {p99:.1f} |"
            )


if __name__ == "__main__":
    sys.exit(main())
