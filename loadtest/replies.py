"""Bytes and the instants at which they came become a reply with its marks.

Pure: the parser of `httptools` inside, no socket and no clock. Events that came in one read bear
one mark: nobody can have seen one of them earlier than the other.
"""

from __future__ import annotations

import httptools

from loadtest.deltas import Delta, Events, Reader
from loadtest.samples import Marks


class Reply:
    """What came of one request."""

    __slots__ = ("body", "cause", "error", "marks", "status", "text")

    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self.status: int | None = None
        self.text = ""
        self.body = b""
        """As it came, where it was no stream."""
        self.error: str | None = None
        """None for a whole reply; else `status_503`, `connect`, `reset`, `timeout`, `truncated`,
        `garbage` or `error_event`."""
        self.cause = ""
        """What the system said of it, for a person."""

    def __repr__(self) -> str:
        return f"<Reply {self.status} {self.error or 'whole'}>"


class Reading:
    """One reply in the making: the callbacks of the parser, and what it comes to.

    Feed it what comes, with the instant at which it came, until `is_done`.
    """

    def __init__(self, reader: Reader, reply: Reply) -> None:
        self.is_done = False
        self.is_kept_alive = False
        """Once done, whether the connection may be used again."""
        self._reply = reply
        self._read = reader
        self._parser = httptools.HttpResponseParser(self)
        self._events: Events | None = None
        self._now_s = 0.0
        self._whole: list[bytes] = []
        self._texts: list[str] = []

    def feed(self, data: bytes, now_s: float) -> None:
        """One read. Raises httptools.HttpParserError for what is no HTTP."""
        self._now_s = now_s
        self._parser.feed_data(data)

    def cut_off(self, now_s: float) -> None:
        """The connection ended before the parser saw the end of the reply."""
        self._reply.error = self._reply.error or "truncated"
        self._now_s = now_s
        self._finish()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type" and value.startswith(b"text/event-stream"):
            self._events = Events()

    def on_headers_complete(self) -> None:
        self._reply.status = self._parser.get_status_code()
        if self._reply.status >= 400:
            self._reply.error = f"status_{self._reply.status}"

    def on_body(self, body: bytes) -> None:
        if self._events is None:
            self._whole.append(body)
            return
        for data in self._events.feed(body):
            self._take(self._read(data))

    def on_message_complete(self) -> None:
        self.is_kept_alive = self._parser.should_keep_alive()
        if self._events is None and self._reply.error is None:
            self._reply.body = b"".join(self._whole)
            if self._reply.body[:1] == b"{":
                delta = self._read(self._reply.body)
                self._take(Delta(False, delta.text, delta.usage, delta.error))
        self._finish()

    def _take(self, delta: Delta) -> None:
        marks = self._reply.marks
        if delta.is_output:
            marks.outputs_s.append(self._now_s)
            if delta.text:
                self._texts.append(delta.text)
        elif delta.text:
            self._texts.append(delta.text)
        if delta.usage is not None:
            marks.usage = delta.usage
        if delta.error is not None:
            self._reply.error = delta.error

    def _finish(self) -> None:
        self._reply.text = "".join(self._texts)
        self._reply.marks.ended_s = self._now_s
        self.is_done = True
