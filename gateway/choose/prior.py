"""What a profile of `headrace calibrate` tells the router, until it has learnt for itself.

Pure. A prompt token at context c takes a + b c seconds there; so the rate is 1 / a, of one GPU of a
tensor-parallel group its share of that, and attention costs as much as the rest where c = a / b.
"""

from __future__ import annotations

from typing import Final

import msgspec

MOST_ATTENTION_TOKENS: Final = 10_000_000
"""A model in which attention costs next to nothing."""


class ProfileError(Exception):
    """The file is no profile; the text says where it is wrong."""


class _Timing(msgspec.Struct, frozen=True):
    prefill_token_s: float
    prefill_token_pair_s: float


class _Origin(msgspec.Struct, frozen=True):
    tensor_parallel: int = 1


class _Profile(msgspec.Struct, frozen=True):
    timing: _Timing
    origin: _Origin = _Origin()


class Prior(msgspec.Struct, frozen=True):
    """The values of `choose.prior_rate_per_s` and `choose.attention_tokens`."""

    prior_rate_per_s: float
    attention_tokens: int


def read_profile(text: bytes) -> Prior:
    """Raises ProfileError."""
    try:
        profile = msgspec.json.decode(text, type=_Profile)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProfileError(f"not a profile: {error}") from error
    token_s, pair_s = profile.timing.prefill_token_s, profile.timing.prefill_token_pair_s
    ranks = profile.origin.tensor_parallel
    if token_s <= 0.0 or pair_s < 0.0 or ranks < 1:
        raise ProfileError("not a profile: a prompt token takes no time in it")
    attention = (
        token_s / pair_s if pair_s > token_s / MOST_ATTENTION_TOKENS else MOST_ATTENTION_TOKENS
    )
    return Prior(1.0 / token_s / ranks, max(1, int(attention)))
