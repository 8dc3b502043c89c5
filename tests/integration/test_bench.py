"""`headrace bench`, `report` and the locustfile as processes, before a gateway and replicas."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest.record import Record, read_record
from tests.builders import MODEL
from tests.house import a_sim, run, running_house, until

LOCUSTFILE = Path(__file__).resolve().parents[2] / "loadtest" / "locustfile.py"
SLOW_WORKERS = """\
import gevent
from locust import events
from locust.runners import WorkerRunner


def slow(environment, **_):
    if isinstance(environment.runner, WorkerRunner):
        gevent.sleep(4)


events.init.add_listener(slow)

from loadtest.locustfile import ScenarioUser
"""
SHORT = """\
question: Does all of it work?
duration_s: 3
warm_up_s: 0.5
arrivals: {kind: poisson, rate_per_s: 20}
workload: {kind: multi-turn, turns: 2, think_s: 0.1, system_tokens: 64, output_tokens: 8}
objectives: {ttft_s: 5, e2e_s: 5}
allowed_late_s: 5
"""


async def command(*words: str) -> tuple[int, str]:
    """Exit code and output of a command of this environment."""
    environ = {**os.environ, "COLUMNS": "200"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *words,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environ,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        os.killpg(process.pid, signal.SIGKILL)  # Locust's workers too: they hold the pipe open
        await process.communicate()
        raise
    assert process.returncode is not None
    return process.returncode, output.decode()


def the_json(folder: Path) -> Path:
    (path,) = folder.glob("*.json")
    return path


def the_record(folder: Path) -> Record:
    return read_record(the_json(folder).read_bytes())


def the_page(folder: Path) -> str:
    (path,) = folder.glob("*.html")
    return path.read_text()


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    path = tmp_path / "short.yaml"
    path.write_text(SHORT)
    return str(path)


def test_a_run_agrees_with_the_gateway_and_the_engines(scenario: str, tmp_path: Path) -> None:
    async def law() -> None:
        async with running_house(replicas=[a_sim(), a_sim()]) as running:
            code, output = await command(
                "gateway", "bench", running.url, "--scenario", scenario, "--out", str(tmp_path)
            )
            assert code == 0, output
            await running.until_quiet()
            (done,) = the_record(tmp_path).runs
            assert done.figures.errors == {}
            assert done.figures.requests > 20
            assert set(done.by_label) == {"first turn", "later turn"}
            assert done.gateway is not None
            ours = done.everything
            assert done.gateway.requests == ours.requests
            assert sum(each.requests for each in done.replicas) == ours.requests
            assert sum(each.output_tokens for each in done.replicas) == ours.output_tokens
            assert sum(each.prompt_tokens for each in done.replicas) == ours.prompt_tokens
            assert ours.hit_ratio is not None
            assert done.figures.ttft_s is not None
            assert done.over_time
            assert "report:" in output
            assert "In flight by replica" in the_page(tmp_path)

    run(law(), within_s=110)


def test_a_search_and_a_comparison_of_what_it_tried(scenario: str, tmp_path: Path) -> None:
    async def law() -> None:
        async with running_house(replicas=[a_sim(max_num_seqs=4)]) as running:
            words = ["bench", running.url, "--scenario", scenario, "--out", str(tmp_path)]
            words += ["--search", "--duration-s", "1", "--rate", "60", "--ttft-ms", "0.001"]
            code, output = await command("gateway", *words)
            assert code == 0, output
            record = the_record(tmp_path)
            assert record.found is not None
            assert record.found.highest_met_per_s is None  # nobody answers in a microsecond
            assert "No rate that was tried" in output
            out = tmp_path / "again.md"
            words = ["report", str(the_json(tmp_path)), "--out", str(out)]
            code, output = await command("gateway", *words)
            assert code == 0, output
            assert "## Compared" in out.read_text()

    run(law(), within_s=110)


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["http://127.0.0.1:9"], 1, "cannot connect to http://127.0.0.1:9: "),
        (["ftp://127.0.0.1"], 2, "no http"),
        (["http://127.0.0.1:9", "--scenario", "nothing"], 2, "no scenario"),
        (["http://127.0.0.1:9", "--users", "0"], 2, "at least one user"),
        (["http://127.0.0.1:9", "--against", "nowhere.json"], 2, "nowhere.json"),
        (["http://127.0.0.1:9", "--repeat", "0"], 2, "--repeat: 0 is not above 0"),
        (["http://127.0.0.1:9", "--rate", "-1"], 2, "--rate: -1 is not above 0"),
        (["http://127.0.0.1:9", "--ttft-ms", "0"], 2, "--ttft-ms: 0 is not above 0"),
        (["http://127.0.0.1:9", "--share", "95"], 2, "--share: 95 is not within 0 and 1"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], code: int, complaint: str) -> None:
    async def law() -> None:
        ended, output = await command("gateway", "bench", *words)
        assert ended == code, output
        assert complaint in output

    run(law(), within_s=110)


def test_a_key_that_is_missing_or_refused_is_said(tmp_path: Path) -> None:
    (tmp_path / "tenants.yaml").write_text("tenants: []\n")

    async def law() -> None:
        async with running_house({"tenants": {"path": str(tmp_path)}}) as running:
            code, output = await command("gateway", "bench", running.url)
            assert code == 1
            assert "wants a key: put one into OPENAI_API_KEY" in output
            words = ["gateway", "bench", running.url, "--api-key-variable", "HOME"]
            code, output = await command(*words)
            assert code == 1
            assert "the key is refused (401)" in output

    run(law(), within_s=110)


def test_a_run_of_which_nothing_was_answered_is_no_report(scenario: str, tmp_path: Path) -> None:
    async def law() -> None:
        async with running_house() as running:
            words = [running.url, "--scenario", scenario, "--model", "another"]
            words += ["--out", str(tmp_path / "reports")]
            code, output = await command("gateway", "bench", *words)
            assert code == 1, output
            assert re.search(r"of \d+ requests was answered: \d+ x status_404", output), output

    run(law(), within_s=110)
    assert not (tmp_path / "reports").exists()


def test_a_generator_that_was_the_bottleneck_reports_nothing(tmp_path: Path) -> None:
    """Far more than one process can send: its requests leave late, and it says so."""

    async def law() -> None:
        async with running_house(replicas=[a_sim()]) as running:
            words = [running.url, "--scenario", str(much), "--out", str(tmp_path / "reports")]
            code, output = await command("gateway", "bench", *words)
            assert code == 3, output
            assert "no report: " in output

    much = tmp_path / "much.yaml"
    much.write_text(
        "question: How much?\nduration_s: 2\nwarm_up_s: 0\npatience_s: 1\n"
        "arrivals: {kind: poisson, rate_per_s: 20000}\nworkload: {kind: embeddings}\n"
    )
    run(law(), within_s=110)
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(("processes", "is_slow"), [(1, False), (2, False), (2, True)])
def test_under_locust_with_its_own_statistics(
    scenario: str, tmp_path: Path, processes: int, is_slow: bool
) -> None:
    """Also where workers are told to begin before they are set up: the master counts them ready."""
    locustfile = tmp_path / "slow_workers.py" if is_slow else LOCUSTFILE
    if is_slow:
        locustfile.write_text(SLOW_WORKERS)

    async def law() -> None:
        async with running_house(replicas=[a_sim()]) as running:
            folder = tmp_path / "reports"
            words = ["-f", str(locustfile), "--host", running.url, "--headless"]
            words += ["--scenario", scenario, "--report-folder", str(folder)]
            words += ["--csv", str(tmp_path / "locust"), "-u", str(processes)]
            if processes > 1:
                port = str(a_free_port())
                words += ["--processes", str(processes)]
                words += ["--master-bind-port", port, "--master-port", port]
            code, output = await command("locust", *words)
            assert code == 0, output
            assert "report: " in output, output
            (done,) = the_record(folder).runs
            assert done.generator.processes == processes
            assert done.figures.errors == {}
            assert done.gateway is not None
            assert done.everything.requests == done.gateway.requests
            rows = read_csv(tmp_path / "locust_stats.csv")
            assert {kind for kind, name in rows if name == "first turn"} == {
                "POST", "TTFT", "ITL", "TPOT", "GOOD",
            }  # fmt: skip
            posted = sum(
                int(rows[kind, name]["Request Count"]) for kind, name in rows if kind == "POST"
            )
            assert (
                posted == int(rows["", "Aggregated"]["Request Count"]) == done.everything.requests
            )

    run(law(), within_s=110)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "http://127.0.0.1:9"], "cannot connect to http://127.0.0.1:9: "),
        ([], "'' is no http or https URL: say --host"),
        (["--host", "http://127.0.0.1:9", "--scenario", "nothing"], "no scenario 'nothing'"),
    ],
)
def test_under_locust_what_is_wrong_is_one_line(words: list[str], said: str) -> None:
    async def law() -> None:
        code, output = await command("locust", "-f", str(LOCUSTFILE), "--headless", *words)
        assert code == 1, output
        assert said in output
        assert "Traceback" not in output

    run(law(), within_s=110)


def test_a_worker_that_dies_ends_the_run(tmp_path: Path) -> None:
    """Its share of the load is missing, so there is no report, and nobody waits for ever."""
    long = tmp_path / "long.yaml"
    long.write_text(SHORT.replace("duration_s: 3", "duration_s: 600"))

    async def law() -> None:
        async with running_house(replicas=[a_sim()]) as running:
            port = str(a_free_port())
            words = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE)]
            words += ["--host", running.url, "--scenario", str(long)]
            worker = [*words, "--worker", "--master-port", port]
            workers = [await asyncio.create_subprocess_exec(*worker) for _ in range(2)]
            master = ["--master", "--headless", "--expect-workers", "2", "-u", "2"]
            ending = asyncio.create_task(
                command(*words[2:], *master, "--master-bind-port", port)
            )  # fmt: skip
            try:
                await until(lambda: running.house.accounts.received > 3, within_s=60.0)
                workers[0].kill()
                code, output = await ending
            finally:
                for each in workers:
                    if each.returncode is None:
                        each.terminate()
                    await each.wait()
            assert code == 1, output
            assert "has gone with its share of the load" in output
            assert "report: " not in output.replace("no report: ", "")

    run(law(), within_s=110)


def test_the_locustfile_of_the_page_on_load_tests(tmp_path: Path) -> None:
    page = (LOCUSTFILE.parents[1] / "docs" / "load-testing.md").read_text()
    (code_block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "locustfile.py"
    path.write_text(code_block.replace("SmolLM2-135M-Instruct", MODEL))

    async def law() -> None:
        async with running_house() as running:
            words = ["-f", str(path), "--host", running.url, "--headless", "-u", "2"]
            words += ["--csv", str(tmp_path / "locust")]
            process = await asyncio.create_subprocess_exec(sys.executable, "-m", "locust", *words)
            try:
                table = tmp_path / "locust_stats.csv"
                await until(lambda: posted(table) >= 2, within_s=90.0)
                process.terminate()
                assert await process.wait() == 0
            finally:
                if process.returncode is None:
                    process.kill()
            rows = read_csv(table)
            assert int(rows["POST", "chat"]["Failure Count"]) == 0
            assert ("TTFT", "chat") in rows

    run(law(), within_s=110)


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def posted(path: Path) -> int:
    """Chats so far, by Locust's statistics, which are written a second after it starts."""
    rows = read_csv(path) if path.exists() else {}
    return int(rows.get(("POST", "chat"), {}).get("Request Count", 0))


def read_csv(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open() as lines:
        return {(row["Type"], row["Name"]): row for row in csv.DictReader(lines)}


def test_recorded_traffic_is_played_again(tmp_path: Path) -> None:
    async def law() -> None:
        traffic = tmp_path / "traffic.jsonl"
        async with running_house({"account": {"recording": str(traffic)}}) as running:
            words = [running.url, "--duration-s", "2", "--rate", "10", "--out", str(tmp_path / "a")]
            code, output = await command("gateway", "bench", *words)
            assert code in (0, 3), output  # whether reported or refused, it was traffic
        lines = [json.loads(line) for line in traffic.read_text().splitlines()]
        asked: list[dict[str, Any]] = lines[1:]
        assert len(asked) > 10
        again = tmp_path / "again.yaml"
        again.write_text(
            "question: Again?\nduration_s: 2\nwarm_up_s: 0\nallowed_late_s: 5\n"
            "arrivals: {kind: own-times}\n"
            f"workload: {{kind: replay, trace: {traffic}}}\n"
        )
        async with running_house() as running:
            words = [running.url, "--scenario", str(again), "--out", str(tmp_path / "b")]
            code, output = await command("gateway", "bench", *words)
            assert code == 0, output
            (done,) = the_record(tmp_path / "b").runs
            assert done.everything.requests == len(asked)
            assert done.everything.errors == {}
            assert done.everything.output_tokens == sum(each["output_tokens"] for each in asked)
            tokens = sum(each["prompt_tokens"] for each in asked)
            assert done.everything.prompt_tokens == pytest.approx(tokens, rel=0.02)
            hits = sum(each["cached_tokens"] for each in asked) / tokens
            assert hits > 0.05
            assert done.everything.hit_ratio == pytest.approx(
                hits, abs=0.1
            )  # what lies between marks

    run(law(), within_s=110)
