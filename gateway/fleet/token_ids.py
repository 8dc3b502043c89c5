"""Token ids as they came over the wire, not decoded before somebody looks at them.

Most are never looked at: an engine's own names for blocks are enough, but for the first block of a
prompt. Decoding them would cost more than all else in an event.

Invariant: equal to the list they were written from, however much of it is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, overload

import msgspec

FEW: Final = 64
"""The first so many are read one by one; of more, all are decoded at once."""

_DECODER: Final = msgspec.msgpack.Decoder(list[int])
_FIXARRAY, _ARRAY16, _ARRAY32 = 0x90, 0xDC, 0xDD
_WIDTHS: Final = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}
"""Of an unsigned integer, in bytes, by the first of them; below 0x80 it is one byte, and itself."""


class TokenIds(Sequence[int]):
    """A msgpack array of them. Looking raises ValueError where they are no integers."""

    __slots__ = ("_decoded", "_length", "_packed", "_start")

    def __init__(self, raw: msgspec.Raw) -> None:
        """A whole msgpack value. Raises ValueError where it is no array."""
        self._packed = packed = memoryview(raw)
        self._decoded: list[int] | None = None
        first = packed[0]
        if first & 0xF0 == _FIXARRAY:
            self._length, self._start = first & 0x0F, 1
        elif first == _ARRAY16:
            self._length, self._start = int.from_bytes(packed[1:3], "big"), 3
        elif first == _ARRAY32:
            self._length, self._start = int.from_bytes(packed[1:5], "big"), 5
        else:
            raise ValueError("no array of token ids")

    def __repr__(self) -> str:
        return f"<TokenIds, {self._length}>"

    def __len__(self) -> int:
        return self._length

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenIds):
            return self._all() == other._all()
        return self._all() == other

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __iter__(self) -> Iterator[int]:
        return iter(self._all())

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if self._decoded is None and isinstance(index, slice):
            start, stop, step = index.indices(self._length)
            if start == 0 and step == 1 and stop <= FEW and (found := self._first(stop)):
                return found
        return self._all()[index]

    def _first(self, count: int) -> list[int] | None:
        """Without decoding the others; None where that cannot be done."""
        packed, at, found = self._packed, self._start, []
        for _ in range(count):
            head = packed[at]
            if head < 0x80:
                found.append(head)
                at += 1
                continue
            width = _WIDTHS.get(head)
            if width is None:
                return None
            found.append(int.from_bytes(packed[at + 1 : at + width], "big"))
            at += width
        return found

    def _all(self) -> list[int]:
        if self._decoded is None:
            self._decoded = _DECODER.decode(self._packed)
        return self._decoded
