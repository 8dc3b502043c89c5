"""A multipart form with one file, read as it comes: no more of it is in memory than one read.

Invariant: the form has at most one `file` and one `purpose`; what is not known is refused.
"""

from __future__ import annotations

from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gateway.errors import InvalidRequest

_KNOWN: Final = frozenset({"file", "purpose"})
_LONGEST_FIELD: Final = 1024


class Upload:
    """Fed with the body, it gives back the bytes of the file as they come."""

    def __init__(self, content_type: bytes) -> None:
        """Raises InvalidRequest for what is no such form."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise InvalidRequest("The request body must be multipart/form-data.")
        self.filename = ""
        self.has_file = False
        self._purpose: bytes | None = None
        self._name = ""
        self._header = b""
        self._value = b""
        self._pieces: list[bytes] = []
        self._is_finished = False
        self._filename = ""
        callbacks = {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]  # a TypedDict of the same names

    def feed(self, data: bytes) -> list[bytes]:
        """The next bytes of the body; returns what they hold of the file. Raises InvalidRequest."""
        try:
            self._parser.write(data)
        except (FormParserError, ValueError):
            raise InvalidRequest("The request body is not a valid form.") from None
        pieces, self._pieces = self._pieces, []
        return pieces

    def purpose(self) -> str:
        """The body has ended: what is the file for? Raises InvalidRequest if a part is missing."""
        if not self._is_finished:
            raise InvalidRequest("The form is not complete.")
        if not self.has_file:
            raise InvalidRequest("You must provide a `file`.", param="file")
        if self._purpose != b"batch":
            raise InvalidRequest("`purpose` must be `batch`.", param="purpose")
        return "batch"

    def _part_begin(self) -> None:
        self._name = self._filename = ""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
            self._filename = options.get(b"filename", b"").decode("utf-8", "replace")
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        if self._name not in _KNOWN:
            raise InvalidRequest("The form has a field that is not known.", param=self._name[:64])
        if self.has_file if self._name == "file" else self._purpose is not None:
            raise InvalidRequest("The form has two fields with the same name.", param=self._name)
        if self._name == "file":
            self.has_file = True
            self.filename = self._filename[:255] or "file"
        else:
            self._purpose = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self._pieces.append(data[start:end])
        elif self._purpose is not None:
            self._purpose += data[start:end]
            if len(self._purpose) > _LONGEST_FIELD:
                raise InvalidRequest("A form field is too long.", param=self._name)

    def _end(self) -> None:
        self._is_finished = True
