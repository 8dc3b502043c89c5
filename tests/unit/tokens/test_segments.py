"""Pieces of texts are remembered in bounded memory, and not believed once they differ."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gateway.tokens.segments import Segments
from gateway.tokens.tokenizer import ModelTokenizer
from tests.tokenizers_made import byte_level

MADE = byte_level()
LIBRARY = Tokenizer.from_str(MADE.to_str())
OURS = ModelTokenizer(MADE.to_str().encode())

words = st.sampled_from(["<|start|>", "<|end|>", "user\n", "the fox ", "x", "  ", "été", "7"])
texts = st.lists(st.lists(words, max_size=30).map("".join), max_size=20)


def plain(text: str) -> list[int]:
    ids: list[int] = LIBRARY.encode(text, add_special_tokens=False).ids
    return ids


@settings(deadline=None)
@given(texts, st.sampled_from([1, 1_500, 100_000]))
def test_whatever_is_remembered_the_tokens_are_those_of_the_whole(
    read: list[str], cache_bytes: int
) -> None:
    segments = Segments(OURS, cache_bytes)
    for text in [*read, *read]:
        found = segments.read(text)
        assert list(found.tokens) == plain(text)
        assert segments.bytes <= cache_bytes
        assert not segments.whole
        assert found.certain(len(text) + 100, OURS.reach) <= len(found.tokens)


class Careless(ModelTokenizer):
    """Cuts where tokens reach across."""

    def divide(self, text: str) -> list[int]:
        return [0, *range(1, len(text))]


@pytest.mark.pure
def test_a_tokenizer_whose_pieces_differ_from_the_whole_is_read_whole_from_then_on() -> None:
    segments = Segments(Careless(MADE.to_str().encode()), 100_000)
    for text in ("the quick brown fox", "jumps over", "the lazy dog"):
        found = segments.read(text)
        assert list(found.tokens) == plain(text)
        assert found.starts == [0]
    assert segments.whole
    assert segments.bytes == 0


@pytest.mark.pure
def test_a_next_turn_reads_its_suffix_only() -> None:
    read: list[str] = []

    class Watched(ModelTokenizer):
        def encode(self, texts):  # type: ignore[no-untyped-def]  # as it is
            read.extend(texts)
            return super().encode(texts)

    segments = Segments(Watched(MADE.to_str().encode()), 100_000)
    for _ in range(4):
        segments.read("warm")  # the first four are checked against the whole
    text = ""
    for turn in range(5):
        text += f"<|start|>user\nturn {turn}<|end|>\n"
        read.clear()
        segments.read(text)
        assert read == [f"<|start|>user\nturn {turn}", *(["<|end|>\n"] if turn == 0 else [])]
    long = "the quick brown fox jumps over the lazy dog " * 1_000
    segments.read(long)
    read.clear()
    segments.read(long + "and rests.")
    assert sum(map(len, read)) < 8_192
