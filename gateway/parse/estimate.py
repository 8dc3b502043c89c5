"""Prompt tokens without a tokenizer: bytes per token, learnt per model from `usage`.

Asked before every choice, answered in one division. English text is near 4 bytes a token, code
near 3, Chinese near 2 to 3 in UTF-8, and JSON's own punctuation is in the bytes we count; so the
ratio is learnt from what the engines report, and 4 serves until then.

Invariant: the ratio stays within its bounds whatever is reported, so one odd response cannot make
prompts look free or endless.
"""

from __future__ import annotations

from typing import Final

from gateway.vocabulary import ModelName, Tokens

PRIOR_BYTES_PER_TOKEN: Final = 4.0
LEAST: Final = 0.5
MOST: Final = 64.0
WEIGHT: Final = 0.05  # of one report: settles within some fifty requests, and follows a change


class Estimator:
    """Owns the learnt ratios, one per model that has answered."""

    __slots__ = ("_ratios",)

    def __init__(self) -> None:
        self._ratios: dict[ModelName, float] = {}

    def __repr__(self) -> str:
        ratios = ", ".join(f"{model}: {ratio:.2f}" for model, ratio in self._ratios.items())
        return f"<Estimator bytes per token [{ratios}]>"

    def prompt_tokens(self, model: ModelName, prompt_bytes: int) -> Tokens:
        """How many tokens so many bytes of prompt are likely to be. O(1)."""
        return int(prompt_bytes / self._ratios.get(model, PRIOR_BYTES_PER_TOKEN))

    def learn(self, model: ModelName, prompt_bytes: int, prompt_tokens: Tokens) -> None:
        """A replica reported how many tokens a prompt was. Reports of nothing teach nothing."""
        if prompt_bytes <= 0 or prompt_tokens <= 0:
            return
        seen = prompt_bytes / prompt_tokens
        if not LEAST <= seen <= MOST:
            seen = LEAST if seen < LEAST else MOST
        known = self._ratios.get(model, PRIOR_BYTES_PER_TOKEN)
        self._ratios[model] = known + WEIGHT * (seen - known)
