"""The states of an engine's process as its launcher sees them, as a table.

Pure. Asked: given a state and what was just seen, which state follows? Invariants: nothing
leaves DEAD; a draining engine never becomes ready again; a sign the table does not list changes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Readiness(StrEnum):
    """Where one process is in its life."""

    STARTING = "starting"
    """Loading; it does not answer its health check yet."""
    READY = "ready"
    DRAINING = "draining"
    """Asked to stop; finishing what it has."""
    DEAD = "dead"


class Sign(StrEnum):
    """What the launcher sees or does."""

    ANSWERED = "answered"
    """The health check was answered with 200."""
    ASKED_TO_STOP = "asked to stop"
    EXITED = "exited"


TRANSITIONS: Final[Mapping[Readiness, Mapping[Sign, Readiness]]] = {
    Readiness.STARTING: {
        Sign.ANSWERED: Readiness.READY,
        Sign.ASKED_TO_STOP: Readiness.DRAINING,
        Sign.EXITED: Readiness.DEAD,
    },
    Readiness.READY: {
        Sign.ASKED_TO_STOP: Readiness.DRAINING,
        Sign.EXITED: Readiness.DEAD,
    },
    Readiness.DRAINING: {Sign.EXITED: Readiness.DEAD},
    Readiness.DEAD: {},
}


def after(state: Readiness, sign: Sign) -> Readiness:
    """The state that follows."""
    return TRANSITIONS[state].get(sign, state)
