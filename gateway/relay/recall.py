"""The head of a response once more: a replica says the same on its connection with every answer.

Asked of a read, where a response is awaited: is it one response, whole, whose head is that of the
one before but for the length of its body, and for its date, which changes every second? Then what
that one was read as holds for this one too, and no parser need see it: between responses it has
nothing to remember.

Invariant. What is recalled is what parsing would have told.
"""

from __future__ import annotations

from typing import Final

_LENGTH: Final = b"\r\ncontent-length: "
_DATE: Final = b"\r\ndate: "
_DATE_BYTES: Final = len("Sun, 06 Nov 1994 08:49:37 GMT")


class Recall:
    """A response that was read in one piece, to know the next one by."""

    __slots__ = (
        "_after", "_before", "_date_at", "_field_date_at", "_head_bytes", "fields", "status",
    )  # fmt: skip

    def __init__(self, status: int, fields: bytes, before: bytes, after: bytes, head: int) -> None:
        """The head, of so many bytes, was `before`, the length of the body, and `after`."""
        self.status: Final = status
        self.fields = fields
        self._before = before
        self._after = after
        self._head_bytes = head
        self._date_at = _date_at(before)
        self._field_date_at = _date_at(b"\r\n" + fields) - 2
        if self._field_date_at < 0:  # it is not forwarded
            self._date_at = -1

    def __repr__(self) -> str:
        return f"<Recall {self.status} {self.fields!r}>"

    def body(self, data: bytes) -> bytes | None:
        """The body of another such response, if that is what was read; `fields` are then its own.
        None for anything else."""
        body_bytes = len(data) - self._head_bytes
        if body_bytes <= 0:
            return None
        head = b"%b%d%b" % (self._before, body_bytes, self._after)
        if len(head) != self._head_bytes:
            return None
        if not data.startswith(head) and not self._is_but_for_its_date(data, head):
            return None
        return data[self._head_bytes :]

    def _is_but_for_its_date(self, data: bytes, head: bytes) -> bool:
        begin = self._date_at
        if begin < 0:
            return False
        end = begin + _DATE_BYTES
        date = data[begin:end]
        if (
            data[:begin] != head[:begin]
            or data[end : len(head)] != head[end:]
            or not _is_date(date)
        ):
            return False
        self._before = data[: len(self._before)]
        at = self._field_date_at
        self.fields = self.fields[:at] + date + self.fields[at + _DATE_BYTES :]
        return True


def _date_at(lines: bytes) -> int:
    """Where the only date is in them; -1 where there is none, or it may not be exchanged."""
    lowered = lines.lower()
    begin = lowered.find(_DATE) + len(_DATE)
    end = begin + _DATE_BYTES
    if lowered.count(_DATE) != 1:
        return -1
    return begin if _is_date(lines[begin:end]) and lines[end : end + 2] == b"\r\n" else -1


def _is_date(date: bytes) -> bool:
    """Does it look like one (RFC 9110, section 5.6.7), so that no parser stumbles over it?"""
    return (
        len(date) == _DATE_BYTES
        and date[:3].isalpha()
        and date.endswith(b" GMT")
        and date.translate(None, b" ,:").isalnum()
    )


def recall(data: bytes, status: int, fields: bytes) -> Recall | None:
    """What to know the next response by, given the read that held this one, and what of its head
    goes to clients; None where it was not whole in it."""
    head_end = data.find(b"\r\n\r\n") + 4
    begin = data[:head_end].lower().find(_LENGTH) + len(_LENGTH)
    if begin < len(_LENGTH):
        return None
    digits = b"%d" % (len(data) - head_end)
    after_at = begin + len(digits)
    if data[begin : after_at + 2] != digits + b"\r\n":
        return None
    return Recall(status, fields, data[:begin], data[after_at:head_end], head_end)
