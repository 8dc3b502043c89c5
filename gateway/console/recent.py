"""What was lately decided, and which beginnings of prompts were sent: only while somebody looks.

Told by the corridor, asked by the snapshot. Pure.

Invariants. Of fixed size. What is kept is numbers and names: of a prompt the hashes of its
beginnings, and even those are not shown; a family has a number of its own instead, so that nobody
can try texts against it. Nothing is kept from before the last time that nobody looked.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from math import exp
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.vocabulary import Decision, ModelName, Seconds, Tokens

if TYPE_CHECKING:
    from gateway.request import GenerationRequest

DECISIONS: Final = 40
FAMILIES: Final = 256
FAMILY_MARK: Final = 3
"""Prompts of a model belong together that are alike up to this mark, 512 bytes from their
beginning (`choose.text_chain`), or up to their last one."""

FADES_S: Final = 60.0
"""A request counts for less as time goes by: after so long for a third."""


class Decided(msgspec.Struct, frozen=True):
    """A request was given a replica; `number` counts up."""

    number: int
    at: Seconds
    model: ModelName
    tenant: str
    prompt_tokens: Tokens
    decision: Decision


class Family:
    """Prompts that begin alike; `hashes` and `prompt_tokens` are those of the last one sent."""

    __slots__ = ("_heat", "hashes", "last_at", "model", "number", "prompt_tokens", "requests")

    def __init__(self, number: int, model: ModelName) -> None:
        self.number = number
        self.model = model
        self.hashes: list[int] = []
        self.prompt_tokens: Tokens = 0
        self.requests = 0
        self.last_at: Seconds = 0.0
        self._heat = 0.0

    def __repr__(self) -> str:
        return f"<Family {self.number} of {self.requests} requests>"

    def sent(self, hashes: list[int], prompt_tokens: Tokens, now: Seconds) -> None:
        """One more of them."""
        self._heat = self.heat(now) + 1.0
        self.last_at = now
        self.hashes = hashes
        self.prompt_tokens = prompt_tokens
        self.requests += 1

    def heat(self, now: Seconds) -> float:
        """How much it is asked for, of late."""
        return self._heat * exp((self.last_at - now) / FADES_S)


class Recent:
    """What the corridor tells, where `is_wanted`. O(1) each."""

    __slots__ = ("_decided", "_families", "_numbered", "decisions", "is_wanted")

    def __init__(self) -> None:
        self.is_wanted = False
        self.decisions: deque[Decided] = deque(maxlen=DECISIONS)
        self._families: OrderedDict[int, Family] = OrderedDict()  # the last one asked for, last
        self._decided = 0
        self._numbered = 0

    def __repr__(self) -> str:
        state = "wanted" if self.is_wanted else "not wanted"
        return f"<Recent {len(self.decisions)} decisions, {len(self._families)} families, {state}>"

    def chosen(self, request: GenerationRequest, decision: Decision, now: Seconds) -> None:
        """A replica was chosen for it."""
        self._decided += 1
        self.decisions.append(
            Decided(
                self._decided,
                now,
                request.model,
                request.tenant.name,
                request.prompt_tokens,
                decision,
            )
        )

    def sent(self, request: GenerationRequest, hashes: list[int], now: Seconds) -> None:
        """It was sent; these are the hashes of its prompt's beginnings, none for a short one."""
        if not hashes:
            return
        key = hashes[min(FAMILY_MARK, len(hashes) - 1)]
        family = self._families.get(key)
        if family is None:
            if len(self._families) == FAMILIES:
                self._families.popitem(last=False)
            self._numbered += 1
            family = self._families[key] = Family(self._numbered, request.model)
        self._families.move_to_end(key)
        family.sent(hashes, request.prompt_tokens, now)

    def hottest(self, most: int, now: Seconds) -> list[Family]:
        """Those asked for most, in the order of their numbers. O(families)."""
        by_heat = sorted(self._families.values(), key=lambda each: each.heat(now), reverse=True)
        return sorted(by_heat[:most], key=lambda each: each.number)

    def clear(self) -> None:
        """Nobody looks any more. What comes is numbered on."""
        self.is_wanted = False
        self.decisions.clear()
        self._families.clear()
