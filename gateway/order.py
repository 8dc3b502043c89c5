"""Whose turn comes first: what those who hold requests and those who price a wait must agree on.

Class by class, strictly; within a class the least due instant:

    with a deadline or objective   that instant
    without                        arrival + PATIENCE_S + uncached tokens x AGING_S_PER_TOKEN

Uncached tokens are those of whoever went alone: what an earlier prompt that still waits will bring
into the cache counts as uncached, or those that follow would overtake their leader and find
nothing. A due instant does not change while a request waits, so waiting longer only brings it
forward: nobody starves, and a thousand uncached tokens count as one second of waiting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.vocabulary import Seconds, Tokens

from gateway.vocabulary import ServiceClass, Tenant

AGING_S_PER_TOKEN: Final = 0.001
PATIENCE_S: Final = 5.0

CLASSES: Final[tuple[ServiceClass, ...]] = tuple(ServiceClass)
RANK: Final = {each: rank for rank, each in enumerate(CLASSES)}

Place = tuple[int, float]
"""Rank of the class and due instant: who has less goes first."""

FIRST: Final[Place] = (0, 0.0)


def wanted_at(tenant: Tenant, deadline: Seconds | None, since: Seconds) -> Seconds | None:
    """By when the first byte of what came at `since` is wanted; None: by no instant."""
    objective_s = tenant.ttft_objective_s
    if objective_s is None:
        return deadline
    return since + objective_s if deadline is None else min(deadline, since + objective_s)


def place(tenant: Tenant, deadline: Seconds | None, since: Seconds, uncached: Tokens) -> Place:
    """Where it stands among those who wait for one replica."""
    due = wanted_at(tenant, deadline, since)
    if due is None:
        due = since + PATIENCE_S + uncached * AGING_S_PER_TOKEN
    return RANK[tenant.service_class], due
