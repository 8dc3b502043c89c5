"""A model's tokenizer, with what its vocabulary says of where a text may be cut.

Tokens are what vLLM gets from the same tokenizer.json: no truncation, no padding; special tokens
around the text (a beginning-of-sequence, say) where asked for.

Two kinds of places are safe, which means that the tokens before them depend on nothing after them:

- before and after an added token, such as <|im_start|>: these are found in the text before
  anything else happens, and what is between them is tokenised by itself;
- between a letter or digit and a space or line feed, where no entry of the vocabulary reaches
  across such a pair: then no merge can, whatever the algorithm. Whether that is so is read from
  the vocabulary, for both separators, when the tokenizer is loaded.

Long texts are cut at spaces too and tokenised piece by piece. That what comes after such a place
does not depend on what was before is tried out on a sample when the tokenizer is loaded.

`encode_batch` lets other threads run while it works; the library's `encode` does not.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final

from tokenizers import Tokenizer

from gateway.record import Value
from gateway.tokens.prompts import Unreadable

CUT_EVERY: Final = 48
"""Tokens between two places that are remembered in a long text."""

PIECE: Final = 4096
"""Characters of a piece, or a few more, where a long text may be cut."""

BATCH: Final = 8
"""Pieces tokenised at once. What the library hands over is made and freed while no other thread
runs: little at a time."""

_GAP: Final = re.compile(r"[^\W_](?= [^\W_])")
_SAMPLE: Final = (
    "The quick brown fox, aged 1234567, doesn't jump over_it: it's lazy\n\n  and so are we \t all. "
    "Ein naïves Mädchen 東京 の天気 は いい Привет мир x = y + 12 z"
)


class Encoded(Value, frozen=True):
    """Tokens of a text, and pairs (characters, tokens) where it may safely be cut."""

    tokens: array[int]
    cuts: list[tuple[int, int]]


class ModelTokenizer:
    """Raises Unreadable where tokenizer.json cannot be used, and whatever the library raises (bare
    Exceptions) where it cannot be read. For one thread at a time."""

    def __init__(self, tokenizer_json: bytes) -> None:
        document = json.loads(tokenizer_json)
        self._tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        if document["model"].get("dropout"):
            raise Unreadable("the tokenizer is not deterministic (dropout)")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.prefix, self.suffix = self._around()
        self._tokenizer.post_processor = None
        added = document.get("added_tokens") or []
        self._added = _pattern([each["content"] for each in added if not each["normalized"]])
        self._divides = frozenset(each["content"] for each in added if _divides(each, added))
        self._separators = self._find_separators(document)
        reaching = any(_GAP.search(each["content"]) for each in added)
        self._long = not reaching and self._may_cut_long()
        self._reach = max([2, *(len(each["content"]) for each in added if " " in each["content"])])

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Without special tokens around them. Other threads run meanwhile."""
        encoded: list[Encoded] = []
        for at in range(0, len(texts), BATCH):
            some = texts[at : at + BATCH]
            encoded += [
                Encoded(array("I", encoding.ids), self._cuts(text, encoding))
                for text, encoding in zip(some, self._batch(some), strict=True)
            ]
        return encoded

    def divide(self, text: str) -> list[int]:
        """Where to cut a text into pieces that can be tokenised one by one: at its beginning, and
        before added tokens; where it is long, at spaces too. What is added to a text adds pieces
        and may change the last."""
        starts = [0]
        if self._added is not None and self._divides:
            for match in self._added.finditer(text):
                if match.start() and match.group() in self._divides:
                    starts.append(match.start())
        if not self._long or len(text) <= PIECE:
            return starts
        cuts: list[int] = []
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
            cuts.append(start)
            while (gap := _GAP.search(text, cuts[-1] + PIECE, end)) is not None:
                cuts.append(gap.end())
        return cuts

    def _may_cut_long(self) -> bool:
        """Is a text that is cut at a space, piece by piece, what it is as a whole?"""
        if " " not in self._separators:
            return False
        gaps = [gap.end() for gap in _GAP.finditer(_SAMPLE)]
        whole, *pieces = self._batch(
            [_SAMPLE, *(part for gap in gaps for part in (_SAMPLE[:gap], _SAMPLE[gap:]))]
        )
        return all(
            before.ids + after.ids == whole.ids
            for before, after in zip(pieces[::2], pieces[1::2], strict=True)
        )

    def _batch(self, texts: Sequence[str]) -> list[Any]:
        return self._tokenizer.encode_batch(list(texts), add_special_tokens=False)

    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens put before and after a text."""
        plain = self._tokenizer.encode(_SAMPLE, add_special_tokens=False).ids
        full = self._tokenizer.encode(_SAMPLE, add_special_tokens=True).ids
        for at in range(len(full) - len(plain) + 1):
            if full[at : at + len(plain)] == plain:
                return full[:at], full[at + len(plain) :]
        raise Unreadable("the tokenizer's special tokens cannot be told from its text")

    def _cuts(self, text: str, encoding: Any) -> list[tuple[int, int]]:
        """After an added token at the beginning, and at separators, some tokens apart."""
        cuts: list[tuple[int, int]] = []
        head = self._added.match(text) if self._added is not None else None
        if head is not None and head.group() in self._divides:
            cuts.append((head.end(), 1))
        if not self._separators:
            return cuts
        if text.startswith(" "):
            cuts.append((0, 0))  # only a piece of a long text, or nothing's end, begins so
        index, misses = CUT_EVERY, 0
        while index < len(encoding):
            start, end = encoding.token_to_chars(index) or (0, 0)
            if start < end and text[start] in self._separators and text[start - 1].isalnum():
                cuts.append((start, index))
                misses = 0
            else:
                misses += 1
            index += 1 if 0 < misses < CUT_EVERY else CUT_EVERY
        return cuts

    @property
    def reach(self) -> int:
        """So many characters after a cut must be known for it to be one: added tokens that have a
        space in them reach across it."""
        return self._reach

    def _find_separators(self, document: dict[str, Any]) -> str:
        """Of space and line feed those that no entry of the vocabulary has after a letter."""
        entries: Iterable[str] = self._tokenizer.get_vocab(with_added_tokens=False)
        space, feed, letter = " ", "\n", r"[^\W_]"
        if '"ByteLevel"' in json.dumps([document.get("pre_tokenizer"), document.get("decoder")]):
            space, feed, letter = "Ġ", "Ċ", _BYTE_LETTER
        elif "▁" in json.dumps(
            [document.get("pre_tokenizer"), document.get("normalizer"), document.get("decoder")],
            ensure_ascii=False,
        ):
            space = "▁"
        found = ""
        text = "\0".join(entries)
        for separator, written in ((" ", space), ("\n", feed)):
            if re.search(letter + re.escape(written), text) is None:
                found += separator
        return found


def _byte_letter() -> str:
    """Matches what byte-level vocabularies write for an ASCII letter or digit, or for any byte of a
    longer character. Bytes that print stand for themselves, others from U+0100 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printed]
    shown = {byte: chr(byte) for byte in printed}
    shown |= {byte: chr(0x100 + index) for index, byte in enumerate(others)}
    letters = [shown[byte] for byte in range(0x80, 0x100)]
    return "[0-9A-Za-z" + "".join(map(re.escape, letters)) + "]"


_BYTE_LETTER: Final = _byte_letter()


def _divides(token: dict[str, Any], added: list[dict[str, Any]]) -> bool:
    """May a text be cut before it, and after it, wherever it is found?"""
    content = token["content"]
    if not token["special"] or token["normalized"] or content != content.strip():
        return False
    if token["single_word"] or token["lstrip"] or token["rstrip"]:
        return False
    return not any(
        each["content"].startswith(content) and each["content"] != content for each in added
    )


def _pattern(contents: list[str]) -> re.Pattern[str] | None:
    """Finds the longest of `contents` at the leftmost place, as the library does. Common beginnings
    are shared, so that a thousand reserved tokens cost no more than one."""
    return re.compile(_alternatives(sorted(set(contents)))) if contents else None


def _alternatives(contents: list[str]) -> str:
    by_first: dict[str, list[str]] = {}
    for content in contents:
        if content:
            by_first.setdefault(content[0], []).append(content[1:])
    branches = [re.escape(first) + _alternatives(rest) for first, rest in by_first.items()]
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)}){'?' if '' in contents else ''}"
