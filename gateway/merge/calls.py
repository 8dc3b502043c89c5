"""Calls that are only read (embeddings, classes, scores, ranks), put together and taken apart.

Asked: what are the items of this call, and which parameters must another have in common to share an
upstream call with it? And of the answer to such a call: which part is whose? Pure.

Invariants. What is merged and taken apart gives each caller what it would have been given alone:
its own items in its own order, indices from 0, and a usage of its own items. Whatever is not
understood in full is not merged. An answer that is not of the expected shape is refused
(ValueError), never dealt out in part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import pairwise
from typing import Any, Final

import msgspec

from gateway.vocabulary import ModelName, Tokens

Item = str | Sequence[int] | tuple[str, str]
"""A text, a text as tokens, or a pair of texts that is read as one prompt."""


class Layout(Enum):
    """How a route lays out its items, and the answers to them."""

    INPUTS = "input"  # -> data, in the order of the inputs
    PAIRS = "text_2"  # -> data, in the order of the texts; text_1 is common to all
    RANKS = "documents"  # -> results, best first; the query is common to all


LAYOUTS: Final[Mapping[str, Layout]] = {
    "/v1/embeddings": Layout.INPUTS,
    "/classify": Layout.INPUTS,
    "/pooling": Layout.INPUTS,
    "/v1/score": Layout.PAIRS,
    "/score": Layout.PAIRS,
    "/rerank": Layout.RANKS,
    "/v1/rerank": Layout.RANKS,
    "/v2/rerank": Layout.RANKS,
}

_ITEMS: Final = {Layout.INPUTS: "input", Layout.PAIRS: "text_2", Layout.RANKS: "documents"}
_COMMON: Final = {Layout.PAIRS: "text_1", Layout.RANKS: "query"}
_ANSWERS: Final = {Layout.INPUTS: "data", Layout.PAIRS: "data", Layout.RANKS: "results"}
_TOP_N: Final = "top_n"
_NOT_MERGED: Final = frozenset(
    {"messages", "stream", "priority", "request_id", "truncate_prompt_tokens"}
)

_BODY: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_INPUT: Final = msgspec.json.Decoder(str | list[str | int | list[int]])
_PLAIN: Final = msgspec.json.Decoder(str | list[str])
_TEXT: Final = msgspec.json.Decoder(str)
_COUNT: Final = msgspec.json.Decoder(int)
_ENTRIES: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_USAGE: Final = msgspec.json.Decoder(dict[str, Any])


class Call(msgspec.Struct, frozen=True):
    """One caller's, read. Two with equal `key` may be merged."""

    layout: Layout
    model: ModelName
    key: bytes
    items: Sequence[Item]
    parameters: Mapping[str, msgspec.Raw]
    """All members but the items."""
    top_n: int | None = None
    """Of a ranking: how many of the best are wanted; None: all."""


def read_call(path: str, body: bytes) -> Call | None:
    """None where it cannot share a call: it goes on as it is, and is refused upstream if wrong."""
    layout = LAYOUTS.get(path)
    if layout is None:
        return None
    try:
        members = _BODY.decode(body)
        top_n = None
        if layout is Layout.RANKS and _TOP_N in members:
            top_n = _COUNT.decode(members.pop(_TOP_N)) or None  # none or 0: all of them
        items = _items(layout, members)
        model = ModelName(_TEXT.decode(members["model"]))
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError, RecursionError):
        return None
    if not items or members.keys() & _NOT_MERGED or (top_n is not None and top_n < 0):
        return None
    kind = b"t" if isinstance(items[0], str | tuple) else b"i"
    key = b"\x00".join(
        [
            path.encode(),
            kind,
            *(b"%b=%b" % (n.encode(), bytes(members[n])) for n in sorted(members)),
        ]
    )
    return Call(layout, model, key, items, members, top_n)


def _items(layout: Layout, members: dict[str, msgspec.Raw]) -> Sequence[Item]:
    """Takes them out of `members`. Raises msgspec's errors and KeyError."""
    raw = members.pop(_ITEMS[layout])
    if layout is not Layout.INPUTS:
        common = _TEXT.decode(members[_COMMON[layout]])
        texts = _PLAIN.decode(raw)
        return [(common, each) for each in ([texts] if isinstance(texts, str) else texts)]
    found = _INPUT.decode(raw)
    if isinstance(found, str):
        return [found]
    kinds = {type(each) for each in found}
    if len(kinds) != 1:
        return []  # an engine would refuse the mixture
    return [found] if kinds == {int} else found  # one input, as tokens, or several


def merged_body(calls: Sequence[Call]) -> bytes:
    """One body for several calls of equal key: their items one after another."""
    first = calls[0]
    items = [_sent(item) for call in calls for item in call.items]
    return msgspec.json.encode({**first.parameters, _ITEMS[first.layout]: items})


def _sent(item: Item) -> str | Sequence[int]:
    return item[1] if isinstance(item, tuple) else item


def taken_apart(calls: Sequence[Call], body: bytes, counts: Sequence[Tokens]) -> list[bytes]:
    """The answer to `merged_body(calls)`, dealt out: a body for each.

    `counts` are the tokens of the items, in their order: the answer tells only their sum. Raises
    ValueError where it is not an answer to these calls, or not of so many tokens.
    """
    name = _ANSWERS[calls[0].layout]
    try:
        document = _BODY.decode(body)
        entries = _by_index(_ENTRIES.decode(document[name]), len(counts))
        usage = _USAGE.decode(document["usage"])
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not an answer to a merged call: {error}") from error
    if usage.get("prompt_tokens") != sum(counts):
        raise ValueError(f"{usage.get('prompt_tokens')!r} tokens were read, {sum(counts)} expected")
    parts, at = [], 0
    for call in calls:
        end = at + len(call.items)
        mine = _mine(call, entries[at:end])
        document[name] = msgspec.Raw(msgspec.json.encode(mine))
        document["usage"] = msgspec.Raw(_usage(usage, sum(counts[at:end])))
        parts.append(msgspec.json.encode(document))
        at = end
    return parts


def _by_index(entries: list[dict[str, msgspec.Raw]], expected: int) -> list[dict[str, msgspec.Raw]]:
    """In the order of the items, each exactly once. Raises ValueError."""
    placed: dict[int, dict[str, msgspec.Raw]] = {
        _COUNT.decode(entry["index"]): entry for entry in entries
    }
    if len(entries) != expected or placed.keys() != set(range(expected)):
        raise ValueError(f"{len(entries)} entries for {expected} items")
    return [placed[index] for index in range(expected)]


def _mine(
    call: Call, entries: Sequence[dict[str, msgspec.Raw]]
) -> list[dict[str, msgspec.Raw | int]]:
    """A caller's own entries, numbered as its items are."""
    mine: list[dict[str, msgspec.Raw | int]] = [
        {**entry, "index": index} for index, entry in enumerate(entries)
    ]
    if call.layout is not Layout.RANKS:
        return mine
    best_first = sorted(mine, key=lambda entry: -float(msgspec.json.decode(_score(entry))))
    return best_first[: call.top_n]


def _score(entry: Mapping[str, msgspec.Raw | int]) -> msgspec.Raw:
    found = entry["relevance_score"]
    assert isinstance(found, msgspec.Raw)
    return found


def _usage(whole: Mapping[str, Any], tokens: Tokens) -> bytes:
    """As the whole's, of so many tokens."""
    own = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({**whole, **{name: own[name] for name in own if name in whole}})


def in_pieces(call: Call, pieces: int) -> list[Call]:
    """The same call in that many parts, or fewer: contiguous and of nearly equal length."""
    pieces = min(pieces, len(call.items))
    bounds = [len(call.items) * number // pieces for number in range(pieces + 1)]
    return [
        msgspec.structs.replace(call, items=call.items[start:end])
        for start, end in pairwise(bounds)
    ]


def put_together(pieces: Sequence[Call], bodies: Sequence[bytes]) -> bytes:
    """The answer to a call, from those to its pieces. Raises ValueError."""
    first = pieces[0]
    name = _ANSWERS[first.layout]
    entries: list[dict[str, msgspec.Raw]] = []
    total: dict[str, Any] = {}
    try:
        for piece, body in zip(pieces, bodies, strict=True):
            document = _BODY.decode(body)
            entries += _by_index(_ENTRIES.decode(document[name]), len(piece.items))
            for each, count in _USAGE.decode(document["usage"]).items():
                total[each] = total[each] + count if isinstance(total.get(each), int) else count
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not an answer to a piece of a call: {error}") from error
    document[name] = msgspec.Raw(msgspec.json.encode(_mine(first, entries)))
    document["usage"] = msgspec.Raw(msgspec.json.encode(total))
    return msgspec.json.encode(document)
