"""Files, batches and lines as OpenAI's API shows them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from gateway.batch.nouns import Batch, BatchLine, File, Problem, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

_WINDOW: Final = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_UNITS_S: Final = {"m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST_WINDOW_S: Final = 7 * 86400.0

EXPIRED: Final = "This request could not be executed before the completion window expired."
CANCELLED: Final = "This request was not executed: the batch was cancelled."


def window_s(text: str) -> float | None:
    """Seconds of a completion window such as `24h`; None if it is none, or above a week."""
    found = _WINDOW.fullmatch(text)
    if found is None:
        return None
    seconds = int(found[1]) * _UNITS_S[found[2]]
    return seconds if seconds <= LONGEST_WINDOW_S else None


def file_document(file: File) -> dict[str, Any]:
    """One file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def batch_document(batch: Batch) -> dict[str, Any]:
    """One batch."""
    document: dict[str, Any] = {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": _errors(batch.problems),
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
    }
    for name in (
        "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at",
        "expired_at", "cancelling_at", "cancelled_at",
    ):  # fmt: skip
        instant: float | None = getattr(batch, name)
        document[name] = None if instant is None else int(instant)
    document["request_counts"] = {
        "total": batch.total,
        "completed": batch.completed,
        "failed": batch.failed,
    }
    document["metadata"] = batch.metadata
    return document


def _errors(problems: Sequence[Problem]) -> dict[str, Any] | None:
    if not problems:
        return None
    data = [
        {"code": each.code, "line": each.line, "message": each.message, "param": each.param}
        for each in problems
    ]
    return {"object": "list", "data": data}


def page(documents: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """One page of a list."""
    return {
        "object": "list",
        "data": documents,
        "first_id": documents[0]["id"] if documents else None,
        "last_id": documents[-1]["id"] if documents else None,
        "has_more": has_more,
    }


def answered(line: BatchLine, status: int, request_id: str, body: bytes) -> Result:
    """A line that has an answer. The body goes in as it came, if it is JSON on one line."""
    try:
        document = orjson.loads(body)
        fragment = orjson.Fragment(body if b"\n" not in body else orjson.dumps(document))
    except orjson.JSONDecodeError:
        fragment = orjson.Fragment(orjson.dumps(body.decode("utf-8", "replace")))
    response = {"status_code": status, "request_id": request_id, "body": fragment}
    document = _line(line.custom_id, f"batch_req_{request_id}", response, None)
    return Result(line.number, status < 400, document)


def unanswered(batch: Batch, number: int, custom_id: str, *, is_cancelled: bool) -> bytes:
    """The line of the error file for one that was not executed in time."""
    code, message = ("batch_cancelled", CANCELLED) if is_cancelled else ("batch_expired", EXPIRED)
    line_id = f"batch_req_{batch.id.removeprefix('batch_')}_{number}"
    return _line(custom_id, line_id, None, {"code": code, "message": message})


def _line(
    custom_id: str, line_id: str, response: dict[str, Any] | None, error: dict[str, str] | None
) -> bytes:
    document = {"id": line_id, "custom_id": custom_id, "response": response, "error": error}
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)
