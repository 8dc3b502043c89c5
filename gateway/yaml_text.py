"""YAML, read where there is some: whoever may have none to read imports this when there is.

A gateway at rest is small, and one that is told all by flags never reads any.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

# PyYAML meets `!!int` or `!!bool x` with whatever its constructor trips over.
NOT_YAML: Final = (
    yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError
)  # fmt: skip


class NotYaml(ValueError):
    """It is none; `line` is where that is seen, from 1, None where that is not known.

    The message may quote the text.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(" ".join(str(error).split()))
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        self.line: int | None = None if mark is None else mark.line + 1


def read_yaml(text: str | bytes) -> Any:
    """What a document says. Raises NotYaml."""
    try:
        return yaml.safe_load(text)
    except NOT_YAML as error:
        raise NotYaml(error) from error
