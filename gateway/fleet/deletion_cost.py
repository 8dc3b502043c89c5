"""Which pods may go first when Kubernetes scales down: what each is worth, and how to say so.

Asked: which annotations have to be written? Pure. A ReplicaSet with a pod too many deletes the one
of the least `controller.kubernetes.io/pod-deletion-cost`, ready ones alike. A pod is worth what
would have to be read again without it: the tokens its caches hold, those it is just reading, and
what its requests in flight will have generated.

Invariants. Nothing is written while the order that stands is right, but for pods of nearly equal
worth. What is written for a pod depends on that pod alone, so several gateways that see nearly the
same write the same, and a second writes nothing. Written costs put the pods in the order of their
worth, in steps of a fifth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import attrgetter
from typing import Final

import msgspec

from gateway.fleet.watching import Key
from gateway.vocabulary import ReplicaView, Tokens

NEARLY: Final = 1.5
"""Of two pods, one is worth more if it is worth so many times the other, and so much more:"""
AT_LEAST_TOKENS: Final = 4096
REQUEST_TOKENS: Final = 1024
"""What cutting off a request in flight costs, beside the prompt that it is still reading."""
STEPS: Final = 4.0  # to a doubling


class Priced(msgspec.Struct, frozen=True):
    """A pod, whose ReplicaSet it is of, the cost that is written on it, and its worth now."""

    pod: Key
    controller: str
    cost: int
    worth: Tokens


def worth_of(held: Tokens, replica: ReplicaView) -> Tokens:
    """Of one replica, whose cache holds so much."""
    return held + replica.inflight_prompt_tokens + REQUEST_TOKENS * replica.inflight_requests


def to_be_written(pods: Iterable[Priced]) -> Mapping[Key, int]:
    """The costs that are to be written; none where the order is right. O(n log n)."""
    found: dict[Key, int] = {}
    in_order = sorted(pods, key=attrgetter("controller", "cost"))
    for _, group in groupby(in_order, attrgetter("controller")):
        rivals = list(group)
        if not _is_right(rivals):
            found |= {
                each.pod: cost(each.worth) for each in rivals if each.cost != cost(each.worth)
            }
    return found


def cost(worth: Tokens) -> int:
    """What is written for a pod of so much worth; 0 for one of none."""
    return round(STEPS * math.log2(1.0 + worth / AT_LEAST_TOKENS))


def _is_right(rivals: list[Priced]) -> bool:
    """By ascending cost: would none go before another that is worth clearly less?"""
    dearest = 0
    for _, alike in groupby(rivals, attrgetter("cost")):
        worths = [each.worth for each in alike]
        dearest = max(dearest, *worths)
        if dearest > NEARLY * min(worths) + AT_LEAST_TOKENS:
            return False
    return True
