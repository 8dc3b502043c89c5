"""What the room speaks of: files, batches, their lines, and what became of each."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec


class Status(StrEnum):
    """Where a batch stands.

    validating -> in_progress -> finalizing -> completed or expired
        |             |
        |             `-> cancelling -> cancelled     (validating may be cancelled too)
        `-> failed
    """

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


LIVE: Final = (Status.VALIDATING, Status.IN_PROGRESS, Status.FINALIZING, Status.CANCELLING)
"""Somebody has to work on these."""


class File(msgspec.Struct, frozen=True):
    """A file that is kept; instants are seconds since the epoch."""

    id: str
    created_at: float
    size: int  # bytes
    filename: str
    purpose: str
    tenant: str = ""  # whose it is; nobody else sees it


class Problem(msgspec.Struct, frozen=True):
    """Why a batch was refused; `line` counts from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Batch(msgspec.Struct, frozen=True):
    """A batch. Instants are seconds since the epoch, None where they have not come."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: Mapping[str, str] | None
    created_at: float
    expires_at: float
    status: Status = Status.VALIDATING
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None
    expired_at: float | None = None
    cancelling_at: float | None = None
    cancelled_at: float | None = None
    problems: tuple[Problem, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    total: int = 0  # lines
    completed: int = 0
    failed: int = 0
    tenant: str = ""  # whose it is; nobody else sees it


class Claim(msgspec.Struct, frozen=True):
    """A batch that is ours to work on, for as long as nobody has a higher fence."""

    batch: Batch
    fence: int


class BatchLine(msgspec.Struct, frozen=True):
    """One request of a batch: where it stands in the input file, and where it belongs in the order
    of work: lines with equal beginnings of `prefix` begin with the same prompt."""

    number: int  # from 1
    custom_id: str
    model: str
    start: int  # bytes from the beginning of the file
    length: int
    prefix: bytes = b""


class Result(msgspec.Struct, frozen=True):
    """What became of a line: the line of the output file, or of the error file."""

    number: int
    succeeded: bool
    document: bytes
