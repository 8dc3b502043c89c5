"""Strings of a byte-level vocabulary are the bytes that they show."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.tokens.token_text import byte_level

PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(0x100) if byte not in PRINTED]
SHOWN = {byte: chr(byte) for byte in PRINTED} | {
    byte: chr(0x100 + at) for at, byte in enumerate(OTHERS)
}
PLAIN = st.text("aZ09 \n.", max_size=12).map(str.encode)
"""As most of a prompt is."""


@given(st.lists(PLAIN | st.binary(max_size=6), max_size=8))
def test_any_bytes_cut_anywhere(parts: list[bytes]) -> None:
    told = byte_level(range(len(parts)), ["".join(SHOWN[byte] for byte in each) for each in parts])
    assert told.text == b"".join(parts)
    assert list(told.ends) == [sum(map(len, parts[: at + 1])) for at in range(len(parts))]


@given(st.lists(PLAIN, max_size=4))
def test_an_added_token_is_written_as_it_is(parts: list[bytes]) -> None:
    shown = ["".join(SHOWN[byte] for byte in each) for each in parts]
    told = byte_level(range(len(parts) + 1), [*shown, "<|字|>"])
    assert told.text == b"".join(parts) + "<|字|>".encode()
