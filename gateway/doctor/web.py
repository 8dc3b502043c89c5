"""Small, bounded HTTP for an examination: one call at a time, nothing kept."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, Final

from gateway.vocabulary import Seconds

MAX_BYTES: Final = 8 * 1024 * 1024
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class NoAnswer(Exception):
    """The replica did not answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: bytes
    date_s: Seconds | None = None
    """The wall clock it was sent at, by its own Date field."""

    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


def ask(url: str, timeout_s: Seconds, body: dict[str, Any] | None = None) -> Answer:
    """GET `url`, or POST `body` there. A status is not judged. Raises NoAnswer."""
    request = urllib.request.Request(url, headers={"User-Agent": "headrace"})
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        try:
            reply = _OPENER.open(request, timeout=timeout_s)
        except urllib.error.HTTPError as refused:
            reply = refused
        with reply:
            return Answer(reply.status, reply.read(MAX_BYTES), _date(reply.headers.get("Date")))
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise NoAnswer(str(reason) or type(error).__name__) from error


def _date(text: str | None) -> Seconds | None:
    if text is None:
        return None
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
