"""How many tokens a text, or a pair of texts, is to a model that only reads.

Special tokens are put around as the model's own tokenizer.json says, as engines do for embeddings,
classes and scores. Nothing is cut short: an engine refuses what is too long.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from gateway.vocabulary import Tokens


class TokenCounter:
    """One model's. For one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError or the library's own errors for a folder without a good tokenizer.json."""
        self._tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text("utf-8"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count(self, items: Sequence[str | Sequence[int] | tuple[str, str]]) -> list[Tokens]:
        """Of each item; one that is tokens already is as many as it is."""
        texts = [item for item in items if isinstance(item, str | tuple)]
        read = iter(self._tokenizer.encode_batch(texts))
        return [len(next(read)) if isinstance(item, str | tuple) else len(item) for item in items]
