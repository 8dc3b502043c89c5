"""Text of so many tokens, out of nothing but a seed.

Pure. Words of three letters with a space before are one token each for the tokenizers of current
models, and for simulated replicas, whose tokens are four bytes. The chat template and the joints
cost a few tokens more; the report goes by what the endpoint counted.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import Final

WORDS: Final = (
    *("the", "and", "but", "for", "not", "you", "all", "any", "can", "had", "her", "was", "one"),
    *("our", "out", "day", "get", "has", "him", "his", "how", "man", "new", "now", "old", "see"),
    *("two", "way", "who", "boy", "did", "its", "let", "put", "say", "she", "too", "use", "air"),
    *("ask", "bed", "big", "box", "car", "cat", "cup", "dog", "eat", "end", "eye", "far", "few"),
    *("got", "hot", "job", "lot", "law", "may", "men", "own", "per", "run", "set", "six", "ten"),
)


def text(random: Random, tokens: int) -> str:
    """So many tokens; from the same state of `random`, the same."""
    return "".join(f" {word}" for word in random.choices(WORDS, k=tokens))


@lru_cache(maxsize=4096)
def text_of(name: str, tokens: int) -> str:
    """So many tokens of the text that goes by this name: a document, a system prompt, a block."""
    return text(Random(name), tokens)
