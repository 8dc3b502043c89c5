"""`headrace bench` beside two witnesses of the same run: the engines' own metrics, and aiperf.

    python -m tests.bench.witnesses [--engine sim --replicas 16] [--record]

Replicas and a gateway are started (`headrace up`). Two clients then load them at once, each a
closed loop of as many users with prompts and replies of the same lengths: `headrace bench`, and
aiperf from PyPI, installed apart. What served them is the same, request by request in turn, so
their means must agree, as far as chance lets them. All that both have sent is what the engines'
metrics have counted: requests and output tokens must be equal, and times as close as a gateway and
two clients' processes allow. aiperf is given texts of ours, and counts tokens as the server does.

vLLM's clock runs from the request as its server has read it to the token as it left the engine. On
a machine whose cores the engines want for themselves, the way in and the way out wait for one: tens
of milliseconds a request, whatever its length. So prompts are long unless said otherwise, and the
processes in which vLLM computes give way (`nice`) to its own servers, which elsewhere have cores
beside them: their work is no less, and nobody's clock is touched.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from loadtest.record import Run, read_record
from loadtest.workloads import LongContext
from tests.bench.machine import describe
from tests.bench.processes import engines_give_way, free_ports, tree_of

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"
AIPERF: Final = "0.13.0"
CLOSE: Final = 0.05
SEED: Final = 99
TEXTS: Final = 4000
MODEL: Final = "SmolLM2-135M-Instruct"
START_S: Final = 300.0

SCENARIO: Final = """\
question: Do three witnesses agree?
duration_s: {seconds}
warm_up_s: 5
patience_s: 120
allowed_late_s: 1
arrivals: {{kind: users, users: {users}}}
workload: {{kind: long-context, prompt_tokens: {prompt}, output_tokens: {output}}}
objectives: {{ttft_s: 20}}
"""


@dataclass(frozen=True, slots=True)
class Means:
    """Milliseconds; what a witness does not tell is None."""

    name: str
    requests: int
    output_tokens: int
    ttft: float | None
    tpot: float | None
    whole: float | None


def main() -> int:
    """0 where all agree within 5 %, 1 where not."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.witnesses", description=__doc__)
    parser.add_argument("--engine", choices=("vllm-cpu", "sim"), default="vllm-cpu")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--engine-arg", action="append", default=[], help="as `headrace up` has it")
    parser.add_argument("--users", type=int, default=1, help="of each client")
    parser.add_argument("--prompt-tokens", type=int, default=800)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--record", action="store_true", help="keep a copy in docs/benchmarks")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _up(args, Path(folder)) as (url, engines):
        before, passed = [_exposed(each) for each in engines], [_exposed(url)]
        run, theirs = _both(args, url, Path(folder))
        time.sleep(1.0)  # replies that were under way at their end
        after, passed = [_exposed(each) for each in engines], [*passed, _exposed(url)]
    ours = _ours(run)
    together = _sum("both clients", [_everything(run), theirs])
    witness = _engines(before, after)
    gateway, waited = _gateway(*passed)
    text = _page(args, [ours, theirs, together, gateway, waited, witness])
    print(text)
    if args.record:
        name = f"{time.strftime('%Y-%m-%d')}-witnesses-{args.engine}-{describe(ROOT)['commit']}.md"
        (ROOT / "docs" / "benchmarks" / name).write_text(text)
    return 0 if "beyond" not in text else 1


@contextmanager
def _up(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A stack of its own: the gateway's address, and the replicas'."""
    (port,) = free_ports(1)
    words = ["up", "--engine", args.engine, "--replicas", str(args.replicas), "--port", str(port)]
    words += [f"--engine-arg={each}" for each in args.engine_arg]
    environ = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    log = folder / "up.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *words],
            cwd=ROOT, env=environ, stdout=sink, stderr=subprocess.STDOUT,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        healthy = _wait(url, process, log, args.replicas)
        engines_give_way(tree_of(process.pid))
        yield url, healthy
    finally:
        process.terminate()
        process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, replicas: int) -> list[str]:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and process.poll() is None:
        try:
            fleet = json.loads(_get(url + "/debug/fleet"))["replicas"]
        except OSError:
            time.sleep(0.5)
            continue
        healthy = [each["url"] for each in fleet if each["health"] == "healthy"]
        if len(healthy) >= replicas:
            return healthy
        time.sleep(0.5)
    raise SystemExit(f"the replicas did not come up:\n{log.read_text()[-2000:]}")


def _both(args: argparse.Namespace, url: str, folder: Path) -> tuple[Run, Means]:
    """Both clients at once."""
    aiperf = _aiperf()
    scenario = folder / "scenario.yaml"
    scenario.write_text(
        SCENARIO.format(
            seconds=args.seconds, users=args.users,
            prompt=args.prompt_tokens, output=args.output_tokens,
        )
    )  # fmt: skip
    texts = folder / "texts.jsonl"
    texts.write_text("".join(_texts(args.prompt_tokens)))
    bench = [sys.executable, "-m", "gateway", "bench", url, "--scenario", str(scenario)]
    bench += ["--model", MODEL, "--out", str(folder / "ours")]
    other = [
        str(aiperf), "profile", "-m", MODEL, "--url", url, "--endpoint-type", "chat",
        "--streaming", "--concurrency", str(args.users), "--benchmark-duration", str(args.seconds),
        "--input-file", str(texts), "--custom-dataset-type", "single_turn",
        "--extra-inputs", "ignore_eos:true",
        "--extra-inputs", f"max_completion_tokens:{args.output_tokens}",
        "--use-server-token-count", "--tokenizer", str(_tokenizer()), "--ui", "none",
        "--no-server-metrics", "--no-gpu-telemetry", "--workers-max", "1",
        "--record-processor-service-count", "1",
        "--output-artifact-dir", str(folder / "theirs"),
    ]  # fmt: skip
    environ = os.environ | {"NO_PROXY": "*"}
    log = folder / "aiperf.log"
    with log.open("wb") as sink, _apart_from_us(other, environ, sink) as theirs:
        with _apart_from_us(bench, environ, subprocess.PIPE) as mine:
            said, _ = mine.communicate()
        status = theirs.wait(args.seconds + 300)
    if mine.returncode:
        raise SystemExit(f"headrace bench: {said.decode()[-2000:]}")
    if status:
        raise SystemExit(f"aiperf: {log.read_text()[-3000:]}")
    (record,) = (folder / "ours").glob("*.json")
    (run,) = read_record(record.read_bytes()).runs
    (exported,) = (folder / "theirs").rglob("profile_export_aiperf.json")
    return run, _theirs(json.loads(exported.read_bytes()))


@contextmanager
def _apart_from_us(
    command: list[str], environ: dict[str, str], sink: IO[bytes] | int
) -> Iterator[subprocess.Popen[bytes]]:
    """In a session of its own: the kernel shares its cores out among sessions, and a client is not
    to wait for the ten processes of the other. It is ended with the block, however that ends."""
    with subprocess.Popen(
        command, env=environ, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def _tokenizer() -> Path:
    """The model's, which aiperf loads whatever it is told not to count."""
    folder = CACHE / "models" / MODEL
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there: run `headrace up` once, which brings the model")
    return folder


def _texts(prompt_tokens: int) -> Iterator[str]:
    """Prompts as our own client makes them, but others."""
    for number in range(TEXTS):
        (call,) = next(LongContext(prompt_tokens).session(SEED, number)).calls
        yield json.dumps({"text": call.body["messages"][0]["content"]}) + "\n"


def _aiperf() -> Path:
    """Its command, from a virtual environment of its own beside other peers'."""
    home = CACHE / "bench" / f"aiperf-{AIPERF}"
    command = home / "bin" / "aiperf"
    if not command.exists():
        print(f"installing aiperf {AIPERF}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "pip"), "install", "--quiet", f"aiperf=={AIPERF}"]
        subprocess.run(pip, check=True)
    return command


def _ours(run: Run) -> Means:
    of = run.figures
    ttft, tpot, whole = (
        None if each is None else each.mean * 1000 for each in (of.ttft_s, of.tpot_s, of.e2e_s)
    )
    return Means("headrace bench, its window", of.requests, of.output_tokens, ttft, tpot, whole)


def _everything(run: Run) -> Means:
    of = run.everything
    ttft, tpot, whole = (
        None if each is None else each.mean * 1000 for each in (of.ttft_s, of.tpot_s, of.e2e_s)
    )
    return Means("headrace bench", of.requests, of.output_tokens, ttft, tpot, whole)


def _theirs(told: dict[str, Any]) -> Means:
    def mean(name: str) -> float:
        return float(told[name]["avg"])

    return Means(
        "aiperf", int(mean("request_count")), round(mean("total_output_tokens")),
        mean("time_to_first_token"), mean("inter_token_latency"), mean("request_latency"),
    )  # fmt: skip


def _sum(name: str, parts: list[Means]) -> Means:
    """Means weighed by requests."""
    requests = sum(each.requests for each in parts)

    def mean(values: list[float | None]) -> float | None:
        known = [
            (value, each.requests)
            for value, each in zip(values, parts, strict=True)
            if value is not None
        ]
        total = sum(weight for _, weight in known)
        return sum(value * weight for value, weight in known) / total if total else None

    return Means(
        name, requests, sum(each.output_tokens for each in parts),
        mean([each.ttft for each in parts]), mean([each.tpot for each in parts]),
        mean([each.whole for each in parts]),
    )  # fmt: skip


def _engines(before: list[dict[str, float]], after: list[dict[str, float]]) -> Means:
    """What vLLM's metrics have grown by."""
    return Means(
        "the engines' metrics",
        round(_grown(before, after, "vllm:request_success_total")),
        round(_grown(before, after, "vllm:generation_tokens_total")),
        _mean(before, after, "vllm:time_to_first_token_seconds"),
        _mean(before, after, "vllm:request_time_per_output_token_seconds"),
        _mean(before, after, "vllm:e2e_request_latency_seconds"),
    )


def _gateway(before: dict[str, float], after: dict[str, float]) -> tuple[Means, Means]:
    """The same of the gateway's, and what of it requests waited there for a replica."""
    had, has = [before], [after]
    requests = round(_grown(had, has, "gateway_request_duration_seconds_count"))
    tokens = round(_grown(had, has, "gateway_output_tokens_total"))
    passed = Means(
        "the gateway's metrics", requests, tokens,
        _mean(had, has, "gateway_time_to_first_token_seconds"),
        _mean(had, has, "gateway_time_per_output_token_seconds"),
        _mean(had, has, "gateway_request_duration_seconds"),
    )  # fmt: skip
    waited = _mean(had, has, "gateway_queue_time_seconds")
    return passed, Means("of which it held them", requests, tokens, waited, None, waited)


def _grown(before: list[dict[str, float]], after: list[dict[str, float]], name: str) -> float:
    return sum(b.get(name, 0.0) - a.get(name, 0.0) for a, b in zip(before, after, strict=True))


def _mean(before: list[dict[str, float]], after: list[dict[str, float]], name: str) -> float | None:
    count = _grown(before, after, name + "_count")
    return _grown(before, after, name + "_sum") / count * 1000 if count else None


def _exposed(url: str) -> dict[str, float]:
    """Series by name, labels summed up."""
    sums: dict[str, float] = {}
    for name, value in re.findall(
        r"^([a-z0-9_:]+)(?:\{[^}]*\})? (\S+)$", _get(url + "/metrics"), re.M
    ):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def _get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as reply:
        return str(reply.read().decode())


def _page(args: argparse.Namespace, rows: list[Means]) -> str:
    ours, theirs, together, _, _, engines = rows
    machine = describe(ROOT)
    lines = [
        f"# Three witnesses of one load: {args.replicas} replicas of {args.engine}",
        "",
        f"{time.strftime('%Y-%m-%d')}, {machine['processor']}, {machine['cores']} cores, "
        f"Python {machine['python']}, commit {machine['commit']}, aiperf {AIPERF}. "
        f"`python -m tests.bench.witnesses {' '.join(sys.argv[1:])}`. Means in ms.",
        "",
        "| as counted by | requests | output tokens | TTFT | TPOT | end to end |",
        "| --- | --: | --: | --: | --: | --: |",
        *(_row(each) for each in rows),
        f"| difference of the clients | | | {_apart(ours.ttft, theirs.ttft)} "
        f"| {_apart(ours.tpot, theirs.tpot)} | {_apart(ours.whole, theirs.whole)} |",
        f"| both, from the engines | {together.requests - engines.requests:+d} "
        f"| {together.output_tokens - engines.output_tokens:+d} "
        f"| {_apart(together.ttft, engines.ttft)} | {_apart(together.tpot, engines.tpot)} "
        f"| {_apart(together.whole, engines.whole)} |",
        "",
    ]
    return "\n".join(lines)


def _row(each: Means) -> str:
    cells = [
        "" if value is None else f"{value:.1f}" for value in (each.ttft, each.tpot, each.whole)
    ]
    return f"| {each.name} | {each.requests} | {each.output_tokens} | {' | '.join(cells)} |"


def _apart(one: float | None, other: float | None) -> str:
    if one is None or not other:
        return ""
    apart = one / other - 1.0
    return f"{apart:+.1%}" + ("" if abs(apart) <= CLOSE else ", beyond 5 %")


if __name__ == "__main__":
    sys.exit(main())
