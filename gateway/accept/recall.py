"""The head of a request once more: on its connection a client says the same with every request.

Asked of a whole read, where nothing else is on its way: does it hold one request, whole, whose head
is that of the one before but for the length of its body? Then what that one was read as holds for
this one too, and no parser need see it: between requests it has nothing to remember.

Invariant. What is recalled is what parsing would have told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.accept.exchange import Exchange
from gateway.accept.head import Head

if TYPE_CHECKING:
    from gateway.accept.door import Door
    from gateway.accept.line import Line

_LENGTH: Final = b"\r\ncontent-length: "
_MARK: Final = b"ength: "
_NEVER_AGAIN: Final = frozenset({b"x-request-id", b"expect", b"transfer-encoding"})
_LONG_BYTES: Final = 16 * 1024  # longer bodies are not copied out of what was read


class Recall:
    """A request that was read in one piece, to know the next one by."""

    __slots__ = ("_after", "_before", "_fields", "_forwarded", "_route", "_target")

    def __init__(self, before: bytes, after: bytes, exchange: Exchange) -> None:
        """The head was `before`, the length of the body, and `after`."""
        self._before = before
        self._after = after
        self._fields = {
            name: value for name, value in exchange.fields.items() if name != b"content-length"
        }
        self._forwarded = exchange.forwarded.removesuffix(exchange.request_id + b"\r\n")
        self._route = exchange.route
        self._target = exchange.target

    def __repr__(self) -> str:
        return f"<Recall {self._target!r}>"

    def again(self, data: bytes, line: Line, door: Door) -> tuple[Exchange, Head] | None:
        """Another such request, with its body; None for anything else."""
        before, after = self._before, self._after
        rest_bytes = len(data) - len(before) - len(after)  # the length, as it is written, and body
        digits, beyond = 1, 10
        while rest_bytes - digits >= beyond:
            digits += 1
            beyond *= 10
        body_bytes = rest_bytes - digits
        if body_bytes < 0:
            return None
        body_at = len(data) - body_bytes
        # Compared whole: compiled, that costs a third of finding the length, and reading it.
        if data[:body_at] != b"%b%d%b" % (before, body_bytes, after):
            return None
        new_id = door.new_id()
        forwarded = b"%b%b\r\n" % (self._forwarded, new_id)
        head = Head(forwarded, new_id, self._fields, body_bytes)
        exchange = Exchange(line, self._route, self._target, head, "1.1")
        exchange.take_body(
            data[body_at:] if body_bytes <= _LONG_BYTES else memoryview(data)[body_at:]
        )
        return exchange, head


def recall(data: bytes, exchange: Exchange) -> Recall | None:
    """What to know the next request by, given the read that held this one, from its first byte on;
    None where it was not whole in it, or the next will be another."""
    if not exchange.keep_alive or not _NEVER_AGAIN.isdisjoint(exchange.fields):
        return None
    head_end = data.find(b"\r\n\r\n") + 4
    begin = data.find(_MARK, 0, head_end) + len(_MARK)
    # A slice of bytes that ends before it begins is empty, but compiled it is an error.
    if begin < len(_LENGTH) or data[begin - len(_LENGTH) : begin].lower() != _LENGTH:
        return None
    end = data.find(b"\r", begin)
    digits = data[begin:end]
    if not digits.isdigit() or len(data) - head_end != int(digits):
        return None
    return Recall(data[:begin], data[end:head_end], exchange)
