"""A table scored through a gateway by Spark, on this machine."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from serving.jobs.rows import Scoring
from tests.builders import MODEL
from tests.house import RunningHouse
from tests.integration.test_job_rows import echo, lengths
from tests.scripted_gateway import Asked, Reply, scripted_gateway

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
MAIN = Path(__file__).parents[2] / "serving/jobs/spark_main.py"


def test_a_table_is_scored_through_a_gateway(spark: Any, house: RunningHouse) -> None:
    from serving.jobs.spark import score

    rows = [(number, f"text {number}" if number % 10 else None) for number in range(200)]
    table = spark.createDataFrame(rows, "id int, text string").repartition(6)
    scoring = Scoring(house.url, MODEL, parameters={"max_tokens": 3}, concurrency=8)
    found = score(table, "text", scoring).collect()
    assert sorted((row.id, row.text) for row in found) == rows
    for row in found:
        assert row.error is None
        assert (row.answer is None) == (row.text is None)
        assert (row.completion_tokens in (1, 2, 3)) == (row.text is not None)
    assert house.house.accounts.received == 180


def test_embeddings_are_columns_too_and_go_many_to_a_call(spark: Any, house: RunningHouse) -> None:
    from serving.jobs.spark import score

    table = spark.range(100).selectExpr("id", "concat('t', id) as text").repartition(2)
    scoring = Scoring(house.url, MODEL, "embeddings", rows_per_call=25)
    found = score(table, "text", scoring).collect()
    assert sorted(row.id for row in found) == list(range(100))
    assert all(row.error is None and len(row.embedding) > 1 for row in found)
    assert house.house.accounts.received <= 6  # two partitions, in calls of 25


def test_rows_come_back_as_they_were(spark: Any) -> None:
    """What pandas would make floats or nanoseconds of, among them: ids above 2**53 beside nulls."""
    from serving.jobs.spark import score

    schema = """id long, text string, at timestamp, amount decimal(30,2), some array<int>,
        raw binary, day date, is_so boolean, inner struct<x: long>"""
    moment = datetime(2026, 11, 26, 1, 2, 3, 4, UTC).replace(tzinfo=None)
    whole = Decimal("12345678901234567890.12")
    full = (2**60 + 1, "a", moment, whole, [1, None], b"\0x", date(1970, 1, 2), True, (2**60 + 1,))
    rows = [full, (None, "b", *[None] * 7), (2**60 + 3, None, *full[2:])]
    with scripted_gateway(echo) as gateway:
        table = spark.createDataFrame(rows, schema).coalesce(1)
        found = score(table, "text", Scoring(gateway.url, "m")).collect()
    kept = [tuple(row)[:9] for row in found]
    assert kept == [tuple(row) for row in table.collect()]
    assert [row.answer for row in found] == ["a", "b", None]


@pytest.mark.parametrize("per_frame", [1, 7, 10_000])
def test_each_answer_is_its_rows_whatever_the_partitions(spark: Any, per_frame: int) -> None:
    """Partitions of nothing, of one row, and such as do not divide into frames or calls."""
    from serving.jobs.spark import score

    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", per_frame)
    chance = random.Random(per_frame)
    sizes = [0, 1, 13, 30]
    ids = [
        (part, n, "x" * chance.randint(1, 50))
        for part, size in enumerate(sizes)
        for n in range(size)
    ]
    table = spark.createDataFrame(ids, "part int, n int, text string").repartition(8, "part")
    with scripted_gateway(lengths) as gateway:
        scoring = Scoring(gateway.url, "m", "embeddings", rows_per_call=4, concurrency=3)
        found = score(table, "text", scoring).collect()
    spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    assert sorted((row.part, row.n, row.text) for row in found) == sorted(ids)
    assert all(row.embedding[0] == len(row.text) for row in found)


def test_one_rows_error_is_a_column(spark: Any) -> None:
    from serving.jobs.spark import score

    def picky(asked: Asked) -> Reply:
        if asked.body["messages"][-1]["content"] == "bad":
            return 400, {}, {"error": {"message": "Too long."}}
        return echo(asked)

    table = spark.createDataFrame([("good",), ("bad",), ("fine",)], "text string").coalesce(1)
    with scripted_gateway(picky) as gateway:
        found = score(table, "text", Scoring(gateway.url, "m")).collect()
    assert [(row.answer, row.error) for row in found] == [
        ("good", None),
        (None, "400: Too long."),
        ("fine", None),
    ]


def test_tasks_go_at_the_pace_of_the_gateway(spark: Any) -> None:
    """Two tasks of up to 16 calls, before a gateway that takes 6 and says so with Retry-After."""
    from serving.jobs.spark import score

    lock, inside, refused = threading.Lock(), 0, 0

    def small(asked: Asked) -> Reply:
        nonlocal inside, refused
        with lock:
            if inside >= 6:
                refused += 1
                return 429, {"Retry-After": "1"}, {"error": {"message": "Later."}}
            inside += 1
        time.sleep(0.02)
        with lock:
            inside -= 1
        return echo(asked)

    table = spark.range(300).selectExpr("id", "cast(id as string) as text").repartition(2)
    with scripted_gateway(small) as gateway:
        found = score(table, "text", Scoring(gateway.url, "m", concurrency=16)).collect()
        sent = Counter(each.headers["x-request-id"] for each in gateway.asked)
    assert sorted(row.id for row in found) == list(range(300))
    assert all(row.answer == row.text for row in found)
    assert len(sent) == 300
    assert 0 < refused < 150  # pushed back, and the lesson was learnt


def test_what_makes_no_sense_is_said_before_anything_runs(spark: Any) -> None:
    from serving.jobs.spark import score

    scoring = Scoring("http://127.0.0.1:1", "m")
    table = spark.createDataFrame([(1, "a", "b")], "id int, text string, answer string")
    for column, said in (("nope", "no column"), ("id", "no text"), ("text", "already: answer")):
        with pytest.raises(ValueError, match=said):
            score(table, column, scoring)


def test_the_application_scores_a_file(spark: Any, house: RunningHouse, tmp_path: Path) -> None:
    """As Spark's operator starts it, but for the cluster."""
    spark.range(40).selectExpr("id", "concat('t', id) as text").write.parquet(f"{tmp_path}/in")
    words = [f"{tmp_path}/in", "--output", f"{tmp_path}/out", "--endpoint", house.url]
    words += ["--model", MODEL, "--parameters", '{"max_tokens": 2}', "--partitions", "3"]
    (tmp_path / "out/_temporary/0").mkdir(parents=True)  # of a run that was killed
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(MAIN), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert "written already" in done.stdout
    found = spark.read.parquet(f"{tmp_path}/out").collect()
    assert sorted(row.id for row in found) == list(range(40))
    assert all(row.answer and row.error is None for row in found)
    assert house.house.accounts.received == 40


def test_the_application_says_whether_the_gateway_is_there(house: RunningHouse) -> None:
    for url, code in ((house.url, 0), ("http://127.0.0.1:1", 2)):
        done = subprocess.run(
            [sys.executable, str(MAIN), "--check", "--endpoint", url],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert re.search(r"says 200|spark_main: ", done.stdout + done.stderr)


def test_what_the_page_shows_works(spark: Any, house: RunningHouse, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/batch-jobs.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = code.replace("http://127.0.0.1:8000", house.url).replace('"m"', repr(MODEL))
    code = code.replace('"texts"', f'"{tmp_path}/texts"').replace(
        '"scored"', f'"{tmp_path}/scored"'
    )
    spark.createDataFrame([("a",), ("b",)], "text string").write.parquet(f"{tmp_path}/texts")
    exec(code, {"spark": spark})
    found = spark.read.parquet(f"{tmp_path}/scored")
    assert found.columns == ["text", "answer", "error", "prompt_tokens", "completion_tokens"]
    assert found.count() == 2
