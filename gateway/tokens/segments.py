"""Texts become tokens piece by piece, and pieces are remembered: a next turn costs its suffix.

A text is cut where the tokenizer says that nothing reaches across (before added tokens, so most
often at messages), and every piece is tokenised by itself and kept by a digest of its text, the
least recently used forgotten first. That the pieces together are the whole is checked by
tokenising the beginning of a text at once too: of the first few texts, and then every so often. One
difference, and from then on this model's texts are tokenised whole.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from hashlib import blake2b
from typing import Final

from gateway.record import Value
from gateway.tokens.tokenizer import Encoded, ModelTokenizer

_CHECK_FIRST: Final = 4
_CHECK_EVERY: Final = 256
_CHECK_CHARACTERS: Final = 16 * 1024
_ENTRY_BYTES: Final = 400  # beside tokens and cuts: digest, list, objects
_CUT_BYTES: Final = 120


class Segments:
    """The pieces of recent texts of one model, in `cache_bytes` of memory."""

    def __init__(self, tokenizer: ModelTokenizer, cache_bytes: int) -> None:
        self._tokenizer = tokenizer
        self._limit = cache_bytes
        self._kept: OrderedDict[bytes, Encoded] = OrderedDict()
        self._texts = 0
        self.bytes = 0
        self.whole = False
        """Pieces were seen to differ from the whole: no more cutting."""

    def read(self, text: str) -> Read:
        """The text's tokens, without special tokens around it."""
        self._texts += 1
        if not self.whole:
            read = self._by_pieces(text)
            if self._texts > _CHECK_FIRST and self._texts % _CHECK_EVERY:
                return read
            if self._is_whole(read, text):
                return read
            self.whole = True
            self._kept.clear()
            self.bytes = 0
        whole = self._tokenizer.encode([text])[0]
        return Read(whole.tokens, [0], [0], [whole])

    def _is_whole(self, read: Read, text: str) -> bool:
        """Are the first pieces together what they are in one? No more than a few: the library
        hands over the tokens of a text while no other thread runs."""
        pieces = bisect_right(read.starts, _CHECK_CHARACTERS)
        is_all = pieces == len(read.starts)
        end = len(text) if is_all else read.starts[pieces]
        count = len(read.tokens) if is_all else read.firsts[pieces]
        return self._tokenizer.encode([text[:end]])[0].tokens == read.tokens[:count]

    def _by_pieces(self, text: str) -> Read:
        starts = self._tokenizer.divide(text)
        texts = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
        digests = [blake2b(each.encode(), digest_size=16).digest() for each in texts]
        pieces = [self._kept.get(digest) for digest in digests]
        new = [index for index, piece in enumerate(pieces) if piece is None]
        for index, encoded in zip(
            new, self._tokenizer.encode([texts[index] for index in new]), strict=True
        ):
            pieces[index] = encoded
        known = [piece for piece in pieces if piece is not None]
        for digest, piece in zip(digests, known, strict=True):
            self._keep(digest, piece)
        return _joined(starts, known)

    def _keep(self, digest: bytes, piece: Encoded) -> None:
        if digest in self._kept:
            self._kept.move_to_end(digest)
            return
        self._kept[digest] = piece
        self.bytes += _size(piece)
        while self.bytes > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= _size(oldest)


class Read(Value, frozen=True):
    """A text as tokens: where its pieces begin, in characters and in tokens."""

    tokens: array[int]
    starts: list[int]
    firsts: list[int]
    pieces: list[Encoded]

    def certain(self, characters: int, reach: int) -> int:
        """How many tokens the first `characters` characters decide, whatever comes after them.

        `reach` is the tokenizer's; a cut behind an added token needs none.
        """
        at = bisect_right(self.starts, characters) - 1
        while at >= 0:
            known = characters - self.starts[at]
            cuts = self.pieces[at].cuts
            last = bisect_right(cuts, known - reach, key=_character) - 1
            if last < 0 and cuts and cuts[0][1] == 1 and cuts[0][0] <= known:
                last = 0
            if last >= 0:
                return self.firsts[at] + cuts[last][1]
            at -= 1
        return 0


def _character(cut: tuple[int, int]) -> int:
    return cut[0]


def _size(piece: Encoded) -> int:
    return _ENTRY_BYTES + 4 * len(piece.tokens) + _CUT_BYTES * len(piece.cuts)


def _joined(starts: list[int], pieces: list[Encoded]) -> Read:
    tokens: array[int] = array("I")
    firsts: list[int] = []
    for piece in pieces:
        firsts.append(len(tokens))
        tokens += piece.tokens
    return Read(tokens, starts, firsts, pieces)
