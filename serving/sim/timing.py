"""How long one engine step takes: a pure function of what is in the batch.

Asked for seconds; answers
    base + prefill_token * P + prefill_attention * A + decode * [D > 0] + decode_sequence * D
         + decode_context_token * C
where P is prompt tokens computed in the step, A = sum over prefill chunks of n * (h + n / 2) for n
tokens after h earlier ones (token pairs attended), D is sequences that decode, C is the sum of
their contexts: the form usually fitted to engines (u/R + a*u*(h + u/2) for prefill,
alpha + beta*B + gamma*C for decode).

Invariants: never negative; never shorter when any quantity grows.

A profile is a JSON file that carries these parameters, the engine's shape on that hardware, and a
statement of how the figures were made: "assumed", "measured" or "composed".
"""

from typing import Annotated, Literal

import msgspec

NonNegative = Annotated[float, msgspec.Meta(ge=0.0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class StepWork(msgspec.Struct, frozen=True, gc=False):
    """What a step computes, or the mean of many; the letters are those of the module's formula."""

    prefill_tokens: float = 0
    prefill_token_pairs: float = 0.0
    decode_sequences: float = 0
    decode_context_tokens: float = 0


class StepTiming(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds per unit of work."""

    base_s: NonNegative
    prefill_token_s: NonNegative
    prefill_token_pair_s: NonNegative
    decode_s: NonNegative
    decode_sequence_s: NonNegative
    decode_context_token_s: NonNegative
    arrival_s: NonNegative = 0.0
    """Of no step: from a request's arrival until the scheduler sees it, and from its first token's
    making until it leaves, taken together. HTTP, tokenizing, handing over."""

    def seconds(self, work: StepWork) -> float:
        """The modelled duration of one step; O(1)."""
        return (
            self.base_s
            + self.prefill_token_s * work.prefill_tokens
            + self.prefill_token_pair_s * work.prefill_token_pairs
            + (self.decode_s if work.decode_sequences else 0.0)
            + self.decode_sequence_s * work.decode_sequences
            + self.decode_context_token_s * work.decode_context_tokens
        )


class EngineShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine's limits on this hardware, where no flag says otherwise."""

    block_size: AtLeastOne
    blocks: AtLeastOne
    max_num_seqs: AtLeastOne
    max_num_batched_tokens: AtLeastOne
    max_model_len: AtLeastOne


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where and when a profile was made, and how well its model fits what it was made from."""

    date: str
    """YYYY-MM-DD."""
    machine: str
    model: str
    engine: str
    """As its answers name it (system_fingerprint), or what was measured in its place."""
    how: str
    """The command."""
    tensor_parallel: AtLeastOne = 1
    points: int = 0
    median_error: NonNegative = 0.0
    """Relative, of the fitted model over the points measured."""
    largest_error: NonNegative = 0.0


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A named model-and-hardware profile."""

    name: str
    basis: Literal["assumed", "measured", "composed"]
    """composed: put together from measured parts."""
    note: str
    timing: StepTiming
    engine: EngineShape
    origin: Origin | None = None


def parse_profile(text: bytes) -> Profile:
    """Raises ValueError that says where the profile is wrong."""
    return msgspec.json.decode(text, type=Profile)
