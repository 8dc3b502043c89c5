"""The model list, as OpenAI's API shows it: what healthy replicas serve, adapters included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.vocabulary import ModelCard


def model_document(card: ModelCard) -> dict[str, Any]:
    """One model; fields that are unknown are left out."""
    document: dict[str, Any] = {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": card.owned_by,
    }
    for name, value in (
        ("root", card.root),
        ("parent", card.parent),
        ("max_model_len", card.max_model_len),
    ):
        if value is not None:
            document[name] = value
    return document


def models_document(cards: Iterable[ModelCard]) -> dict[str, Any]:
    """The list, by name."""
    ordered = sorted(cards, key=lambda card: card.id)
    return {"object": "list", "data": [model_document(card) for card in ordered]}
