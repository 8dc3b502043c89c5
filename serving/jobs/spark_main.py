"""The application that Spark runs: reads a table, has a column scored, writes the table.

It needs Spark's own Python and the modules beside it, and is laid into an image of Spark as a file.
`--check` asks the gateway for its models instead, for `helm test`.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from serving.jobs.calls import Away, BadAddress, Calls, read_key
from serving.jobs.rows import KINDS, Scoring
from serving.jobs.spark import score

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def main(argv: list[str] | None = None) -> int:
    """0 once the table is written, by this run or an earlier one; 2 for what makes no sense."""
    args = arguments().parse_args(argv)
    if args.check:
        return _check(args)
    try:
        scoring = Scoring(
            args.endpoint, args.model, args.task, args.system, json.loads(args.parameters),
            args.api_key_file, args.concurrency, args.rows_per_call,
        )  # fmt: skip
    except ValueError as error:
        sys.stderr.write(f"spark_main: {error}\n")
        return 2
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("headrace-score").getOrCreate()
    left = _left(spark, args.output)
    if "_SUCCESS" in left:
        sys.stdout.write(f"{args.output} is written already\n")
        return 0
    mode = "overwrite" if left <= {"_temporary"} else "error"
    table = spark.read.format(args.format).load(args.input)
    if args.partitions:
        table = table.repartition(args.partitions)
    score(table, args.column, scoring).write.save(args.output, args.format, mode)
    spark.stop()
    return 0


def _left(spark: SparkSession, output: str) -> set[str]:
    """Names of what an earlier run has left there."""
    assert spark._jvm is not None
    path = spark._jvm.org.apache.hadoop.fs.Path(output)
    system = path.getFileSystem(spark._jsc.hadoopConfiguration())
    if not system.exists(path):
        return set()
    return {status.getPath().getName() for status in system.listStatus(path)}


def arguments() -> argparse.ArgumentParser:
    """What it takes; without `--check`, an input and an output."""
    parser = argparse.ArgumentParser(prog="spark_main", description=main.__doc__)
    parser.add_argument("input", nargs="?", help="a path or URL that Spark can read")
    parser.add_argument("--output", help="where nothing is yet")
    parser.add_argument("--format", default="parquet", help="of both (%(default)s)")
    parser.add_argument("--column", default="text", help="what is scored (%(default)s)")
    parser.add_argument("--endpoint", required=True, help="the gateway's URL")
    parser.add_argument("--api-key-file", help="on every executor")
    parser.add_argument("--model", default="")
    parser.add_argument("--task", choices=sorted(KINDS), default="chat")
    parser.add_argument("--system", default="", help="what a chat begins with")
    parser.add_argument("--parameters", default="{}", help="of each body, a JSON object")
    parser.add_argument("--concurrency", type=int, default=16, help="calls in flight of a task")
    parser.add_argument("--rows-per-call", type=int, default=32, help="embeddings in one call")
    parser.add_argument("--partitions", type=int, default=0, help="0: as the table is read")
    parser.add_argument("--check", action="store_true", help="is the gateway there?")
    return parser


def _check(args: argparse.Namespace) -> int:
    try:
        answer = Calls(args.endpoint, read_key(args.api_key_file)).get("/v1/models")
    except (Away, BadAddress, OSError) as error:
        sys.stderr.write(f"spark_main: {args.endpoint}: {error}\n")
        return 2
    sys.stdout.write(f"{args.endpoint} says {answer.status}\n")
    return 0 if answer.status == 200 else 2


if __name__ == "__main__":
    raise SystemExit(main())
