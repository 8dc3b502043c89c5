"""What a replica says it serves: the body of its GET /v1/models, read.

Asked: which models, in the order given? Invariant: any bytes at all give cards or ValueError.
Fields that we do not know are left out, so the cards of engines other than vLLM are read too.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from gateway.vocabulary import ModelCard, ModelName


class _Card(msgspec.Struct):
    id: Annotated[str, msgspec.Meta(min_length=1)]
    parent: str | None = None
    root: str | None = None
    max_model_len: int | None = None
    created: int | None = None
    owned_by: str | None = None


class _Models(msgspec.Struct):
    data: list[_Card]


_DECODER = msgspec.json.Decoder(_Models)


def read_cards(body: bytes) -> tuple[ModelCard, ...]:
    """The models of an OpenAI model list. Raises ValueError, saying where it is not one."""
    try:
        models = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(f"not a model list: {error}") from error
    return tuple(
        ModelCard(
            ModelName(card.id),
            card.parent,
            card.root,
            card.max_model_len,
            card.created or 0,
            card.owned_by or "unknown",
        )
        for card in models.data
    )
