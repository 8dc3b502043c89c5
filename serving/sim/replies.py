"""What a reply will be, decided before it starts: its tokens, its text piece by piece, its end.

Laws: the pieces joined are the reply's text; a stop string ends the reply before itself, and no
earlier one was passed over; at most `limit` tokens.
"""

from dataclasses import dataclass

from serving.sim.engine import FinishReason
from serving.sim.requests import Limits
from serving.sim.tokens import BYTES_PER_TOKEN, detokenize, next_tokens


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply; `pieces[i]` is the text that comes with token i."""

    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    finish: FinishReason
    stop_reason: str | None = None
    """The stop string that ended it."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


NO_REPLY = Reply((), (), FinishReason.STOP)
"""For pooling requests, which only read."""


def plan_reply(
    prompt: list[int], limits: Limits, room: int, seed: int, mean_tokens: int | None
) -> Reply:
    """The reply to a prompt with `room` tokens left in the context. O(prompt + reply)."""
    limit = room if limits.max_tokens is None else min(limits.max_tokens, room)
    mean = None if limits.ignores_end else mean_tokens
    tokens, has_ended = next_tokens(prompt, seed, limit, mean, limits.least_tokens)
    text = detokenize(tokens)
    stop, at = _first_stop(text, limits)
    if stop is None:
        finish = FinishReason.STOP if has_ended else FinishReason.LENGTH
        return Reply(tuple(tokens), _pieces(text, len(tokens)), finish)
    kept = -(-(at + len(stop)) // BYTES_PER_TOKEN)
    return Reply(tuple(tokens[:kept]), _pieces(text[:at], kept), FinishReason.STOP, stop)


def _first_stop(text: str, limits: Limits) -> tuple[str | None, int]:
    """The stop string that ends first past the least length, and where it begins."""
    found = [
        (at + len(stop), at, stop)
        for stop in limits.stops
        if stop and (at := text.find(stop, limits.least_tokens * BYTES_PER_TOKEN)) >= 0
    ]
    if not found:
        return None, 0
    _, at, stop = min(found)
    return stop, at


def _pieces(text: str, count: int) -> tuple[str, ...]:
    """The text in `count` pieces of a token's length; the last ones may be short or empty."""
    size = BYTES_PER_TOKEN
    return tuple(text[index * size : (index + 1) * size] for index in range(count))
