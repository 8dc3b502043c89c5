"""A multipart body (audio) becomes a GenerationRequest: its `model` and `stream` fields are read.

Invariant: the form has exactly one `model` field, so no other reader can see another one. Part
bodies that are not fields we read are skipped, not copied.
"""

from __future__ import annotations

from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gateway.errors import InvalidRequest
from gateway.request import GenerationRequest
from gateway.vocabulary import ModelName, Route

_READ: Final = frozenset({b"model", b"stream"})
_MOST_BYTES: Final = 1024  # of a field we read; model names are far shorter


class _Form:
    """Collects the fields we read, as the parser walks over the body."""

    def __init__(self) -> None:
        self.fields: dict[bytes, bytes] = {}
        self._name = b""
        self._header = b""
        self._value = b""
        self.is_finished = False

    def callbacks(self) -> dict[str, object]:
        """What the parser calls, by its own names."""
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._name = self._header = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._name = options.get(b"name", b"")
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        if self._name in _READ:
            if self._name in self.fields:
                raise InvalidRequest("The form has two fields with the same name.")
            self.fields[self._name] = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name in _READ:
            self.fields[self._name] += data[start:end]
            if len(self.fields[self._name]) > _MOST_BYTES:
                raise InvalidRequest("A form field is too long.", param=self._name.decode())

    def _end(self) -> None:
        self.is_finished = True


def parse_multipart(body: bytes, content_type: bytes, route: Route) -> GenerationRequest:
    """Read the fields we decide by. Raises InvalidRequest for anything that is not such a form."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequest("The request body must be multipart/form-data.")
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]  # a TypedDict of the same names
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError):
        raise InvalidRequest("The request body is not a valid form.") from None
    if not form.is_finished:
        raise InvalidRequest("The form is not complete.")
    try:
        model = form.fields.get(b"model", b"").decode()
    except UnicodeDecodeError:
        raise InvalidRequest("`model` must be text.", param="model") from None
    if not model:
        raise InvalidRequest("You must provide a `model`.", param="model")
    return GenerationRequest(
        route=route,
        model=ModelName(model),
        stream=form.fields.get(b"stream", b"").lower() in (b"true", b"1"),
        prompt_bytes=len(body),
        prompt_tokens=0,  # sound is not text; what it costs shows in the requests in flight
        max_tokens=None,
    )
