"""What is laid into an image of Spark, whose Python is older and has none of our packages."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

JOBS = Path(__file__).parents[3] / "serving/jobs"
LAID = ["__init__", "calls", "pace", "rows", "spark", "spark_main"]


@pytest.mark.parametrize("name", LAID)
def test_needs_no_more_than_spark_brings(name: str) -> None:
    tree = ast.parse((JOBS / f"{name}.py").read_text(encoding="utf-8"), feature_version=(3, 10))
    named = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    named += [
        each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names
    ]
    ours = {f"serving.jobs.{each}" for each in LAID}
    for module in named:
        top = module.partition(".")[0]
        assert module in ours or top in sys.stdlib_module_names | {"pandas", "pyspark"}, module
