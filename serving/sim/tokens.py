"""A tokenizer and a language that need no model.

Asked for the tokens of a text, the text of tokens, the text of a conversation, and what would come
next. One token is four bytes of UTF-8; the last may be shorter.

Laws: detokenize(tokenize(x)) = x; if one text is the beginning of another, its tokens are the
beginning of the other's, but for the last. The chat template pads every segment to whole tokens, so
each message renders to the same tokens wherever the conversation goes on from there, and a reply
generated after the assistant's header is found again, token for token, in the next turn's prompt:
prefix reuse works across turns as with a real model.

The next token is a pure function of the seed and all tokens before it, as with greedy decoding. So
equal prompts get equal replies on every replica of one seed, and a reply cut short and continued
from where it broke off ends as it would have.

Token numbers: four bytes, little-endian, 0..2^32-1; a last token of n < 4 bytes is n * 2^32 more.
"""

import struct
import zlib
from collections.abc import Sequence

BYTES_PER_TOKEN = 4
_SHORT = 1 << 32
TOKEN_LIMIT = BYTES_PER_TOKEN * _SHORT
"""Token numbers are below this."""

_WORDS = (
    *("the", "and", "but", "for", "not", "you", "all", "any", "can", "had", "her", "was", "one"),
    *("our", "out", "day", "get", "has", "him", "his", "how", "man", "new", "now", "old", "see"),
    *("two", "way", "who", "boy", "did", "its", "let", "put", "say", "she", "too", "use", "air"),
    *("ask", "bed", "big", "box", "car", "cat", "cup", "dog", "eat", "end", "eye", "far", "fly"),
    *("hat", "ice", "key", "map", "oak", "pen", "red"),
)
VOCABULARY: tuple[int, ...] = tuple(
    int.from_bytes(f" {word}".encode(), "little") for word in _WORDS
)
"""What replies are made of: words of three letters with a space before, one token each."""

Message = tuple[str, str]
"""A role and a text."""


def tokenize(text: str) -> list[int]:
    """Tokens of a text. O(len(text)), in C."""
    data = text.encode()
    whole = len(data) // BYTES_PER_TOKEN
    tokens = list(struct.unpack_from(f"<{whole}I", data))
    if tail := data[whole * BYTES_PER_TOKEN :]:
        tokens.append(len(tail) * _SHORT + int.from_bytes(tail, "little"))
    return tokens


def detokenize(tokens: Sequence[int]) -> str:
    """Text of tokens; bytes that are no UTF-8 become U+FFFD. Raises ValueError for no token."""
    return token_bytes(tokens).decode(errors="replace")


def token_bytes(tokens: Sequence[int]) -> bytes:
    """The bytes these tokens stand for, joined. Raises ValueError for a number that is no token."""
    try:
        return struct.pack(f"<{len(tokens)}I", *tokens)
    except struct.error:
        return b"".join(_bytes_of(token) for token in tokens)


def _bytes_of(token: int) -> bytes:
    if not 0 <= token < TOKEN_LIMIT:
        raise ValueError(f"{token} is not a token")
    length, value = divmod(token, _SHORT)
    return value.to_bytes(4, "little")[: length or BYTES_PER_TOKEN]


def token_string(token: int) -> str:
    """How a byte-level vocabulary writes it: a printable character for every byte. Raises
    ValueError for no token."""
    return token_bytes([token]).decode("latin-1").translate(_SHOWN)


def _shown() -> dict[int, int]:
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printed]
    return {byte: 0x100 + index for index, byte in enumerate(others)}


_SHOWN = _shown()


def render_chat(
    messages: Sequence[Message], *, replies: bool = True, continues: bool = False
) -> str:
    """The prompt of a conversation.

    `replies` opens the assistant's turn at the end; `continues` leaves the last message open
    instead, so that the reply goes on from it.
    """
    segments = []
    for index, (role, text) in enumerate(messages):
        segments.append(_whole_tokens(f"<|{role}|>\n"))
        is_open = continues and index == len(messages) - 1
        segments.append(text if is_open else _whole_tokens(text) + "<|end|>\n")
    if replies and not continues:
        segments.append(_whole_tokens("<|assistant|>\n"))
    return "".join(segments)


def _whole_tokens(text: str) -> str:
    """The text with line ends added up to a whole number of tokens."""
    return text + "\n" * (-len(text.encode()) % BYTES_PER_TOKEN)


def next_tokens(
    prompt: Sequence[int], seed: int, limit: int, mean: int | None = None, least: int = 0
) -> tuple[list[int], bool]:
    """At most `limit` tokens that follow a prompt, and whether the reply ended by itself.

    It ends by itself with chance 1/mean after each token from the `least`-th on (never when `mean`
    is None); the chance is drawn from the tokens before, so it is the same every time.
    O(len(prompt) + limit).
    """
    state = zlib.crc32(token_bytes(prompt))
    tokens: list[int] = []
    while len(tokens) < limit:
        drawn = _mixed(state ^ (seed * 0x9E3779B97F4A7C15))
        token = VOCABULARY[drawn % len(VOCABULARY)]
        tokens.append(token)
        if mean is not None and len(tokens) >= least and (drawn >> 16) % mean == 0:
            return tokens, True
        state = zlib.crc32(token.to_bytes(BYTES_PER_TOKEN, "little"), state)
    return tokens, False


def _mixed(number: int) -> int:
    """48 well-mixed bits of a number (multiply and fold, twice)."""
    number &= 0xFFFFFFFFFFFFFFFF
    for factor in (0xD6E8FEB86659FD93, 0xA0761D6478BD642F):
        number = ((number ^ (number >> 32)) * factor) & 0xFFFFFFFFFFFFFFFF
    return number >> 16
