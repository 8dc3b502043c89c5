"""What arrives is what is stated, and what is printed is what was measured."""

import json
from pathlib import Path

import pytest

from tests.bench.routing.__main__ import main
from tests.bench.routing.cache import Arrival
from tests.bench.routing.engine import ReplicaSpec
from tests.bench.routing.figures import Figure, figures, ideal_hit_ratio
from tests.bench.routing.report import Record, WorkloadRecord, table, write
from tests.bench.routing.workloads import (
    TRACE,
    WORKLOADS,
    Source,
    Unavailable,
    closed_conversation,
    conversation,
    scaled,
)
from tests.bench.routing.world import Run, Served

NOWHERE = Path("nowhere")
GENERATED = ("groups-80", "hot-80", "siblings-80", "agents-80", "system-80", "strangers-80")


@pytest.mark.parametrize("name", GENERATED)
def test_a_workload_is_the_same_for_the_same_seed(name: str) -> None:
    workload = WORKLOADS[name]
    arrivals = workload.draw(Source(480, 3, NOWHERE))
    assert [each.number for each in arrivals] == list(range(480))
    assert [each.at_s for each in arrivals] == sorted(each.at_s for each in arrivals)
    assert all(len(each.blocks) >= -(-each.prompt_tokens // 512) for each in arrivals)
    assert arrivals == workload.draw(Source(480, 3, NOWHERE))
    assert arrivals != workload.draw(Source(480, 4, NOWHERE))


def test_the_load_is_a_share_of_the_measured_capacity() -> None:
    # One replica of 512 tokens a second and half a second a step: 1024 tokens take 2.5 s, so that
    # strangers of one block are served at 0.8 a second when they come too fast.
    spec = ReplicaSpec(512.0, 100, 1024, 0.5, 0.0, 0.0, attention_tokens=float("inf"))
    arrivals = [Arrival(n, float(n), 512, 1, (n,)) for n in range(200)]
    for load in (0.5, 0.8):
        drawn = scaled(arrivals, load, [spec])
        assert len(drawn) / drawn[-1].at_s == pytest.approx(0.8 * load, rel=0.02)
        assert [each.blocks for each in drawn] == [each.blocks for each in arrivals]


def test_a_client_thinks_for_what_is_left_of_the_gap() -> None:
    spec = ReplicaSpec(512.0, 100, 1024, 0.5, 0.0, 0.0, attention_tokens=float("inf"))
    arrivals = [
        Arrival(n, float(n), 512, 1, (n,), after=n - 20 if n >= 20 else None) for n in range(60)
    ]
    drawn = scaled(arrivals, 0.8, [spec])
    gap_s = drawn[20].at_s - drawn[0].at_s
    assert drawn[20].think_s == pytest.approx(gap_s - 1.0 - 0.5)
    assert drawn[19].think_s == 0.0


def test_agents_come_back_with_what_they_had_and_more() -> None:
    arrivals = WORKLOADS["agents-80"].draw(Source(400, 1, NOWHERE))
    by_number = {each.number: each for each in arrivals}
    followers = [each for each in arrivals if each.after is not None]
    assert len(followers) == 380
    for each in followers:
        before = by_number[each.after or 0]
        assert each.session == before.session
        assert each.blocks[: len(before.blocks)] == before.blocks
        assert each.prompt_tokens > before.prompt_tokens - 512
    assert len({each.blocks[:4] for each in arrivals}) == 1


def test_half_of_the_hot_load_shares_one_prefix_and_strangers_share_nothing() -> None:
    firsts = [each.blocks[0] for each in WORKLOADS["hot-80"].draw(Source(1000, 1, NOWHERE))]
    assert 430 < max(map(firsts.count, set(firsts))) < 570
    strangers = WORKLOADS["strangers-80"].draw(Source(200, 1, NOWHERE))
    assert ideal_hit_ratio(strangers) == 0.0


def test_siblings_come_sixteen_at_once() -> None:
    arrivals = WORKLOADS["siblings-80"].draw(Source(160, 1, NOWHERE))
    bursts: dict[float, list[tuple[int, ...]]] = {}
    for each in arrivals:
        bursts.setdefault(each.at_s, []).append(each.blocks[:12])
    assert len(bursts) == 10
    assert all(len(each) == 16 and len(set(each)) == 1 for each in bursts.values())


def a_trace(folder: Path, lines: int) -> None:
    rows = [
        {
            "timestamp": 3000 * (i // 4),
            "input_length": 1100,
            "output_length": 5,
            "hash_ids": [0, i, 99 + i],
        }
        for i in range(lines)
    ]
    (folder / TRACE).write_text("\n".join(map(json.dumps, rows)))


def test_a_trace_is_replayed_in_its_order_and_spread_within_its_steps(tmp_path: Path) -> None:
    a_trace(tmp_path, 40)
    arrivals = conversation(Source(40, 1, tmp_path))
    for number, each in enumerate(arrivals):
        assert number // 4 == int(each.at_s // 3)
    assert {each.blocks[1] for each in arrivals} == set(range(40))
    assert arrivals[0].prompt_tokens == 1100


def test_a_conversation_in_a_closed_loop_follows_who_holds_most_of_it(tmp_path: Path) -> None:
    ids = [[0, 1], [0, 2], [0, 1, 3], [0, 4], [0, 1, 3, 5], [0, 1, 6]]
    rows = [
        {"timestamp": 3000 * i, "input_length": 1100, "output_length": 5, "hash_ids": each}
        for i, each in enumerate(ids)
    ]
    (tmp_path / TRACE).write_text("\n".join(map(json.dumps, rows)))
    arrivals = closed_conversation(Source(6, 1, tmp_path))
    assert [each.after for each in arrivals] == [None, None, 0, None, 2, 4]


def test_a_trace_that_is_not_there_or_too_short_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=f"no {TRACE}"):
        conversation(Source(1, 1, tmp_path))
    a_trace(tmp_path, 3)
    with pytest.raises(Unavailable, match="only 3 requests"):
        conversation(Source(4, 1, tmp_path))


def test_figures_of_a_run_by_hand() -> None:
    served = [
        Served(Arrival(i, 1.0, 1000, 1, ()), 0, hit, 1.0, 1.0 + ttft, 9.0 + ttft)
        for i, (hit, ttft) in enumerate([(0, 1.0), (500, 2.0), (0, 3.0), (300, 10.0)])
    ]
    assert figures(Run(served, [3.0, 1.0])) == {
        Figure.MEAN: 4.0,
        Figure.P50: 2.0,
        Figure.P90: 10.0,
        Figure.P99: 10.0,
        Figure.DURATION: 12.0,
        Figure.HIT: 0.2,
        Figure.LOAD_CV: 0.5,
    }


def a_record() -> WorkloadRecord:
    def seeds(mean: float) -> list[dict[Figure, float]]:
        return [dict.fromkeys(Figure, mean + seed) for seed in range(3)]

    return WorkloadRecord("w", "about w", {"slow": seeds(5.0), "quick": seeds(1.0)})


def test_a_table_gives_the_best_first_with_its_range_over_seeds() -> None:
    lines = table(a_record()).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("| quick")
    assert "2.00 (1.00-3.00)" in lines[2]
    assert lines[3].startswith("| slow")


def test_a_record_is_a_page_and_every_seed(tmp_path: Path) -> None:
    record = Record("2030-01-02", {"commit": "abc"}, {"seeds": 3}, [a_record()], {"x": "no trace"})
    page = write(record, tmp_path)
    assert page.name == "2030-01-02-routing-abc.md"
    assert table(a_record()) in page.read_text()
    assert "x: skipped: no trace" in page.read_text()
    kept = json.loads(page.with_suffix(".json").read_text())
    assert kept["workloads"][0]["policies"]["slow"][2]["ttft_mean_s"] == 7.0


def test_the_command_prints_what_ran_and_says_what_could_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [
        "--requests",
        "64",
        "--seeds",
        "2",
        "--traces",
        str(tmp_path),
        "--policies",
        "lpwl,random",
    ]
    assert main([*few, "--workloads", "strangers-80"]) == 0
    assert "| lpwl" in capsys.readouterr().out
    assert main([*few, "--workloads", "strangers-80,conversation-80"]) == 1
    assert f"conversation-80: skipped: no {TRACE}" in capsys.readouterr().out
    assert main([*few, "--workloads", "conversation-80"]) == 2
