"""Why there? A choice put into words, for those who ask.

Asked by X-Headrace-Explain (one line in the response's head), by /debug/route (the whole table) and
by the console.
Pure. Invariant: nothing of the prompt is in what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.vocabulary import Decision, Prediction

if TYPE_CHECKING:
    from gateway.choose.chooser import Choice, Quote
    from gateway.vocabulary import ReplicaView


class Reason(StrEnum):
    """What decided between the chosen replica and the next best."""

    ONLY = "only"  # there was no other
    POLICY = "policy"  # it was chosen though another costs less: by turn, by chance, by session
    TIE = "tie"  # the next best costs the same
    CACHED = "cached"  # it holds more of the prompt than the next best
    WAIT = "wait"  # it holds no more, and is free sooner
    COST = "cost"  # it costs less, for the rest of it


def reason(chosen: Prediction, runner_up: Prediction | None) -> Reason:
    """O(1)."""
    if runner_up is None:
        return Reason.ONLY
    if chosen.cost > runner_up.cost:
        return Reason.POLICY
    if chosen.cost == runner_up.cost:
        return Reason.TIE
    if (chosen.hit_tokens or 0) > (runner_up.hit_tokens or 0):
        return Reason.CACHED
    if (chosen.wait_s or 0.0) < (runner_up.wait_s or 0.0):
        return Reason.WAIT
    return Reason.COST


def ranked(quote: Quote, replicas: int) -> list[Prediction]:
    """What is expected of each, least cost first."""
    return sorted(map(quote.prediction, range(replicas)), key=lambda each: each.cost)


def explained(choice: Choice[ReplicaView]) -> Decision:
    """O(replicas). To be asked at once: what is expected moves with what is sent."""
    quote, index = choice.quote, choice.index
    if quote is None:
        return Decision(Prediction(choice.replica.id, 0.0), Reason.ONLY, None, 1)
    costs = quote.costs
    others = [each for each in range(len(choice.replicas)) if each != index]
    chosen = quote.prediction(index)
    runner_up = quote.prediction(min(others, key=costs.__getitem__)) if others else None
    return Decision(chosen, reason(chosen, runner_up), runner_up, len(choice.replicas))


def decision(choice: Choice[ReplicaView], prompt_tokens: int) -> bytes:
    """One line: `replica=a:8000; hit_tokens=96; ...; reason=cached; runner_up=b:8000`.

    Parts that the policy does not think of are left out.
    """
    made = explained(choice)
    if choice.quote is None:
        return f"replica={made.chosen.replica}; reason={made.reason}".encode()
    chosen, runner_up = made.chosen, made.runner_up
    parts = [f"replica={chosen.replica}", f"prompt_tokens={prompt_tokens}"]
    if chosen.hit_tokens is not None:
        parts.append(f"hit_tokens={chosen.hit_tokens}")
    if chosen.wait_s is not None:
        parts.append(f"wait_ms={chosen.wait_s * 1000:.1f}")
    if chosen.prefill_s is not None:
        parts.append(f"prefill_ms={chosen.prefill_s * 1000:.1f}")
    if chosen.grade is not None:
        parts.append(f"grade={chosen.grade}")
    parts += [f"cost={chosen.cost:.4g}", f"reason={made.reason}"]
    if runner_up is not None:
        parts.append(f"runner_up={runner_up.replica}")
        parts.append(f"runner_up_cost={runner_up.cost:.4g}")
    return "; ".join(parts).encode()


def document(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """The table as plain JSON."""
    return [msgspec.to_builtins(each) for each in predictions]
