"""A table scored through a gateway, by Spark:

    from serving.jobs.spark import Scoring, score

    asked = Scoring("http://headrace.models.svc:8000", "my-model", parameters={"max_tokens": 64})
    score(spark.read.parquet("s3a://bucket/texts"), "text", asked).write.parquet("s3a://bucket/scored")

Each task keeps calls of its own in flight, as many as the gateway takes; the table's rows come back
as they were and where they were, with columns more. What is wrong with one row is in its `error`.
A task that Spark runs again asks again: answers are whole rows of a partition or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from serving.jobs.rows import Scored, Scorer, Scoring

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

__all__ = ["Scoring", "score"]


def score(table: DataFrame, column: str, scoring: Scoring) -> DataFrame:
    """The table with what came of its `column`, and `error`, null where nothing went wrong.

    A chat adds `answer`, `prompt_tokens` and `completion_tokens`; embeddings add `embedding`, an
    array of floats. Where the text is null, all of them are. Raises ValueError for a column that
    is not there, is no text, or would be there twice.
    """
    from pyspark.sql import types

    if column not in table.columns:
        raise ValueError(f"the table has no column {column}")
    if table.schema[column].dataType != types.StringType():
        raise ValueError(f"column {column} is no text")
    added = [types.StructField(name, kind) for name, kind in _columns(scoring, types)]
    if twice := sorted({field.name for field in added} & set(table.columns)):
        raise ValueError(f"the table has a column already: {', '.join(twice)}")
    schema = types.StructType([*table.schema.fields, *added])
    return table.mapInPandas(scored(column, scoring), schema)


def _columns(scoring: Scoring, types: Any) -> list[tuple[str, Any]]:
    if scoring.kind == "embeddings":
        return [
            ("embedding", types.ArrayType(types.FloatType())),
            ("error", types.StringType()),
        ]
    return [
        ("answer", types.StringType()),
        ("error", types.StringType()),
        ("prompt_tokens", types.IntegerType()),
        ("completion_tokens", types.IntegerType()),
    ]


def scored(
    column: str, scoring: Scoring
) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """What `mapInPandas` runs in a task: over its frames, however many there are."""

    def over(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        with Scorer(scoring) as scorer:
            for frame in frames:
                texts = frame[column]
                found = scorer.score(texts.astype(object).where(texts.notna(), None).tolist())
                yield _with(frame, scoring, found)

    return over


def _with(frame: pd.DataFrame, scoring: Scoring, found: list[Scored]) -> pd.DataFrame:
    import pandas as pd

    def series(name: str) -> pd.Series:
        values = [getattr(each, name) for each in found]
        return pd.Series(values, index=frame.index, dtype=object)  # or integers would be floats

    if scoring.kind == "embeddings":
        return frame.assign(embedding=series("answer"), error=series("error"))
    names = ("answer", "error", "prompt_tokens", "completion_tokens")
    return frame.assign(**{name: series(name) for name in names})
