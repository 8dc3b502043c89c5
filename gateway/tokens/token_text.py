"""Token strings, as a vocabulary writes them, turned back into the bytes they stand for.

Two ways of writing are known. *Byte-level*: every byte is one printable character; bytes that
print stand for themselves, others are shown from U+0100 on (GPT-2's table). *Pieces*: U+2581 is a
space, `<0x0A>` a byte. An added token is written as it is. Which of them it is, the strings do not
say: a wrong reading gives a text in which nothing is found that should be there.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

from gateway.record import Value


class TokenText(Value, frozen=True):
    """The text of some tokens: `ends[k]` of its bytes are those of tokens 0 to k."""

    text: bytes
    tokens: Sequence[int]
    ends: Sequence[int]

    def beginning_at(self, place: int) -> int | None:
        """Which token begins at this byte; None where none does, and beyond the last."""
        if place == 0:
            return 0 if self.tokens else None
        # Tokens without text of their own end where the one before does: the last of them counts.
        before = bisect_left(self.ends, place)
        while before + 1 < len(self.ends) and self.ends[before + 1] == place:
            before += 1
        if before + 1 >= len(self.ends) or self.ends[before] != place:
            return None
        return before + 1


Reading = Callable[[Sequence[int], Sequence[str]], TokenText]


def byte_level(tokens: Sequence[int], strings: Sequence[str]) -> TokenText:
    """O(characters), nearly all of it in C."""
    try:
        text = _byte_text("".join(strings))
        ends = array("Q", accumulate(map(len, strings)))
    except UnicodeEncodeError:  # an added token with characters of its own
        return _joined(tokens, [_byte_level(each) for each in strings])
    return TokenText(text, tokens, ends)


def pieces(tokens: Sequence[int], strings: Sequence[str]) -> TokenText:
    """O(characters)."""
    return _joined(tokens, [_piece(each) for each in strings])


READINGS: Final[tuple[Reading, ...]] = (byte_level, pieces)


def _joined(tokens: Sequence[int], parts: list[bytes]) -> TokenText:
    return TokenText(b"".join(parts), tokens, array("Q", accumulate(map(len, parts))))


def _byte_text(shown: str) -> bytes:
    """Raises UnicodeEncodeError. As a rule spaces and line feeds are all that is to be replaced:
    with that done, a text that is ASCII is there, much sooner than by the table."""
    plain = shown.replace(_SPACE, " ").replace(_LINE_FEED, "\n")
    return (plain if plain.isascii() else shown.translate(_BYTES)).encode("latin-1")


def _byte_level(string: str) -> bytes:
    try:
        return _byte_text(string)
    except UnicodeEncodeError:
        return string.encode("utf-8", "replace")


def _piece(string: str) -> bytes:
    byte = _BYTE.fullmatch(string)
    if byte is not None:
        return bytes((int(byte[1], 16),))
    return string.replace("▁", " ").encode("utf-8", "replace")


def _table() -> dict[int, int]:
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printed]
    return {0x100 + index: byte for index, byte in enumerate(others)}


_BYTES: Final = _table()
_SPACE, _LINE_FEED = "\u0120", "\u010a"
_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")
