"""An input file becomes lines, chunk by chunk, or a list of what is wrong with it."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Final

from gateway.batch.lines import LineRefused, read_line
from gateway.batch.nouns import BatchLine, Problem

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from gateway.settings import BatchSettings

CHUNK_LINES: Final = 500
MOST_PROBLEMS: Final = 100  # that are told of; the first ones


class Validation:
    """Reads one input file. `problems` and `total` are whole when `chunks` has come to its end.

    Memory: one chunk of lines without their bodies, and every custom_id.
    """

    def __init__(self, endpoint: str, models: Container[str], settings: BatchSettings) -> None:
        """`models` is what can be asked for now."""
        self._endpoint = endpoint
        self._models = models
        self._settings = settings
        self._ids: set[str] = set()
        self.problems: list[Problem] = []
        self.total = 0

    def chunks(self, handle: IO[bytes]) -> Iterator[list[BatchLine]]:
        """Lines in the file's order; nothing more comes once enough is wrong."""
        chunk: list[BatchLine] = []
        start = number = 0
        most = self._settings.max_line_bytes
        while len(self.problems) < MOST_PROBLEMS and (raw := handle.readline(most + 2)):
            number += 1
            if len(raw.rstrip(b"\r\n")) > most:
                self.problems.append(Problem("line_too_long", _too_long(most), None, number))
                return
            if raw.strip():
                line = self._line(raw, number, start)
                if line is not None:
                    chunk.append(line)
            start += len(raw)
            if len(chunk) == CHUNK_LINES:
                yield chunk
                chunk = []
            if self.total > self._settings.max_lines:
                message = f"A batch has at most {self._settings.max_lines} lines."
                self.problems.append(Problem("too_many_lines", message))
                return
        if chunk:
            yield chunk
        if not self.total and not self.problems:
            self.problems.append(Problem("empty_file", "The file has no lines."))

    def _line(self, raw: bytes, number: int, start: int) -> BatchLine | None:
        self.total += 1
        try:
            line = read_line(raw, number, start, self._endpoint)
            self._check(line)
        except LineRefused as refused:
            self.problems.append(refused.problem(number))
            return None
        return line

    def _check(self, line: BatchLine) -> None:
        if line.custom_id in self._ids:
            message = "Another line has this `custom_id`."
            raise LineRefused("duplicate_custom_id", message, "custom_id")
        self._ids.add(line.custom_id)
        if line.model not in self._models:
            message = f"The model `{line.model[:200]}` does not exist."
            raise LineRefused("model_not_found", message, "body.model")


def _too_long(most: int) -> str:
    return f"A line has at most {most} bytes."
