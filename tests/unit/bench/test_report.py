"""What is printed and what is kept say the same, and leave nothing out."""

import json
from pathlib import Path

from tests.bench.figures import Figure, verdicts
from tests.bench.report import Record, SubjectRecord, notes, table, verdict_lines, write


def a_subject(name: str, us: float, **changed: float) -> SubjectRecord:
    rounds = [dict.fromkeys(Figure, us + round_) for round_ in range(3)]
    slices = dict.fromkeys((Figure.UNARY, Figure.CHUNK, Figure.LARGE), [us / 2] * 2 + [us] * 18)
    facts = {"reads_per_event": 1.0, "asides_per_request": 0.0} | changed
    return SubjectRecord(name, "1.0", 50 << 20, 60 << 20, rounds, slices, **facts)


def a_record(*subjects: SubjectRecord) -> Record:
    judged = {
        "when calm": {subject.name: subject.calm() for subject in subjects},
        "over all": {subject.name: subject.medians() for subject in subjects},
    }
    return Record(
        date="2030-01-02",
        machine={"commit": "abc", "cores": "2"},
        set_up={"rounds": 3},
        subjects=subjects,
        skipped={"nginx": "not installed"},
        verdicts={
            way: verdicts(costs, ours="headrace", peers=("smg",)) for way, costs in judged.items()
        },
    )


def test_the_table_gives_the_calm_cost_the_median_and_the_range_of_every_subject() -> None:
    lines = table(a_record(a_subject("headrace", 40.0), a_subject("smg", 200.0))).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "headrace" in lines[2]
    assert lines[2].count("41.0 (40.0-42.0)") == 5
    assert lines[2].count("20.0; 41.0 (40.0-42.0)") == 3
    assert lines[3].count("201 (200-202)") == 5
    assert lines[3].count("100; 201 (200-202)") == 3
    assert lines[3].rstrip(" |").endswith("60")


def test_a_target_is_told_met_or_missed_with_its_ratio() -> None:
    lines = verdict_lines(a_record(a_subject("headrace", 119.0), a_subject("smg", 199.0)).verdicts)
    assert lines == [
        "when calm, MISSED: unary 2 KB: 0.60 of smg (59.5 us), target 0.5",
        "when calm, met: streamed chunk: 0.60 of smg (59.5 us), target 0.85",
        "when calm, met: unary 128 KB: 59.5 us, limit 250 us",
        "over all, MISSED: unary 2 KB: 0.60 of smg (120.0 us), target 0.5",
        "over all, met: streamed chunk: 0.60 of smg (120.0 us), target 0.85",
        "over all, met: unary 128 KB: 120.0 us, limit 250 us",
    ]


def test_what_makes_a_figure_doubtful_is_said() -> None:
    merged = a_subject("headrace", 40.0, reads_per_event=0.8)
    chatty = a_subject("smg", 40.0, asides_per_request=2.0)
    assert notes(a_record(merged, chatty)) == [
        "nginx: skipped: not installed",
        "headrace: chunks arrived merged (0.800 reads an event)",
        "smg: made 2.0 further calls on the replicas for each request",
    ]


def test_a_record_keeps_every_round_beside_its_page(tmp_path: Path) -> None:
    page = write(a_record(a_subject("headrace", 40.0), a_subject("smg", 200.0)), tmp_path)
    assert page.name == "2030-01-02-hotpath-abc.md"
    assert table(a_record(a_subject("headrace", 40.0), a_subject("smg", 200.0))) in page.read_text()
    raw = json.loads(page.with_suffix(".json").read_text())
    kept = [each["cpu_us_per_chunk"] for each in raw["subjects"][1]["rounds"]]
    assert kept == [200.0, 201.0, 202.0]


def test_a_record_is_not_written_over_by_the_next_of_its_commit(tmp_path: Path) -> None:
    pages = [write(a_record(a_subject("headrace", cost)), tmp_path) for cost in (40.0, 50.0, 60.0)]
    assert [page.stem[-8:] for page in pages] == ["path-abc", "th-abc-2", "th-abc-3"]
    assert f"[{pages[1].stem}.json]" in pages[1].read_text()
    assert len(list(tmp_path.iterdir())) == 6
